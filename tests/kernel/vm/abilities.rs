//! Every program, every map and every way to attach, on the running kernel.

use std::path::Path;

use netns::{Namespace, Node, Topology};
use pd_router::agent::bpf::programs::{AttachOutcome, Hook, Programs};
use pd_router::agent::flags::{TcMode, XdpPolicy};
use router_common::maps::PINNED;
use router_tests::agent::Agent;
use router_tests::node_manifests::prefill;

use super::{found, kernel};

const PINS: &str = "/sys/fs/bpf/abilities";
const PROGRAMS: [&str; 10] = [
    "pd_pod_ingress",
    "pd_pod_egress",
    "pd_link_ingress",
    "pd_link_egress",
    "pd_cgroup_ingress",
    "pd_cgroup_egress",
    "pd_sock_ops",
    "pd_sock_close",
    "pd_sock_state",
    "pd_xdp",
];

fn load(tc: TcMode) -> (Programs, Vec<String>) {
    let object = std::env::var("PD_ROUTER_EBPF_OBJECT").expect("PD_ROUTER_EBPF_OBJECT");
    let object = std::fs::read(object).expect("the object");
    Programs::load(&object, Path::new(PINS), tc).expect("loading")
}

/// A namespace with a bpf file system and a veth; its name and index.
fn with_veth() -> (Namespace, u32) {
    let netns = Namespace::node();
    netns.sh("ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up");
    let link = netns.sh("ip -o link show v0");
    let index = link.split(':').next().and_then(|index| index.parse().ok()).expect("an index");
    (netns, index)
}

#[test]
fn every_program_is_accepted_and_every_map_has_named_fields() {
    let netns = Namespace::node();
    let refused = netns.run(|| {
        let (programs, refused) = load(TcMode::Auto);
        for name in PROGRAMS {
            if let Err(error) = programs.fd(name) {
                assert!(!refused.is_empty(), "{name}: {error:#}");
            }
        }
        refused
    });
    found("programs accepted", format!("{} of {}", PROGRAMS.len() - refused.len(), PROGRAMS.len()));
    assert!(refused.is_empty(), "{refused:#?}");
    let mut named = 0;
    for map in PINNED {
        let shown = netns.sh(&format!("bpftool -j map show pinned {PINS}/{map}"));
        assert!(shown.contains("btf_id"), "{map} has no names: {shown}");
        named += 1;
    }
    found("maps with named fields", format!("{named} of {}", PINNED.len()));
}

#[test]
fn tc_attaches_by_tcx_from_six_six_on_and_by_clsact_everywhere() {
    let (netns, index) = with_veth();
    const HOOKS: [Hook; 4] =
        [Hook::PodIngress, Hook::PodEgress, Hook::LinkIngress, Hook::LinkEgress];
    let (tcx, again) = netns.run(move || {
        let (mut programs, _) = load(TcMode::Tcx);
        let attached = HOOKS.map(|hook| programs.attach_tc("v0", index, hook).ok());
        let again = HOOKS.map(|hook| programs.attach_tc("v0", index, hook).ok());
        HOOKS.iter().for_each(|hook| programs.detach_tc(Some("v0"), index, *hook));
        (attached, again)
    });
    let has_tcx = kernel() >= (6, 6);
    let expected = |how| if has_tcx { [Some(how); 4] } else { [None; 4] };
    assert_eq!(tcx, expected(AttachOutcome::New));
    // The second takes the pinned links over: not a packet goes by uncounted.
    assert_eq!(again, expected(AttachOutcome::TakenOver));
    let (clsact, again) = netns.run(move || {
        let (mut programs, _) = load(TcMode::Clsact);
        let attach = |programs: &mut Programs| {
            HOOKS.map(|hook| programs.attach_tc("v0", index, hook).expect("attaching by clsact"))
        };
        (attach(&mut programs), attach(&mut programs))
    });
    assert_eq!(clsact, [AttachOutcome::New; 4]);
    assert_eq!(again, [AttachOutcome::TakenOver; 4]);
    let filters = netns.sh("tc filter show dev v0 ingress; tc filter show dev v0 egress");
    for hook in HOOKS {
        let filter = format!(" {} direct-action", hook.program());
        assert_eq!(filters.matches(&filter).count(), 1, "{filters}");
    }
    found("tc", if has_tcx { "tcx and clsact, taken over" } else { "clsact, taken over" });
}

#[test]
fn xdp_attaches_natively_and_generically_and_is_taken_over() {
    let (netns, index) = with_veth();
    for (policy, name) in [(XdpPolicy::Native, "native"), (XdpPolicy::Generic, "generic")] {
        let how = netns.run(move || {
            let (mut programs, _) = load(TcMode::Auto);
            let first = programs.attach_xdp(index, policy).expect("attaching");
            let second = load(TcMode::Auto).0.attach_xdp(index, policy).expect("attaching again");
            (first, second, programs.detach_xdp(index))
        });
        assert_eq!(how, (AttachOutcome::New, AttachOutcome::TakenOver, true), "{name}");
        found(&format!("XDP {name}"), "pinned link");
    }
}

#[test]
fn sock_ops_and_the_tracepoint_attach_and_are_taken_over_where_they_can_be_pinned() {
    let netns = Namespace::node();
    netns.sh("mount -t tracefs tracefs /sys/kernel/tracing");
    let (sock_ops, tracepoint) = netns.run(|| {
        let (mut programs, _) = load(TcMode::Auto);
        let cgroup = Path::new("/sys/fs/cgroup");
        let first = programs.attach_sock_ops(cgroup).expect("attaching to the cgroup");
        let before = programs.attach_sock_state().expect("attaching to the tracepoint");
        let (mut next, _) = load(TcMode::Auto);
        let second = next.attach_sock_ops(cgroup).expect("attaching again");
        let after = next.attach_sock_state().expect("attaching again");
        ((first, second), (before, after))
    });
    assert_eq!(sock_ops, (AttachOutcome::New, AttachOutcome::TakenOver));
    // Links of tracepoints came with 5.15.
    let expected = if kernel() >= (5, 15) {
        (AttachOutcome::New, AttachOutcome::TakenOver)
    } else {
        (AttachOutcome::Replaced, AttachOutcome::Replaced)
    };
    assert_eq!(tracepoint, expected);
    found("sock_ops", "pinned link");
    let how = if kernel() >= (5, 15) { "pinned link" } else { "while the agent lives" };
    found("inet_sock_set_state", how);
}

#[test]
fn an_agent_starts_where_a_container_may_lock_little_memory() {
    let node = Node::new(Topology::Routed);
    let one = node.pod(2);
    // The limit of a container, of both kinds: before Linux 5.11 no map fits into it.
    let limited = ["sh", "-c", "ulimit -l 64; exec \"$@\"", "limited"];
    let agent = Agent::start_by(&node, &[prefill("p0", one.address)], &limited);
    assert!(!agent.log().contains("locked memory"), "{}", agent.log());
    found("64 KiB of locked memory", "raised by the agent");
}
