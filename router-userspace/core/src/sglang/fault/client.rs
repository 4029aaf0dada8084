//! An error for a client, in the format of the endpoint that it called.

use bytes::Bytes;

use super::super::json::quote;
use super::super::{Endpoint, sse};

/// An error for a client.
///
/// ```
/// use router_core::sglang::{Endpoint, fault::ClientError};
///
/// let error = ClientError::new(503, "no decode engine is ready");
/// assert_eq!(
///     error.body(Endpoint::Chat),
///     concat!(
///         r#"{"error":{"message":"no decode engine is ready","#,
///         r#""type":"service_unavailable_error","param":null,"code":503}}"#,
///     ),
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientError {
    pub status: u16,
    pub message: String,
    /// OpenAI's `type`. Anthropic's is derived from the status.
    pub kind: String,
    pub param: Option<String>,
    /// OpenAI's `code`. `None` writes the status, as engines do.
    pub code: Option<String>,
}

impl ClientError {
    /// An error of the type that belongs to `status`.
    pub fn new(status: u16, message: impl Into<String>) -> ClientError {
        let kind = match status {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            501 => "not_implemented_error",
            503 => "service_unavailable_error",
            504 => "timeout_error",
            _ => "server_error",
        };
        ClientError {
            status,
            message: message.into(),
            kind: kind.to_owned(),
            param: None,
            code: None,
        }
    }

    /// The JSON body of an answer with [`status`](ClientError::status).
    pub fn body(&self, endpoint: Endpoint) -> Bytes {
        let mut out = Vec::with_capacity(128 + self.message.len());
        match endpoint {
            Endpoint::Messages => self.write_anthropic(&mut out),
            _ => {
                out.extend_from_slice(b"{\"error\":");
                self.write_openai(&mut out);
                out.push(b'}');
            }
        }
        out.into()
    }

    /// The events that end a stream with this error: the error, and the regular end of a stream of
    /// this endpoint.
    ///
    /// ```
    /// use router_core::sglang::{Endpoint, fault::ClientError};
    ///
    /// let events = ClientError::new(500, "gone").events(Endpoint::Messages);
    /// assert_eq!(
    ///     events,
    ///     concat!(
    ///         "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",",
    ///         "\"message\":\"gone\"}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    ///     ),
    /// );
    /// ```
    pub fn events(&self, endpoint: Endpoint) -> Bytes {
        let mut out = Vec::with_capacity(192 + self.message.len());
        match endpoint {
            Endpoint::Chat | Endpoint::Completions | Endpoint::Generate => {
                out.extend_from_slice(b"data: ");
                out.extend_from_slice(&self.body(endpoint));
                out.extend_from_slice(b"\n\n");
                out.extend_from_slice(sse::DONE);
            }
            Endpoint::Responses => {
                out.extend_from_slice(b"event: error\ndata: {\"type\":\"error\",\"code\":");
                quote(&mut out, self.code.as_deref().unwrap_or(&self.kind));
                out.extend_from_slice(b",\"message\":");
                quote(&mut out, &self.message);
                out.extend_from_slice(b",\"param\":");
                optional(self.param.as_deref(), &mut out);
                // The number of previous events is unknown here; nothing follows this event.
                out.extend_from_slice(b",\"sequence_number\":0}\n\n");
            }
            Endpoint::Messages => {
                out.extend_from_slice(b"event: error\ndata: ");
                self.write_anthropic(&mut out);
                out.extend_from_slice(
                    b"\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
                );
            }
        }
        out.into()
    }

    fn write_openai(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"message\":");
        quote(out, &self.message);
        out.extend_from_slice(b",\"type\":");
        quote(out, &self.kind);
        out.extend_from_slice(b",\"param\":");
        optional(self.param.as_deref(), out);
        out.extend_from_slice(b",\"code\":");
        match &self.code {
            Some(code) => quote(out, code),
            None => out.extend_from_slice(itoa::Buffer::new().format(self.status).as_bytes()),
        }
        out.push(b'}');
    }

    fn write_anthropic(&self, out: &mut Vec<u8>) {
        let kind = match self.status {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            503 | 529 => "overloaded_error",
            _ => "api_error",
        };
        out.extend_from_slice(b"{\"type\":\"error\",\"error\":{\"type\":");
        quote(out, kind);
        out.extend_from_slice(b",\"message\":");
        quote(out, &self.message);
        out.extend_from_slice(b"}}");
    }
}

fn optional(text: Option<&str>, out: &mut Vec<u8>) {
    match text {
        Some(text) => quote(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sglang::fault::event_fault;
    use crate::sglang::json::Raw;
    use crate::sglang::sse::{Splitter, data};

    #[test]
    fn every_error_stream_is_well_formed_and_parses_as_a_fault() {
        let mut error = ClientError::new(502, "a \"quoted\"\nmessage");
        error.param = Some("n".into());
        for endpoint in Endpoint::ALL {
            let mut splitter = Splitter::default();
            splitter.push(error.events(endpoint));
            let first = splitter.next().unwrap().unwrap();
            Raw::parse(&data(&first).unwrap()).unwrap();
            let fault = event_fault(endpoint, &first).unwrap();
            assert_eq!(fault.message, "a \"quoted\" message", "{endpoint}");
            assert!(fault.status >= 500, "{endpoint}");
            let last = splitter.next();
            match endpoint {
                Endpoint::Responses => assert_eq!(last, None),
                Endpoint::Messages => assert!(last.unwrap().is_ok()),
                _ => assert_eq!(last.unwrap().unwrap(), sse::DONE),
            }
            assert!(splitter.rest().is_empty());
        }
    }
}
