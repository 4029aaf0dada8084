//! Reads the whole body of a request, within its limits of size, time and memory.

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::content_coding::{self, ContentCoding};
use super::reject::Reject;
use crate::gateway::shared::Gateway;
use crate::gateway::upstream::leg::until;
use crate::http_client::client_body::ClientBody;
use crate::http_client::collector::Collector;
use crate::http_client::pace::Pace;

impl Gateway {
    /// Reads and decodes the whole body of a request, and removes the fields that name its coding. It is
    /// charged to `--max-body-memory` until its last part is dropped.
    ///
    /// # Errors
    /// The coding is unknown; the body, encoded or decoded, is over `--max-body` or exceeds
    /// `--max-body-memory`; the client is slower than [`Pace`] allows with `--body-timeout`, or closes the
    /// connection; the deadline has passed.
    pub(super) async fn read_body(
        &self,
        headers: &mut HeaderMap,
        body: ClientBody,
        deadline: Option<Instant>,
    ) -> Result<Bytes, Reject> {
        let limit = self.settings.limits.max_body;
        let coding = ContentCoding::of(headers)?;
        content_coding::remove_fields(headers);
        let read = async {
            let body = self.collect_body(body).await?;
            match coding {
                None => Ok(body),
                Some(coding) => {
                    self.body_decoder.decode(coding, body, limit, &self.body_memory).await
                }
            }
        };
        tokio::select! {
            body = read => body,
            () = until(deadline) => Err(Reject::Deadline),
        }
    }

    async fn collect_body(&self, mut body: ClientBody) -> Result<Bytes, Reject> {
        let (limit, idle) = (self.settings.limits.max_body, self.settings.timeouts.body_timeout);
        let announced = body.size_hint().exact();
        if announced.is_some_and(|length| length > limit as u64) {
            return Err(Reject::BodyTooLarge(limit));
        }
        let mut collector = Collector::new(limit, announced, Some(self.body_memory.clone()));
        let mut pace = Pace::new(idle);
        loop {
            let start = Instant::now();
            let frame = timeout_at(pace.deadline(start), body.frame()).await;
            let Some(frame) = frame.map_err(|_| Reject::BodyTimeout(idle))? else { break };
            let Ok(data) = frame?.into_data() else { continue };
            pace.received(data.len(), start);
            collector.push(data)?;
        }
        Ok(collector.finish())
    }
}
