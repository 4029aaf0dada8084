//! pd-router before real SGLang engines: two prefills where memory allows, a decode, and an ordinary
//! server as the reference, each in a pod of its own, with KV over Mooncake's TCP transport, and the
//! agent beside them. Needs root and BPF.
//!
//! The servers take minutes to start, so there is one set of them and the checks take turns.

mod agent;
mod answer;
mod answers;
mod clients;
mod counted;
mod deaths;
mod leaving;
mod peer;
mod report;
mod requests;
mod server;
mod shape;
mod simulated;
mod struck;
mod world;

use std::process::ExitCode;

use netns::{Node, Topology};

use report::Report;
use world::World;

fn main() -> ExitCode {
    // What cargo and nextest pass to every test program: there is one list here, run in order.
    if std::env::args().any(|word| word == "--list") {
        return ExitCode::SUCCESS;
    }
    let node = Node::new(Topology::Bridged);
    let servers = World::pods(&node);
    // In the node's namespace; the runtime has no other thread.
    node.netns.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let world = runtime.block_on(World::start(servers));
        let mut report = Report::new(runtime, world);
        report.check("every answer is the reference's", answers::equal);
        report.check("what a client smuggles changes nothing", answers::smuggling);
        report.check("requests at once have rooms of their own", answers::at_once);
        report.check("OpenAI's client is served", clients::openai);
        report.check("the agent's KV bytes of every pair are the engine's", counted::kv);
        report.check("the agent sees the connections that ss shows", counted::connections);
        report.check("the kernel's latencies are the engine's", counted::latencies);
        report.check("a client that leaves frees both engines", leaving::frees_both);
        report.check("a frozen prefill is told of in time", deaths::prefill_freezes);
        report.check("a killed prefill is told of at once, its return heals", deaths::prefill_dies);
        report.check("a killed decode is told of at once, its return heals", deaths::decode_dies);
        report.check("a request that kills prefills kills one of two", deaths::poison);
        report.check("the simulator answers the same table in the same shapes", simulated::table);
        report.check("the simulator fails as the engine does", simulated::failures);
        report.check("struck, it does as the engine: a killed prefill", struck::killed);
        report.check("struck, it does as the engine: a frozen scheduler", struck::scheduler_frozen);
        report.check("struck, it does as the engine: a room of 2^63", struck::room_too_large);
        report.check("struck, it does as the engine: a room used twice", struck::room_used_twice);
        report.check("sglang-router answers the same table", peer::table);
        report.finish()
    })
}
