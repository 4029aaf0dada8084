//! A leg on an ordinary server: both halves in one place.

use super::{Finish, Leg};

impl Leg<'_> {
    pub(super) async fn unified(&self) -> Result<Finish, Finish> {
        let (_slot, _running) = self.slot().await?;
        let _tokens = self.rank.counts.tokens.enter_with(self.job.prompt.len());
        let computed = self.forward().await;
        Ok(self.generate(computed).await)
    }
}
