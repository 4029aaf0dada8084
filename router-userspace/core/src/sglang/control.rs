//! Fields of a body that steer engines: the gateway's to set, never the client's.

use super::Endpoint;

/// Whether a top-level field steers the engine's rendezvous, naming or placement.
///
/// The two fields of `/generate` in the second group are inner business of the engine that its
/// HTTP surface happens to accept: a cache hint "never set by a client" and the IPC address that
/// answers go to. Elsewhere they are unknown fields and pass.
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
