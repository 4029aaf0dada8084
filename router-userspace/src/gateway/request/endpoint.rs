//! Which paths of a pool are served, and how. A path that is not in this table does not reach an
//! engine: the engines' administrative endpoints are not public.

use http::Method;
use router_core::fleet::Profile;
use router_core::sglang::Endpoint;

use super::reject::Reject;

/// How a request to a pool is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// Sent to a pair, or to one unified worker.
    Generate(Endpoint),
    /// Passed to one worker as it is.
    OneWorker,
    /// `GET /v1/models/NAME`: passed to one worker of this model.
    Model,
    /// A small JSON body, passed to one worker of the model that it names.
    OneEngine,
    /// The models of the pool, each from one worker.
    Models,
    /// The information of all workers, merged.
    ServerInfo,
    /// Whether the pool could serve a request.
    Health,
    /// Whether a worker of each role generates.
    HealthGenerate,
}

/// Paths that any one engine serves, also one of a pair: they generate nothing.
const ANY_ENGINE: [&str; 5] =
    ["/tokenize", "/detokenize", "/v1/tokenize", "/v1/detokenize", "/v1/messages/count_tokens"];

/// Paths that one engine serves alone, without a KV cache to transfer. Engines in PD mode refuse
/// them.
const WHOLE_ENGINE: [&str; 9] = [
    "/v1/embeddings",
    "/v1/rerank",
    "/rerank",
    "/v1/score",
    "/score",
    "/v1/classify",
    "/classify",
    "/encode",
    "/v1/decode",
];

/// Methods of the paths that the gateway answers itself. hyper omits the body of an answer to HEAD.
const READ: &str = "GET, HEAD";

/// How `method path` is served.
///
/// # Errors
/// 404 for a path that is not served, 405 for the wrong method, 501 for what a pair cannot do.
pub(crate) fn serve(profile: Profile, method: &Method, path: &str) -> Result<Served, Reject> {
    let (served, allow) = match path {
        "/v1/models" => (Served::Models, READ),
        "/model_info" | "/get_model_info" => (Served::OneWorker, "GET"),
        "/server_info" | "/get_server_info" => (Served::ServerInfo, READ),
        "/health" => (Served::Health, READ),
        "/health_generate" => (Served::HealthGenerate, READ),
        _ if is_model(path) => (Served::Model, "GET"),
        _ if ANY_ENGINE.contains(&path) => (Served::OneEngine, "POST"),
        _ if WHOLE_ENGINE.contains(&path) => match profile {
            Profile::Single => (Served::OneEngine, "POST"),
            Profile::Pd => {
                let why = format!("{path} is not served by a prefill/decode pair of SGLang");
                return Err(Reject::Unsupported(why));
            }
        },
        _ => match Endpoint::from_path(path) {
            Some(endpoint) => (Served::Generate(endpoint), "POST"),
            None => return Err(Reject::UnknownPath(path.to_owned())),
        },
    };
    match allow.split(", ").any(|allowed| allowed == method) {
        true => Ok(served),
        false => Err(Reject::WrongMethod { allow }),
    }
}

/// `/v1/models/NAME`. The name may contain slashes, but no `.` or `..` segment: a proxy between the
/// gateway and the engine may resolve them (RFC 3986 section 5.2.4).
fn is_model(path: &str) -> bool {
    let Some(name) = path.strip_prefix("/v1/models/") else { return false };
    let plain = name.to_ascii_lowercase().replace("%2e", ".");
    let mut segments =
        plain.split(['/', '\\']).flat_map(|s| s.split("%2f")).flat_map(|s| s.split("%5c"));
    !segments.any(|segment| matches!(segment.split(';').next(), Some("." | "..")))
}

/// The endpoint whose error format clients of this path expect.
pub(crate) fn error_format(path: &str) -> Endpoint {
    match Endpoint::from_path(path) {
        Some(endpoint) => endpoint,
        None if path.starts_with("/v1/messages/") => Endpoint::Messages,
        None => Endpoint::Chat,
    }
}

/// The name for logs and metrics: known paths only, so that their number is bounded.
pub(crate) fn label(served: Served) -> &'static str {
    match served {
        Served::Generate(endpoint) => endpoint.path(),
        Served::OneWorker | Served::Model | Served::OneEngine => "one_worker",
        Served::Models => "/v1/models",
        Served::ServerInfo => "/server_info",
        Served::Health => "/health",
        Served::HealthGenerate => "/health_generate",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(profile: Profile, method: Method, path: &str) -> u16 {
        serve(profile, &method, path).map_or_else(|reject| reject.status().as_u16(), |_| 200)
    }

    #[test]
    fn administrative_endpoints_are_not_reachable() {
        for path in [
            "/flush_cache",
            "/abort_request",
            "/update_weights_from_disk",
            "/pause_generation",
            "/pd_role_switch",
            "/start_profile",
            "/set_internal_state",
            "/metrics",
            "/v1/loads",
            "/sim/script",
            "/",
            "/v1/chat/completions/",
            "/v1/models/../flush_cache",
            "/v1/models/a/%2E./..%2Fflush_cache",
            "/v1/models/..%5cflush_cache",
            "/v1/models/..;x%2fflush_cache",
        ] {
            for profile in [Profile::Pd, Profile::Single] {
                assert_eq!(status(profile, Method::POST, path), 404, "{path}");
                assert_eq!(status(profile, Method::GET, path), 404, "{path}");
            }
        }
    }

    #[test]
    fn paths_without_a_kv_transfer_are_501_at_a_pair_and_served_by_a_unified_engine() {
        for path in WHOLE_ENGINE {
            assert_eq!(status(Profile::Pd, Method::POST, path), 501, "{path}");
            assert_eq!(status(Profile::Single, Method::POST, path), 200, "{path}");
        }
    }

    #[test]
    fn tokens_are_counted_by_any_engine() {
        for path in ANY_ENGINE {
            for profile in [Profile::Pd, Profile::Single] {
                assert_eq!(serve(profile, &Method::POST, path).unwrap(), Served::OneEngine);
                assert_eq!(status(profile, Method::GET, path), 405, "{path}");
            }
        }
        assert_eq!(error_format("/v1/messages/count_tokens"), Endpoint::Messages);
        assert_eq!(error_format("/v1/messagesx"), Endpoint::Chat);
    }

    #[test]
    fn a_model_is_found_by_any_name() {
        for path in ["/v1/models/m", "/v1/models/Qwen/Qwen3-32B", "/v1/models/Qwen%2FQwen3..5"] {
            assert_eq!(serve(Profile::Pd, &Method::GET, path).unwrap(), Served::Model);
        }
    }

    #[test]
    fn a_405_lists_allowed_methods() {
        assert_eq!(status(Profile::Pd, Method::HEAD, "/health"), 200);
        let refused = serve(Profile::Pd, &Method::DELETE, "/v1/models").unwrap_err();
        assert_eq!(refused.into_response(Endpoint::Chat).headers()["allow"], "GET, HEAD");
    }

    #[test]
    fn every_generating_endpoint_takes_post_only() {
        for endpoint in Endpoint::ALL {
            let served = serve(Profile::Pd, &Method::POST, endpoint.path()).unwrap();
            assert_eq!(served, Served::Generate(endpoint));
            assert_eq!(status(Profile::Pd, Method::GET, endpoint.path()), 405);
        }
    }
}
