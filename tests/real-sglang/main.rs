//! pd-router in front of real SGLang engines: two prefills if memory allows, a decode, and an
//! ordinary server as the reference, each in its own pod, with KV over Mooncake's TCP transport,
//! and the agent on the same node. Needs root and BPF.
//!
//! The servers take minutes to start, so all checks share them and run one after another.

mod agent;
mod answer;
mod client_disconnect;
mod comparison;
mod engine_failures;
mod injected_failures;
mod measurements;
mod openai_client;
mod requests;
mod runner;
mod server;
mod sglang_router;
mod shape;
mod simulator;
mod testbed;

use std::process::ExitCode;

use netns::{Node, Topology};
use runner::CheckRunner;
use testbed::TestBed;

fn main() -> ExitCode {
    // Cargo and nextest pass --list to every test program. This one has a single list, run in
    // order.
    if std::env::args().any(|word| word == "--list") {
        return ExitCode::SUCCESS;
    }
    let node = Node::new(Topology::Bridged);
    let servers = TestBed::pods(&node);
    // In the node's namespace. The runtime has no other thread.
    node.netns.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let testbed = runtime.block_on(TestBed::start(servers));
        let mut runner = CheckRunner::new(runtime, testbed);
        runner.check("every answer matches the reference", comparison::matches_reference);
        runner.check(
            "engine control in a client's body has no effect",
            comparison::engine_control_is_ignored,
        );
        runner.check("concurrent requests have distinct rooms", comparison::concurrent_requests);
        runner.check("OpenAI's client is served", openai_client::chat_stream_and_samples);
        runner.check("the agent's KV bytes of every pair match the engine's", measurements::kv);
        runner.check("the agent sees the connections that ss shows", measurements::connections);
        runner.check("the kernel's latencies match the engine's", measurements::latencies);
        runner
            .check("a client disconnect frees both engines", client_disconnect::frees_both_engines);
        runner
            .check("a frozen prefill fails the request in time", engine_failures::prefill_freezes);
        runner.check(
            "a killed prefill fails the request at once and serves after a restart",
            engine_failures::prefill_dies,
        );
        runner.check(
            "a killed decode fails the request at once and serves after a restart",
            engine_failures::decode_dies,
        );
        runner.check(
            "a request that kills prefills kills one of two",
            engine_failures::prefill_crash_is_contained,
        );
        runner.check("the simulator's answers have the engine's shapes", simulator::table);
        runner.check("the simulator's failures match the engine's", simulator::failures);
        runner
            .check("the simulator matches the engine: a killed prefill", injected_failures::killed);
        runner.check(
            "the simulator matches the engine: a frozen scheduler",
            injected_failures::scheduler_frozen,
        );
        runner.check(
            "the simulator matches the engine: a room of 2^63",
            injected_failures::room_too_large,
        );
        runner.check(
            "the simulator matches the engine: a room used twice",
            injected_failures::room_used_twice,
        );
        runner.check("sglang-router answers the same table", sglang_router::table);
        runner.finish()
    })
}
