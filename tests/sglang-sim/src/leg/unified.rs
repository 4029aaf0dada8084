//! A leg on an ordinary server, which does both halves.

use super::{Finish, RunningLeg};

impl RunningLeg<'_> {
    pub(super) async fn unified(&self) -> Result<Finish, Finish> {
        let (_slot, _running) = self.slot().await?;
        let _tokens = self.rank.gauges.tokens.enter_with(self.spec.prompt.len());
        let result = self.forward().await?;
        Ok(self.generate(result).await)
    }
}
