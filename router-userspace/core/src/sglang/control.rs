//! Body fields that control the engine. The gateway sets them; a client's are removed.

use super::Endpoint;

/// Whether a top-level field controls the rendezvous, the name or the placement of a request.
///
/// `kv_hints` and `http_worker_ipc` are internal fields that `/generate` accepts over HTTP: a cache
/// hint and the IPC address for answers. On other endpoints they are unknown fields and pass.
pub(super) fn is_engine_control(endpoint: Endpoint, key: &str) -> bool {
    match key {
        "bootstrap_host"
        | "bootstrap_port"
        | "bootstrap_room"
        | "bootstrap_pair_key"
        | "rid"
        | "routed_dp_rank"
        | "disagg_prefill_dp_rank"
        | "data_parallel_rank"
        | "decode_tp_size" => true,
        "kv_hints" | "http_worker_ipc" => endpoint == Endpoint::Generate,
        // The engine uses it as the request's rid.
        "request_id" => endpoint == Endpoint::Responses,
        _ => false,
    }
}
