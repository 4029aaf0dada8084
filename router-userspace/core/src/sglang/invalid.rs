//! Bodies that the gateway rejects with 400.

use super::json::{MAX_DEPTH, SyntaxError};

/// Why a body is rejected. The client gets status 400 and type `invalid_request_error`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// The message for the client, in English.
    pub message: String,
    /// The invalid field, as OpenAI's `param`. `None` if the body as a whole is invalid.
    pub param: Option<&'static str>,
}

impl Invalid {
    /// The field `param` is invalid. The message is its name followed by `what`.
    pub(super) fn field(param: &'static str, what: &str) -> Invalid {
        Invalid { message: format!("'{param}' {what}"), param: Some(param) }
    }

    pub(super) fn body(message: impl Into<String>) -> Invalid {
        Invalid { message: message.into(), param: None }
    }
}

impl From<SyntaxError> for Invalid {
    fn from(syntax: SyntaxError) -> Invalid {
        Invalid::body(match syntax {
            SyntaxError::Eof => "The request body is not valid JSON: it ends too early".to_owned(),
            SyntaxError::Unexpected(at) => {
                format!("The request body is not valid JSON: unexpected character at byte {at}")
            }
            SyntaxError::Depth(at) => {
                format!("The request body is nested deeper than {MAX_DEPTH} levels at byte {at}")
            }
            SyntaxError::Utf8(at) => format!("The request body is not UTF-8 at byte {at}"),
            SyntaxError::ByteOrderMark => {
                "The request body starts with a byte order mark, which JSON does not allow".into()
            }
            SyntaxError::NotObject | SyntaxError::Refused => {
                "The request body must be a JSON object".into()
            }
        })
    }
}
