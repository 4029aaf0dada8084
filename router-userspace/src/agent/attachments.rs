//! The interfaces that programs are attached to: those that the routes to the pods name, and uplinks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use serde::Serialize;
use tracing::{info, warn};

use super::bpf::maps::Maps;
use super::bpf::programs::{AttachOutcome, Hook, Programs};
use super::flags::{AgentFlags, XdpPolicy};
use super::host::netlink::{Interface, Netlink};
use super::pods::registered_pod::PlacedPod;
use super::pods::source::KnownPod;
use router_common::flow::Uplink;

/// Drivers that keep their receive offloads when XDP runs.
const KEEP_OFFLOADS: [&str; 5] = ["mlx5_core", "ice", "i40e", "ixgbe", "bnxt_en"];

/// An interface that programs are attached to, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct AttachedInterface {
    pub(super) name: String,
    pub(super) index: u32,
    /// `pod` or `uplink`.
    pub(super) role: &'static str,
    /// The hook that counts arriving packets: `tc`, `xdp native` or `xdp generic`.
    pub(super) counted_by: &'static str,
    pub(super) reason: String,
}

/// Where the pods are, and which interfaces to attach to.
#[derive(Debug, Default)]
pub(super) struct AttachPlan {
    pub(super) placed: Vec<PlacedPod>,
    pub(super) pod_links: BTreeMap<u32, String>,
    pub(super) uplinks: BTreeMap<u32, Interface>,
    /// Names of all interfaces, wanted or not, by index.
    names: BTreeMap<u32, String>,
    /// Pods whose packets cannot be counted, and why.
    pub(super) uncounted_pods: Vec<String>,
}

/// Finds the interface of each pod.
///
/// # Errors
/// The interfaces or routes cannot be read.
pub(super) fn plan(flags: &AgentFlags, pods: &[KnownPod]) -> io::Result<AttachPlan> {
    let mut netlink = Netlink::default();
    let links: BTreeMap<u32, Interface> =
        netlink.interfaces()?.into_iter().map(|link| (link.index, link)).collect();
    let named = |names: &[String]| -> BTreeMap<u32, Interface> {
        let wanted = links.values().filter(|link| names.contains(&link.name));
        wanted.map(|link| (link.index, link.clone())).collect()
    };
    let names = links.values().map(|link| (link.index, link.name.clone())).collect();
    let mut plan = AttachPlan { uplinks: named(&flags.uplink), names, ..AttachPlan::default() };
    if flags.uplink.is_empty() {
        // A documentation address (RFC 5737): only the default route leads to it.
        let default = netlink.route([192, 0, 2, 1].into())?;
        plan.uplinks = default
            .and_then(|index| Some((index, links.get(&index)?.clone())))
            .into_iter()
            .collect();
    }
    plan.pod_links = named(&flags.attach).into_iter().map(|(i, link)| (i, link.name)).collect();
    for pod in pods {
        let carrier = netlink.route(pod.address)?.and_then(|index| links.get(&index));
        plan.place(flags, pod, carrier, &links);
    }
    Ok(plan)
}

impl AttachPlan {
    fn place(
        &mut self,
        flags: &AgentFlags,
        pod: &KnownPod,
        carrier: Option<&Interface>,
        links: &BTreeMap<u32, Interface>,
    ) {
        let by_route = carrier.is_some_and(|link| !self.uplinks.contains_key(&link.index));
        let local = match (&pod.node, &flags.node_name) {
            (Some(node), Some(own)) => **node == **own,
            _ => by_route,
        };
        let mut placed = PlacedPod { pod: pod.clone(), local, ifindex: 0, behind_bridge: false };
        match carrier.filter(|_| local && !pod.host_network) {
            Some(link) if link.kind == "bridge" => {
                placed.behind_bridge = true;
                let ports = links.values().filter(|port| port.master == link.index);
                let ports = ports.filter(|port| !self.uplinks.contains_key(&port.index));
                self.pod_links.extend(ports.map(|port| (port.index, port.name.clone())));
            }
            Some(link) => {
                placed.ifindex = link.index;
                if !self.uplinks.contains_key(&link.index) && link.name != "lo" {
                    self.pod_links.insert(link.index, link.name.clone());
                }
            }
            None if local && pod.host_network => {
                // Packets to the node's own address arrive over its uplink.
                placed.ifindex = self.uplinks.keys().next().copied().unwrap_or_default();
            }
            None if local => self.uncounted_pods.push(format!(
                "{}: no route leads to {}, so its packets are not counted (an interface of its own?)",
                pod.name, pod.address
            )),
            None => {}
        }
        self.placed.push(placed);
    }
}

