//! The programs: loads and attaches them, pins their links, and takes links over from an earlier agent.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::links::FdLink;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, LinkOrder, Program, ProgramError,
    SchedClassifier, SockOps, TcAttachType, TestRun, TestRunOptions, TracePoint, Xdp, XdpMode, tc,
};
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use router_common::control::ControlSegment;
use router_common::maps::PINNED;

use crate::agent::bpf::syscall::PinnedLink;
use crate::agent::bpf::tables::RingTable;
use crate::agent::flags::{TcMode, XdpPolicy};

/// Where a tc program is attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// Packets that a pod sends, on the host's end of its interface.
    PodIngress,
    /// Packets that a pod receives, on the host's end of its interface.
    PodEgress,
    /// Packets that arrive over an uplink.
    LinkIngress,
    /// Packets that leave over an uplink.
    LinkEgress,
}

impl Hook {
    /// The name of the program, of its filter and of its pin.
    pub fn program(self) -> &'static str {
        match self {
            Hook::PodIngress => "pd_pod_ingress",
            Hook::PodEgress => "pd_pod_egress",
            Hook::LinkIngress => "pd_link_ingress",
            Hook::LinkEgress => "pd_link_egress",
        }
    }

    fn attach_type(self) -> TcAttachType {
        match self {
            Hook::PodIngress | Hook::LinkIngress => TcAttachType::Ingress,
            Hook::PodEgress | Hook::LinkEgress => TcAttachType::Egress,
        }
    }

    /// The handle of its clsact filter: "pd", and the number of the hook.
    fn handle(self) -> TcHandle {
        TcHandle::new(0x7064, self as u16 + 1)
    }

    /// All hooks.
    pub const ALL: [Hook; 4] =
        [Hook::PodIngress, Hook::PodEgress, Hook::LinkIngress, Hook::LinkEgress];
}

/// What follows connections, and what ends the requests of sockets that close.
const SOCK_OPS: [&str; 2] = ["pd_sock_ops", "pd_sock_close"];
const SOCK_STATE: &str = "pd_sock_state";
const CGROUP_SKB: [(&str, CgroupSkbAttachType); 2] = [
    ("pd_cgroup_ingress", CgroupSkbAttachType::Ingress),
    ("pd_cgroup_egress", CgroupSkbAttachType::Egress),
];
const XDP: &str = "pd_xdp";

/// The object that the build embedded.
#[cfg(feature = "embed-ebpf")]
pub const EMBEDDED: &[u8] = aya::include_bytes_aligned!(env!("PD_ROUTER_EMBEDDED_EBPF"));

/// The outcome of attaching a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachOutcome {
    New,
    /// A pinned link kept counting, and now runs this agent's program.
    TakenOver,
    /// The earlier program was detached first, so packets were missed for a moment.
    Replaced,
}

/// The loaded object, and the directory of its pinned links.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
    links: PathBuf,
    tc: TcMode,
}

impl Programs {
    /// Loads the object with the maps that are pinned under `pins`, or with new ones that it pins there.
    /// Also returns the programs that the kernel refused, and why.
    ///
    /// # Errors
    /// The kernel refuses a map, or `pins` is not on a bpf file system.
    pub fn load(object: &[u8], pins: &Path, tc: TcMode) -> Result<(Programs, Vec<String>)> {
        let links = pins.join("links");
        std::fs::create_dir_all(&links).with_context(|| format!("creating {}", links.display()))?;
        let mut loader = EbpfLoader::new();
        for name in PINNED {
            loader.map_pin_path(name, pins.join(name));
        }
        let mut ebpf = loader.load(object).context("creating the maps")?;
        let mut refused = Vec::new();
        for (name, program) in ebpf.programs_mut() {
            let loaded = match program {
                Program::SchedClassifier(program) => program.load(),
                Program::CgroupSkb(program) => program.load(),
                Program::SockOps(program) => program.load(),
                Program::TracePoint(program) => program.load(),
                Program::Xdp(program) => program.load(),
                _ => continue,
            };
            if let Err(error) = loaded {
                refused.push(format!("the kernel refused program {name}: {error}"));
            }
        }
        Ok((Programs { ebpf, links, tc }, refused))
    }

