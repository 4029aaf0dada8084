//! [`SentMark`]: when the request of one leg was written whole to its connection.

use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use parking_lot::Mutex;
use router_core::sglang::SplicedBody;
use tokio::time::Instant;

use crate::gateway::timeline::attempt_marks::AttemptMarks;
use crate::http_client::{KnownRequest, OnWritten, Protocol};

/// Whether, and when, the last byte of a leg's request was written.
#[derive(Debug)]
pub(crate) struct SentMark {
    /// The moments of the attempt, which are noted too.
    marks: Option<Arc<AttemptMarks>>,
    at: Mutex<Option<Instant>>,
}

/// A leg's body, and what notes when its last byte is written.
pub(crate) struct LegBody {
    body: SplicedBody,
    sent: Arc<SentMark>,
}

impl LegBody {
    pub(super) fn request<'a>(
        self,
        protocol: &'a Protocol,
        path: &'a PathAndQuery,
        headers: &'a HeaderMap,
    ) -> KnownRequest<'a> {
        let LegBody { body, sent } = self;
        KnownRequest { protocol, method: Method::POST, path, headers, body, on_written: Some(sent) }
    }
}

impl SentMark {
    pub(crate) fn new(marks: Option<Arc<AttemptMarks>>) -> Arc<SentMark> {
        Arc::new(SentMark { marks, at: Mutex::default() })
    }

    /// The leg's body, which notes when its last byte is written.
    pub(crate) fn body(self: &Arc<Self>, body: SplicedBody) -> LegBody {
        LegBody { body, sent: Arc::clone(self) }
    }

    /// When it was written last; `None` while it is not written whole.
    pub(crate) fn at(&self) -> Option<Instant> {
        *self.at.lock()
    }
}

impl OnWritten for SentMark {
    fn written(&self) {
        let was_written = self.at.lock().replace(Instant::now()).is_some();
        // Sent again, it is still one leg.
        if let Some(marks) = self.marks.as_ref().filter(|_| !was_written) {
            marks.written();
        }
    }
}