/// The programs that are attached.
#[derive(Debug, Default)]
pub(super) struct Attachments {
    pub(super) interfaces: Vec<AttachedInterface>,
    tc: BTreeSet<(u32, Hook)>,
    /// The hook that counts on each uplink, and the reason.
    xdp: BTreeMap<u32, (&'static str, String)>,
    /// Whether the programs of an earlier agent have been looked for.
    adopted: bool,
}

impl Attachments {
    /// Attaches to interfaces that are new in the plan, and detaches from those that are not in it.
    pub(super) fn reconcile(
        &mut self,
        plan: &AttachPlan,
        flags: &AgentFlags,
        programs: &mut Programs,
        maps: &Maps,
    ) {
        let name = |index: u32| plan.names.get(&index).map(String::as_str);
        let mut wanted: BTreeSet<(u32, Hook)> = BTreeSet::new();
        for index in plan.pod_links.keys() {
            wanted.extend([(*index, Hook::PodIngress), (*index, Hook::PodEgress)]);
        }
        for index in plan.uplinks.keys() {
            wanted.insert((*index, Hook::LinkIngress));
            if plan.placed.iter().any(|placed| placed.ifindex == *index) {
                // Only pods that the uplink itself carries: the others are counted on their own
                // interface.
                wanted.insert((*index, Hook::LinkEgress));
            }
        }
        if !self.adopted {
            // Programs of an earlier agent that are not wanted would count twice. Filters of clsact
            // have no pins, so they may be on any interface.
            let filters = plan.names.keys().flat_map(|index| Hook::ALL.map(|hook| (*index, hook)));
            let left = programs.tc_pins().into_iter().chain(filters);
            self.tc.extend(left.filter(|left| !wanted.contains(left)));
            self.adopted = true;
        }
        for (index, hook) in self.tc.difference(&wanted) {
            programs.detach_tc(name(*index), *index, *hook);
        }
        self.xdp.retain(|index, _| plan.uplinks.contains_key(index));
        for (index, link) in &plan.uplinks {
            self.xdp.entry(*index).or_insert_with(|| attach_xdp(link, flags.xdp, programs, maps));
        }
        let mut attached: BTreeSet<(u32, Hook)> = self.tc.intersection(&wanted).copied().collect();
        for (index, hook) in wanted.difference(&self.tc) {
            let name = name(*index).unwrap_or_default();
            match programs.attach_tc(name, *index, *hook) {
                Ok(how) => {
                    log_attached(how, hook.program(), name);
                    attached.insert((*index, *hook));
                }
                Err(error) => {
                    let program = hook.program();
                    warn!(program, interface = name, "cannot attach: {error:#}");
                }
            }
        }
        self.tc = attached;
        self.describe(plan);
    }

    fn describe(&mut self, plan: &AttachPlan) {
        let pods = plan.pod_links.iter().map(|(index, name)| AttachedInterface {
            name: name.clone(),
            index: *index,
            role: "pod",
            counted_by: "tc",
            reason: "route to a pod".to_owned(),
        });
        let uplinks = plan.uplinks.iter().map(|(index, link)| {
            let (counted_by, reason) =
                self.xdp.get(index).cloned().unwrap_or(("tc", String::new()));
            AttachedInterface {
                name: link.name.clone(),
                index: *index,
                role: "uplink",
                counted_by,
                reason,
            }
        });
        self.interfaces = pods.chain(uplinks).collect();
    }
}

fn log_attached(how: AttachOutcome, program: &str, interface: &str) {
    match how {
        AttachOutcome::New => info!(program, interface, "attached"),
        AttachOutcome::TakenOver => info!(program, interface, "took over from the earlier agent"),
        AttachOutcome::Replaced => {
            warn!(program, interface, "re-attached; packets were missed")
        }
    }
}

/// Decides for or against XDP on an uplink; returns the hook that counts there, and the reason.
fn attach_xdp(
    link: &Interface,
    policy: XdpPolicy,
    programs: &mut Programs,
    maps: &Maps,
) -> (&'static str, String) {
    let reason = match policy {
        XdpPolicy::Off => Err("--xdp off".to_owned()),
        XdpPolicy::Native | XdpPolicy::Generic => Ok("set by --xdp".to_owned()),
        XdpPolicy::Auto => worth_xdp(link),
    };
    let (counted_by, reason) = match reason {
        Err(reason) => {
            programs.detach_xdp(link.index);
            ("tc", reason)
        }
        Ok(reason) => match programs.attach_xdp(link.index, policy) {
            Ok(how) => {
                log_attached(how, "pd_xdp", &link.name);
                (if policy == XdpPolicy::Generic { "xdp generic" } else { "xdp native" }, reason)
            }
            Err(error) => ("tc", format!("XDP cannot be attached: {error:#}")),
        },
    };
    info!(interface = link.name, counted_by, reason, "uplink");
    let uplink = Uplink { xdp: (counted_by != "tc").into() };
    if let Err(error) = maps.uplinks.set(&link.index, &uplink) {
        warn!(interface = link.name, %error, "cannot write uplink");
    }
    (counted_by, reason)
}

/// Whether `--xdp auto` uses XDP. On many drivers XDP disables offloads, which costs more than it
/// gains.
fn worth_xdp(link: &Interface) -> Result<String, String> {
    if !link.kind.is_empty() {
        return Err(format!("auto: XDP costs more than it gains on {}", link.kind));
    }
    let device = Path::new("/sys/class/net").join(&link.name).join("device");
    if device.join("infiniband").exists() {
        return Ok("auto: the interface has an RDMA device".to_owned());
    }
    let driver = std::fs::read_link(device.join("driver")).ok();
    let driver = driver.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    match driver {
        Some(driver) if KEEP_OFFLOADS.contains(&driver) => {
            Ok(format!("auto: {driver} keeps its offloads"))
        }
        Some(driver) => Err(format!("auto: {driver} may lose its offloads")),
        None => Err("auto: its driver is unknown".to_owned()),
    }
}