    /// Returns a function that forwards what the programs logged since its last call to this process's
    /// log.
    ///
    /// # Errors
    /// The object has no log, or this was called before.
    pub fn log(&mut self) -> Result<impl FnMut() + use<>> {
        let mut logger = EbpfLogger::init(&mut self.ebpf).context("opening the log map")?;
        Ok(move || logger.flush())
    }

    /// The ring of segments with control messages.
    ///
    /// # Errors
    /// The object has no such map, or this was called before.
    pub fn control_ring(&mut self) -> Result<RingTable<ControlSegment>> {
        let map = self.ebpf.take_map("CONTROL").context("no map CONTROL")?;
        RingTable::new(map).context("opening the map CONTROL")
    }

    /// The file descriptor of the program `name`.
    ///
    /// # Errors
    /// The object has no such program.
    pub fn fd(&self, name: &str) -> Result<OwnedFd> {
        let program = self.ebpf.program(name).with_context(|| format!("no program {name}"))?;
        Ok(program.fd()?.as_fd().try_clone_to_owned()?)
    }

    /// Runs a program on `packet` `repeat` times; returns its verdict and the mean time of a run.
    ///
    /// # Errors
    /// The object has no such program, the kernel cannot test programs of its type, or the packet is
    /// shorter than an Ethernet header.
    pub fn test_run(&self, name: &str, packet: &[u8], repeat: u32) -> io::Result<(i32, Duration)> {
        let options = TestRunOptions { data_in: Some(packet), repeat, ..TestRunOptions::default() };
        let run = match self.ebpf.program(name) {
            Some(Program::SchedClassifier(program)) => program.test_run(options),
            Some(Program::Xdp(program)) => program.test_run(options),
            _ => return Err(io::Error::other(format!("no program {name} that takes packets"))),
        };
        match run {
            Ok(run) => Ok((run.return_value.cast_signed(), run.duration)),
            Err(ProgramError::SyscallError(error)) => Err(error.io_error),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// The number of instructions that the verifier processed for each program. Empty before Linux 5.16,
    /// which does not report it.
    ///
    /// # Errors
    /// A program is not loaded.
    pub fn verified(&self) -> Result<Vec<(String, u32)>> {
        let mut verified = Vec::new();
        for (name, program) in self.ebpf.programs() {
            let count = program.info()?.verified_instruction_count();
            verified.extend(count.map(|count| (name.to_owned(), count)));
        }
        Ok(verified)
    }

    /// Attaches sock_ops to a cgroup2 directory. It sees the sockets below it, in any network namespace.
    ///
    /// # Errors
    /// The directory cannot be opened, or the kernel refuses. One of the programs may be attached:
    /// [`Programs::detach_sock_ops`] detaches it.
    pub fn attach_sock_ops(&mut self, cgroup: &Path) -> Result<AttachOutcome> {
        let [follow, close] = SOCK_OPS.map(|name| self.attach_one_sock_ops(cgroup, name));
        close.and(follow)
    }

    fn attach_one_sock_ops(&mut self, cgroup: &Path, name: &str) -> Result<AttachOutcome> {
        let (directory, pin) = self.cgroup_pin(name, cgroup)?;
        if self.take_over(name, &pin)? {
            return Ok(AttachOutcome::TakenOver);
        }
        let program: &mut SockOps = self.program(name)?;
        // Links always allow several programs; the kernel refuses the flag for that.
        let id = program.attach(directory, CgroupAttachMode::Single)?;
        let link: FdLink = program.take_link(id)?.try_into()?;
        link.pin(&pin)?;
        Ok(AttachOutcome::New)
    }

    /// Attaches the programs that count at sockets to a cgroup2 directory. They see the sockets below it, in
    /// any network namespace.
    ///
    /// # Errors
    /// The directory cannot be opened, or the kernel refuses. One of the programs may be attached:
    /// [`Programs::detach_cgroup_skb`] detaches it.
    pub fn attach_cgroup_skb(&mut self, cgroup: &Path) -> Result<AttachOutcome> {
        let [received, sent] =
            CGROUP_SKB.map(|(name, kind)| self.attach_one_cgroup_skb(cgroup, name, kind));
        received.and(sent)
    }

    fn attach_one_cgroup_skb(
        &mut self,
        cgroup: &Path,
        name: &str,
        kind: CgroupSkbAttachType,
    ) -> Result<AttachOutcome> {
        let (directory, pin) = self.cgroup_pin(name, cgroup)?;
        if self.take_over(name, &pin)? {
            return Ok(AttachOutcome::TakenOver);
        }
        let program: &mut CgroupSkb = self.program(name)?;
        let id = program.attach(directory, kind, CgroupAttachMode::Single)?;
        let link: FdLink = program.take_link(id)?.try_into()?;
        link.pin(&pin)?;
        Ok(AttachOutcome::New)
    }

    /// Detaches sock_ops, that of an earlier agent too.
    pub fn detach_sock_ops(&self) {
        SOCK_OPS.iter().for_each(|name| self.detach_from_cgroups(name, None));
    }

    /// Detaches the programs that count at sockets, those of an earlier agent too.
    pub fn detach_cgroup_skb(&self) {
        CGROUP_SKB.iter().for_each(|(name, _)| self.detach_from_cgroups(name, None));
    }

    /// Detaches a program from every cgroup but the one that `kept` is the pin of.
    fn detach_from_cgroups(&self, program: &str, kept: Option<&Path>) {
        for entry in std::fs::read_dir(&self.links).into_iter().flatten().flatten() {
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy();
            let cgroup = name.strip_prefix(program).and_then(|rest| rest.strip_prefix('_'));
            if cgroup.is_some() && Some(&*path) != kept {
                _ = std::fs::remove_file(path);
            }
        }
    }

    /// A cgroup2 directory, and where the link of a program there is pinned. An earlier agent's link to
    /// another directory is removed: both would count the sockets below both.
    fn cgroup_pin(&self, program: &str, cgroup: &Path) -> Result<(File, PathBuf)> {
        use std::os::unix::fs::MetadataExt;
        let directory =
            File::open(cgroup).with_context(|| format!("opening {}", cgroup.display()))?;
        let pin = self.links.join(format!("{program}_{}", directory.metadata()?.ino()));
        self.detach_from_cgroups(program, Some(&pin));
        Ok((directory, pin))
    }

    /// Attaches to the tracepoint sock:inet_sock_set_state. The earlier program stays until the new one
    /// runs; while both run, each connection is still counted once.
    ///
    /// # Errors
    /// tracefs is not mounted, or the kernel refuses.
    pub fn attach_sock_state(&mut self) -> Result<AttachOutcome> {
        let pin = self.links.join(SOCK_STATE);
        let next = self.links.join(format!("{SOCK_STATE}_next"));
        let program: &mut TracePoint = self.program(SOCK_STATE)?;
        let id = program.attach("sock", "inet_sock_set_state")?;
        let Ok(link) = FdLink::try_from(program.take_link(id)?) else {
            // Before Linux 5.15 there is no link to pin: it is attached while this process lives.
            program.attach("sock", "inet_sock_set_state")?;
            return Ok(AttachOutcome::Replaced);
        };
        _ = std::fs::remove_file(&next);
        link.pin(&next)?;
        let existed = pin.exists();
        std::fs::rename(&next, &pin)?;
        Ok(if existed { AttachOutcome::TakenOver } else { AttachOutcome::New })
    }

    /// Attaches a tc program, by tcx if the kernel has it.
    ///
    /// # Errors
    /// The interface is gone, or the kernel refuses.
    pub fn attach_tc(&mut self, name: &str, index: u32, hook: Hook) -> Result<AttachOutcome> {
        let pin = self.tc_pin(index, hook);
        if self.take_over(hook.program(), &pin)? {
            return Ok(AttachOutcome::TakenOver);
        }
        let (mode, kind) = (self.tc, hook.attach_type());
        let program: &mut SchedClassifier = self.program(hook.program())?;
        if mode != TcMode::Clsact {
            let order = TcAttachOptions::TcxOrder(LinkOrder::first());
            match program.attach_with_options(name, kind, order) {
                Ok(id) => {
                    let link: FdLink = program.take_link(id)?.try_into()?;
                    link.pin(&pin)?;
                    // An agent with `--tc clsact` left its filter.
                    let existed = tc::qdisc_detach_program(name, kind, hook.program()).is_ok();
                    return Ok(if existed { AttachOutcome::TakenOver } else { AttachOutcome::New });
                }
                Err(error) if mode == TcMode::Tcx => return Err(error.into()),
                Err(_) => {}
            }
        }
        // A clsact filter outlives its process. By its handle the next agent replaces the program
        // without missing a packet.
        let (priority, handle) = (1, hook.handle());
        let existing = SchedClassifierLink::attached(name, kind, priority, handle, None)?;
        if let Ok(id) = program.attach_to_link(existing) {
            std::mem::forget(program.take_link(id)?);
            return Ok(AttachOutcome::TakenOver);
        }
        // A filter with another handle cannot be replaced in place.
        let existed = tc::qdisc_detach_program(name, kind, hook.program()).is_ok();
        _ = tc::qdisc_add_clsact(name);
        let options = NlOptions { priority, handle, classid: None };
        let id = program.attach_with_options(name, kind, TcAttachOptions::Netlink(options))?;
        // Dropping the link would detach it.
        std::mem::forget(program.take_link(id)?);
        Ok(if existed { AttachOutcome::Replaced } else { AttachOutcome::New })
    }

    /// Detaches a tc program, if there is one.
    pub fn detach_tc(&mut self, name: Option<&str>, index: u32, hook: Hook) {
        _ = std::fs::remove_file(self.tc_pin(index, hook));
        if let Some(name) = name {
            _ = tc::qdisc_detach_program(name, hook.attach_type(), hook.program());
        }
    }

    /// The interfaces and hooks of the pinned tc links.
    pub fn tc_pins(&self) -> Vec<(u32, Hook)> {
        let names = std::fs::read_dir(&self.links).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter_map(|name| {
                let hook = Hook::ALL.into_iter().find(|hook| name.starts_with(hook.program()))?;
                let index = name.strip_prefix(hook.program())?.strip_prefix('_')?;
                Some((index.parse().ok()?, hook))
            })
            .collect()
    }

    /// Attaches XDP to an uplink.
    ///
    /// # Errors
    /// The driver has no XDP, or refuses it for its MTU or features.
    pub fn attach_xdp(&mut self, index: u32, policy: XdpPolicy) -> Result<AttachOutcome> {
        let pin = self.links.join(format!("{XDP}_{index}"));
        if self.take_over(XDP, &pin)? {
            return Ok(AttachOutcome::TakenOver);
        }
        let mode = if policy == XdpPolicy::Generic { XdpMode::Skb } else { XdpMode::Driver };
        let program: &mut Xdp = self.program(XDP)?;
        let id = program.attach_to_if_index(index, mode)?;
        let link: FdLink = program.take_link(id)?.try_into()?;
        link.pin(&pin)?;
        Ok(AttachOutcome::New)
    }

    /// Detaches XDP; returns whether it was attached.
    pub fn detach_xdp(&mut self, index: u32) -> bool {
        std::fs::remove_file(self.links.join(format!("{XDP}_{index}"))).is_ok()
    }

    fn tc_pin(&self, index: u32, hook: Hook) -> PathBuf {
        self.links.join(format!("{}_{index}", hook.program()))
    }

    fn program<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }

    /// Replaces the program of a link that an earlier agent pinned. Returns false if there is no such
    /// link, or if what it was attached to is gone.
    fn take_over(&self, program: &str, pin: &Path) -> Result<bool> {
        let link = match PinnedLink::open(pin) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).context(format!("opening {}", pin.display())),
        };
        if link.update(self.fd(program)?.as_fd()).is_ok() {
            return Ok(true);
        }
        // What the link was attached to is gone.
        std::fs::remove_file(pin).with_context(|| format!("removing {}", pin.display()))?;
        Ok(false)
    }
}

/// Detaches and removes everything that is pinned under `pins`, and the clsact filters on `interfaces`.
///
/// # Errors
/// A pin cannot be removed.
pub fn cleanup(pins: &Path, interfaces: impl Iterator<Item = String>) -> io::Result<()> {
    for name in interfaces {
        for hook in Hook::ALL {
            _ = tc::qdisc_detach_program(&name, hook.attach_type(), hook.program());
        }
    }
    for folder in [pins.join("links"), pins.to_owned()] {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !entry.path().is_dir() {
                std::fs::remove_file(entry.path())?;
            }
        }
        match std::fs::remove_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
