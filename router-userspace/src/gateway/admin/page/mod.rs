//! The page at `/`: the fleet and the last requests, for a browser. Its files are in the program.
//!
//! They hold nothing secret and are served without a token: a browser sends none with a page that it opens.
//! The page asks for the token, and reads `/fleet` and `/requests` with it.

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Response};
use http_body_util::Full;

/// Nothing but the files below, and no text as a script: what clients send is shown.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'";

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Each file by its path, with its type.
const FILES: [(&str, &str, &str); 8] = [
    ("/", "text/html; charset=utf-8", include_str!("index.html")),
    ("/page/style.css", "text/css; charset=utf-8", include_str!("style.css")),
    ("/page/icon.svg", "image/svg+xml", include_str!("icon.svg")),
    ("/page/main.js", SCRIPT, include_str!("main.js")),
    ("/page/dom.js", SCRIPT, include_str!("dom.js")),
    ("/page/map.js", SCRIPT, include_str!("map.js")),
    ("/page/request.js", SCRIPT, include_str!("request.js")),
    ("/page/source.js", SCRIPT, include_str!("source.js")),
];

/// The file at a path.
pub(super) fn file(path: &str) -> Option<Response<Full<Bytes>>> {
    let (_, kind, text) = FILES.iter().find(|(at, ..)| *at == path)?;
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    let fields = [
        (CONTENT_TYPE, *kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // Another version's files after an upgrade would not fit its `/fleet`.
        (CACHE_CONTROL, "no-cache"),
    ];
    let fields = fields.map(|(name, value)| (name, HeaderValue::from_static(value)));
    response.headers_mut().extend(fields);
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_together_are_smaller_than_60_kb() {
        let bytes: usize = FILES.iter().map(|(.., text)| text.len()).sum();
        assert!(bytes < 60_000, "{bytes} bytes");
    }

    #[test]
    fn no_file_names_another_host_or_writes_text_as_html() {
        let forbidden =
            ["http://", "https://", "innerHTML", "outerHTML", "insertAdjacentHTML", "eval("];
        for (path, _, text) in FILES {
            // The name of the language of pictures is no address.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for word in forbidden.into_iter().chain(["document.write", "style=\"", " onclick="]) {
                assert!(!text.contains(word), "{path} has {word}");
            }
        }
    }

    #[test]
    fn every_file_that_a_file_names_is_served_and_each_has_the_policy() {
        for (path, _, text) in FILES {
            let response = file(path).unwrap();
            assert_eq!(response.headers()[CONTENT_SECURITY_POLICY], POLICY, "{path}");
            for rest in text.split("\"/page/").skip(1) {
                let name = rest.split('"').next().unwrap();
                assert!(file(&format!("/page/{name}")).is_some(), "{path} names {name}");
            }
        }
        assert!(file("/page/another.js").is_none());
    }
}
