//! [`SentMark`]: when the request of one leg was written whole to its connection.

use std::sync::{Arc, OnceLock};

use http::HeaderMap;
use http::uri::PathAndQuery;
use router_core::sglang::SplicedBody;
use tokio::time::Instant;

use crate::gateway::engine_client::EngineRequest;
use crate::gateway::timeline::attempt_marks::AttemptMarks;
use crate::http_client::{OnWritten, Protocol};

/// Whether, and when, the last byte of a leg's request was written.
#[derive(Debug)]
pub(crate) struct SentMark {
    /// The moments of the attempt, which are noted too.
    marks: Option<Arc<AttemptMarks>>,
    at: OnceLock<Instant>,
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
    ) -> EngineRequest<'a> {
        let LegBody { body, sent } = self;
        EngineRequest { protocol, path, headers, body, on_written: Some(sent) }
    }
}

impl SentMark {
    pub(crate) fn new(marks: Option<Arc<AttemptMarks>>) -> Arc<SentMark> {
        Arc::new(SentMark { marks, at: OnceLock::new() })
    }

    /// The leg's body, which notes when its last byte is written.
    pub(crate) fn body(self: &Arc<Self>, body: SplicedBody) -> LegBody {
        LegBody { body, sent: Arc::clone(self) }
    }

    /// `None` while the request is not written whole.
    pub(crate) fn at(&self) -> Option<Instant> {
        self.at.get().copied()
    }
}

impl OnWritten for SentMark {
    fn written(&self) {
        self.at.get_or_init(Instant::now);
        if let Some(marks) = &self.marks {
            marks.written();
        }
    }
}
