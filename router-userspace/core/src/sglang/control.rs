//! Body fields that control the engine. The gateway sets them; a client's are removed.

use super::Endpoint;

/// Whether a top-level field controls the rendezvous, the name or the placement of a request, or is
/// a field that servers of one engine pass to each other.
///
/// `endpoint` is `None` on a path that one engine serves alone. Inner fields are removed on every
/// path: no client has a use for them, and `/generate` and `/encode` accept them over HTTP.
pub(super) fn is_engine_control(endpoint: Option<Endpoint>, key: &str) -> bool {
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
        // A cache hint of an orchestrator, and the address to which an engine sends its answers.
        "kv_hints" | "http_worker_ipc" => true,
        // Addresses of encoders, to which an engine sends requests, and what it expects of them.
        "encoder_urls"
        | "num_items_assigned"
        | "need_wait_for_mm_inputs"
        | "need_wait_for_image" => true,
        // What the HTTP server of the engine fills in: the id of an adapter, times, traces, metrics. `no_logs`
        // is the client's wish that its request is not logged, and is passed on.
        "lora_id" | "received_time" | "external_trace_header" | "log_metrics" | "return_bytes" => {
            true
        }
        // The engine uses it as the request's rid.
        "request_id" => endpoint == Some(Endpoint::Responses),
        // Only `/v1/responses` has it for clients. Elsewhere the engine goes on without a client.
        "background" => endpoint != Some(Endpoint::Responses),
        _ => false,
    }
}
