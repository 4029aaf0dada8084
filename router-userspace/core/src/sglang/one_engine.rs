//! Requests that one engine serves alone and that generate nothing: embeddings, tokens, scores.

use bytes::Bytes;

use super::Invalid;
use super::control::{AllowedFields, BodyType};
use super::json::{Raw, scan, unquote};

/// The body of a request that one engine serves alone, parsed for the model that it names.
#[derive(Clone, Debug)]
pub struct OneEngineRequest {
    model: Option<Box<str>>,
    body: Bytes,
}

impl OneEngineRequest {
    /// Checks that `body` is a JSON object, reads `model`, and removes the fields that clients may not
    /// send to `path`. A body without such fields is kept byte for byte.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use router_core::sglang::{AllowedFields, OneEngineRequest};
    ///
    /// let body = Bytes::from_static(br#"{"model":"m","rid":"mine", "input":1.50}"#);
    /// let none = AllowedFields::default();
    /// let request = OneEngineRequest::parse("/v1/embeddings", body, &none).unwrap();
    /// assert_eq!(request.model(), Some("m"));
    /// assert_eq!(request.body(), r#"{"model":"m","input":1.50}"#);
    /// ```
    ///
    /// # Errors
    /// The body is not a JSON object.
    pub fn parse(
        path: &str,
        body: Bytes,
        allowed: &AllowedFields,
    ) -> Result<OneEngineRequest, Invalid> {
        let body_type = BodyType::of_path(path);
        let is_removed = |key: &str| allowed.removes(body_type, key);
        let (mut model, mut has_control) = (None, false);
        scan(&body, |member| {
            // A key that is not valid Unicode is no known field.
            if let Some(key) = unquote(&body[member.key.clone()]) {
                has_control |= is_removed(&key);
                if key == "model" {
                    model = Raw::trusted(&body[member.value.clone()]).as_str().map(Into::into);
                }
            }
            true
        })?;
        let body = if has_control { without(&body, is_removed) } else { body };
        Ok(OneEngineRequest { model, body })
    }

    /// `model`, unescaped. `None` if absent or not a string.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// The body for the engine.
    pub fn body(&self) -> &Bytes {
        &self.body
    }
}

/// The members of a checked object that are not removed. White space between them is dropped.
fn without(body: &[u8], is_removed: impl Fn(&str) -> bool) -> Bytes {
    let mut out = Vec::with_capacity(body.len());
    out.push(b'{');
    for member in Raw::trusted(body.trim_ascii()).members() {
        if member.key.as_str().is_some_and(|key| is_removed(&key)) {
            continue;
        }
        if out.len() > 1 {
            out.push(b',');
        }
        out.extend_from_slice(member.key.bytes());
        out.push(b':');
        out.extend_from_slice(member.value.bytes());
    }
    out.push(b'}');
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_at(path: &str, body: &'static str) -> Result<OneEngineRequest, Invalid> {
        let body = Bytes::from_static(body.as_bytes());
        OneEngineRequest::parse(path, body, &AllowedFields::default())
    }

    fn parse(body: &'static str) -> Result<OneEngineRequest, Invalid> {
        parse_at("/tokenize", body)
    }

    #[test]
    fn an_engine_s_own_dataclass_gets_its_public_fields() {
        let body = r#"{"text":"a","made_up":1,"embed_overrides":[[1]],"mm_hashes":["x"]}"#;
        for path in ["/encode", "/classify"] {
            assert_eq!(parse_at(path, body).unwrap().body(), r#"{"text":"a"}"#, "{path}");
        }
        let embeddings = parse_at("/v1/embeddings", body).unwrap();
        assert_eq!(embeddings.body(), r#"{"text":"a","made_up":1,"embed_overrides":[[1]]}"#);
    }

    #[test]
    fn engine_control_is_removed_in_every_spelling() {
        for (body, want) in [
            (r#" {"a" : [1, 2.50] } "#, r#" {"a" : [1, 2.50] } "#),
            (r#"{"\u0072id":1,"a":"\u00e9","rid":2}"#, r#"{"a":"\u00e9"}"#),
            (r#"{"routed_dp_rank":1}"#, "{}"),
            (r#"{"a":{"rid":1},"http_worker_ipc":"x","b":1e400}"#, r#"{"a":{"rid":1},"b":1e400}"#),
            (r#"{"encoder_urls":["http://x"],"background":true,"z":0}"#, r#"{"z":0}"#),
        ] {
            assert_eq!(parse(body).unwrap().body(), want, "{body}");
        }
    }

    #[test]
    fn the_last_model_counts_if_it_is_a_string() {
        for (body, model) in [
            (r#"{"model":"a","model":"b"}"#, Some("b")),
            (r#"{"model":"a","model":null}"#, None),
            (r#"{"mod\u0065l":"\u0061"}"#, Some("a")),
            (r#"{"model":5}"#, None),
            ("{}", None),
        ] {
            assert_eq!(parse(body).unwrap().model(), model, "{body}");
        }
        for body in ["", "[]", "{", "\"model\"", "{} x"] {
            assert!(parse(body).is_err(), "{body}");
        }
    }
}
