//! Programs of others, assembled by hand: what a network plugin does beside the agent.
#![expect(unsafe_code, reason = "the bpf system call")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use netns::Namespace;
use nix::libc;

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const LINK_CREATE: libc::c_long = 28;
const SCHED_CLS: u32 = 3;
const SOCK_OPS: u32 = 13;
const ARRAY: u32 = 2;
/// Attach type of sock_ops programs.
const CGROUP_SOCK_OPS: u32 = 3;
const LOOKUP: i32 = 1;
const SET_CB_FLAGS: i32 = 59;
const REDIRECT_PEER: i32 = 155;

/// One instruction: operation, registers (source in the upper half), offset, number.
#[derive(Clone, Copy)]
#[repr(C)]
struct Instruction(u8, u8, i16, i32);

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    version: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Pin {
    path: u64,
    program: u32,
    flags: u32,
}

fn bpf<A>(command: libc::c_long, attributes: &mut A) -> io::Result<u32> {
    // SAFETY: both structs have the layout of the kernel's for their command, and live pointers.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<A>()) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn descriptor<A>(command: libc::c_long, attributes: &mut A) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: a descriptor that the kernel just made for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd.cast_signed()) })
}

fn raw(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn load(kind: u32, program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut load = Load {
        kind,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..Load::default()
    };
    descriptor(PROG_LOAD, &mut load)
}

fn pin(program: &[Instruction], path: &str) -> io::Result<()> {
    let program = load(SCHED_CLS, program)?;
    let path = CString::new(path).map_err(io::Error::other)?;
    bpf(OBJ_PIN, &mut Pin { path: path.as_ptr() as u64, program: raw(&program), flags: 0 })
        .map(drop)
}

#[repr(C)]
struct MapShape {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
}

#[repr(C)]
struct LinkTo {
    program: u32,
    target: u32,
    kind: u32,
    flags: u32,
}

#[repr(C)]
struct Entry {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A sock_ops program that asks for the options of every packet that sockets at an address receive, as
/// those that write TCP options do, and counts the calls. It is detached when this value is dropped.
pub(crate) struct OptionReader {
    calls: OwnedFd,
    _link: OwnedFd,
}

impl OptionReader {
    pub(crate) fn attach(cgroup: &Path, address: IpAddr) -> OptionReader {
        let IpAddr::V4(address) = address else { panic!("an IPv4 address") };
        let wanted = i32::from_ne_bytes(address.octets());
        let calls = MapShape { kind: ARRAY, key: 4, value: 8, entries: 1 };
        let calls = descriptor(MAP_CREATE, &mut { calls }).expect("a map");
        let program = [
            // r6 = context; w2 = op; w3 = the local IPv4 address
            Instruction(0xbf, 0x16, 0, 0),
            Instruction(0x61, 0x62, 0, 0),
            Instruction(0x61, 0x63, 28, 0),
            // another address: to the end
            Instruction(0x56, 3, 18, wanted),
            // ACTIVE_ESTABLISHED or PASSIVE_ESTABLISHED: set the flags
            Instruction(0x15, 2, 12, 4),
            Instruction(0x15, 2, 11, 5),
            // no PARSE_HDR_OPT: to the end
            Instruction(0x55, 2, 15, 13),
            // ++calls[0]
            Instruction(0x62, 10, -4, 0),
            Instruction(0xbf, 0xa2, 0, 0),
            Instruction(0x07, 2, 0, -4),
            Instruction(0x18, 0x11, 0, calls.as_raw_fd()),
            Instruction(0, 0, 0, 0),
            Instruction(0x85, 0, 0, LOOKUP),
            Instruction(0x15, 0, 8, 0),
            Instruction(0xb7, 1, 0, 1),
            Instruction(0xdb, 0x10, 0, 0),
            Instruction(0x05, 0, 5, 0),
            // the present flags, and PARSE_ALL_HDR_OPT
            Instruction(0x61, 0x62, 84, 0),
            Instruction(0x47, 2, 0, 1 << 4),
            Instruction(0xbf, 0x61, 0, 0),
            Instruction(0x85, 0, 0, SET_CB_FLAGS),
            Instruction(0x05, 0, 0, 0),
            Instruction(0xb7, 0, 0, 1),
            Instruction(0x95, 0, 0, 0),
        ];
        let program = load(SOCK_OPS, &program).expect("a sock_ops program");
        let cgroup = File::open(cgroup).expect("the cgroup");
        let (program, target) = (raw(&program), raw(&cgroup));
        let link = LinkTo { program, target, kind: CGROUP_SOCK_OPS, flags: 0 };
        let link = descriptor(LINK_CREATE, &mut { link }).expect("a link");
        OptionReader { calls, _link: link }
    }

    pub(crate) fn calls(&self) -> u64 {
        let (key, value) = (0u32, 0u64);
        let mut entry = Entry {
            map: raw(&self.calls),
            reserved: 0,
            key: &raw const key as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        bpf(MAP_LOOKUP, &mut entry).expect("the count");
        // SAFETY: the kernel wrote to it.
        unsafe { (&raw const value).read_volatile() }
    }
}

/// Pins a tc program that hands IPv4 packets to `address` to the pod behind the host's end `index` of its
/// veth, past that end: bpf_redirect_peer, as Cilium's host routing and Terway's DataPathV2 do.
pub(crate) fn pin_redirect_peer(node: &Namespace, address: IpAddr, index: u32, path: &str) {
    let IpAddr::V4(address) = address else { panic!("an IPv4 address") };
    let wanted = i32::from_be_bytes(address.octets());
    let program = [
        // r6 = context
        Instruction(0xbf, 0x16, 0, 0),
        // r0 = the destination of an IPv4 packet behind Ethernet, in host order
        Instruction(0x20, 0, 0, 30),
        // w0 != wanted: on to the last two
        Instruction(0x56, 0, 4, wanted),
        Instruction(0xb7, 1, 0, index.cast_signed()),
        Instruction(0xb7, 2, 0, 0),
        Instruction(0x85, 0, 0, REDIRECT_PEER),
        Instruction(0x95, 0, 0, 0),
        // TC_ACT_UNSPEC: the next filter
        Instruction(0xb7, 0, 0, -1),
        Instruction(0x95, 0, 0, 0),
    ];
    let path = path.to_owned();
    node.run(move || pin(&program, &path)).expect("a program that redirects");
}
