//! The endpoints that a prefill/decode pair can serve.

use std::fmt;

use super::Rid;

/// An engine endpoint that generates text, so that a prefill/decode pair can serve it.
///
/// ```
/// use router_core::sglang::Endpoint;
///
/// assert_eq!(Endpoint::from_path("/v1/chat/completions"), Some(Endpoint::Chat));
/// assert_eq!(Endpoint::from_path("/v1/embeddings"), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    Chat,
    Completions,
    Generate,
    Responses,
    Messages,
}

impl Endpoint {
    pub const ALL: [Endpoint; 5] = [
        Endpoint::Chat,
        Endpoint::Completions,
        Endpoint::Generate,
        Endpoint::Responses,
        Endpoint::Messages,
    ];

    /// The path, which is the same at the engine and at the gateway.
    pub fn path(self) -> &'static str {
        match self {
            Endpoint::Chat => "/v1/chat/completions",
            Endpoint::Completions => "/v1/completions",
            Endpoint::Generate => "/generate",
            Endpoint::Responses => "/v1/responses",
            Endpoint::Messages => "/v1/messages",
        }
    }

    /// The endpoint at exactly this path.
    pub fn from_path(path: &str) -> Option<Endpoint> {
        Endpoint::ALL.into_iter().find(|endpoint| endpoint.path() == path)
    }

    /// Whether a stream of this endpoint ends with `[DONE]`. If so, a stream without it was cut
    /// off.
    pub fn sends_done(self) -> bool {
        match self {
            Endpoint::Chat | Endpoint::Completions | Endpoint::Generate => true,
            Endpoint::Responses | Endpoint::Messages => false,
        }
    }

    /// The id by which `POST /abort_request` finds a request that was sent with this `rid`.
    ///
    /// For a response it is the `request_id`, which must start with `resp_` so that a later
    /// `previous_response_id` can name it. `/v1/messages` takes no id: only closing the connection
    /// ends such a request.
    pub fn abort_rid(self, rid: &Rid) -> Option<String> {
        match self {
            Endpoint::Chat | Endpoint::Completions | Endpoint::Generate => {
                Some(rid.as_str().to_owned())
            }
            Endpoint::Responses => Some(format!("resp_{}", rid.as_str())),
            Endpoint::Messages => None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}
