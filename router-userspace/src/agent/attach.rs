//! Which interfaces to attach to: those that the routes to the pods name, and the uplinks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use serde::Serialize;
use tracing::{info, warn};

use super::kernel::{Attached, Hook, Programs};
use super::maps::Maps;
use super::netlink::{Link, Netlink};
use super::pods::KnownPod;
use super::registry::Placed;
use super::settings::{AgentFlags, XdpWish};
use router_common::flow::Uplink;

/// Drivers that keep their receive offloads when XDP runs.
const KEEP_OFFLOADS: [&str; 5] = ["mlx5_core", "ice", "i40e", "ixgbe", "bnxt_en"];

/// An interface that programs are attached to, and why so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) index: u32,
    /// `pod` or `uplink`.
    pub(super) role: &'static str,
    /// What counts what arrives: `tc`, `xdp native` or `xdp generic`.
    pub(super) by: &'static str,
    pub(super) reason: String,
}

/// What stands where: pods, interfaces, and what cannot be seen.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) placed: Vec<Placed>,
    pub(super) pod_links: BTreeMap<u32, String>,
    pub(super) uplinks: BTreeMap<u32, Link>,
    /// Of every interface, wanted or not.
    names: BTreeMap<u32, String>,
    pub(super) unseen: Vec<String>,
}

/// Finds out where the pods are.
///
/// # Errors
/// The kernel does not tell its interfaces.
pub(super) fn plan(flags: &AgentFlags, pods: &[KnownPod]) -> io::Result<Plan> {
    let mut netlink = Netlink::default();
    let links: BTreeMap<u32, Link> =
        netlink.links()?.into_iter().map(|link| (link.index, link)).collect();
    let named = |names: &[String]| -> BTreeMap<u32, Link> {
        let wanted = links.values().filter(|link| names.contains(&link.name));
        wanted.map(|link| (link.index, link.clone())).collect()
    };
    let names = links.values().map(|link| (link.index, link.name.clone())).collect();
    let mut plan = Plan { uplinks: named(&flags.uplink), names, ..Plan::default() };
    if flags.uplink.is_empty() {
        // An address of nobody (RFC 5737): only a default route leads there.
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

impl Plan {
    fn place(
        &mut self,
        flags: &AgentFlags,
        pod: &KnownPod,
        carrier: Option<&Link>,
        links: &BTreeMap<u32, Link>,
    ) {
        let by_route = carrier.is_some_and(|link| !self.uplinks.contains_key(&link.index));
        let local = match (&pod.node, &flags.node_name) {
            (Some(node), Some(own)) => **node == **own,
            _ => by_route,
        };
        let mut placed = Placed { pod: pod.clone(), local, ifindex: 0, behind_bridge: false };
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
                // What comes for the node's own address comes by its uplink.
                placed.ifindex = self.uplinks.keys().next().copied().unwrap_or_default();
            }
            None if local => self.unseen.push(format!(
                "{}: no route leads to {}, so its packets are not seen (an interface of its own?)",
                pod.name, pod.address
            )),
            None => {}
        }
        self.placed.push(placed);
    }
}

/// What is attached now.
#[derive(Debug, Default)]
pub(super) struct Attachments {
    pub(super) devices: Vec<Device>,
    tc: BTreeSet<(u32, Hook)>,
    xdp: BTreeMap<u32, (&'static str, String)>,
    adopted: bool,
}

impl Attachments {
    /// Attaches to what is new in the plan and detaches from what is not in it any more.
    pub(super) fn follow(
        &mut self,
        plan: &Plan,
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
                // What leaves there is a pod's own; of others it has been counted on the way there.
                wanted.insert((*index, Hook::LinkEgress));
            }
        }
        if !self.adopted {
            // What an agent before left and nobody wants any more counts twice or for nobody. Filters
            // of clsact have no pins: they may be on any interface.
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
                    tell(how, hook.program(), name);
                    attached.insert((*index, *hook));
                }
                Err(error) => warn!(interface = name, "cannot attach: {error:#}"),
            }
        }
        self.tc = attached;
        self.describe(plan);
    }

    fn describe(&mut self, plan: &Plan) {
        let pods = plan.pod_links.iter().map(|(index, name)| Device {
            name: name.clone(),
            index: *index,
            role: "pod",
            by: "tc",
            reason: "a route to a pod names it".to_owned(),
        });
        let uplinks = plan.uplinks.iter().map(|(index, link)| {
            let (by, reason) = self.xdp.get(index).cloned().unwrap_or(("tc", String::new()));
            Device { name: link.name.clone(), index: *index, role: "uplink", by, reason }
        });
        self.devices = pods.chain(uplinks).collect();
    }
}

fn tell(how: Attached, program: &str, place: &str) {
    match how {
        Attached::New => info!(program, place, "attached"),
        Attached::TakenOver => info!(program, place, "taken over from the agent before, gapless"),
        Attached::Replaced => {
            warn!(program, place, "attached anew: packets went uncounted between")
        }
    }
}

/// Decides for or against XDP on an uplink; what counts there now, and why.
fn attach_xdp(
    link: &Link,
    wish: XdpWish,
    programs: &mut Programs,
    maps: &Maps,
) -> (&'static str, String) {
    let reason = match wish {
        XdpWish::Off => Err("--xdp off".to_owned()),
        XdpWish::Native | XdpWish::Generic => Ok("asked for by --xdp".to_owned()),
        XdpWish::Auto => worth_xdp(link),
    };
    let (by, reason) = match reason {
        Err(reason) => {
            programs.detach_xdp(link.index);
            ("tc", reason)
        }
        Ok(reason) => match programs.attach_xdp(link.index, wish) {
            Ok(how) => {
                tell(how, "pd_xdp", &link.name);
                (if wish == XdpWish::Generic { "xdp generic" } else { "xdp native" }, reason)
            }
            Err(error) => ("tc", format!("XDP is refused: {error:#}")),
        },
    };
    info!(interface = link.name, by, reason, "uplink");
    let uplink = Uplink { xdp: (by != "tc").into() };
    if let Err(error) = maps.uplinks.set(&link.index, &uplink) {
        warn!(interface = link.name, %error, "cannot say who counts there");
    }
    (by, reason)
}

/// XDP costs offloads on many drivers, several times what it gives: only where it does not.
fn worth_xdp(link: &Link) -> Result<String, String> {
    if !link.kind.is_empty() {
        return Err(format!("auto: {} loses more by XDP than it gains", link.kind));
    }
    let device = Path::new("/sys/class/net").join(&link.name).join("device");
    if device.join("infiniband").exists() {
        return Ok("auto: RoCEv2 is in use on it".to_owned());
    }
    let driver = std::fs::read_link(device.join("driver")).ok();
    let driver = driver.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    match driver {
        Some(driver) if KEEP_OFFLOADS.contains(&driver) => {
            Ok(format!("auto: {driver} keeps its offloads"))
        }
        Some(driver) => Err(format!("auto: {driver} may lose its offloads")),
        None => Err("auto: no driver is known of it".to_owned()),
    }
}
