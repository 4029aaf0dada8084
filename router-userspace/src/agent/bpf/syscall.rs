//! The bpf system call, for what aya does not cover: reading a map in batches, and replacing the
//! program of a pinned link.
#![expect(unsafe_code, reason = "the only module that may use the bpf system call")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytemuck::Pod;

const OBJ_GET: libc::c_long = 7;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const LINK_UPDATE: libc::c_long = 29;

/// Entries that one batch requests.
const BATCH: usize = 4_096;

/// A key or value of a map, as aya requires it: aya has a trait of its own for plain data.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Plain<T>(pub(super) T);

// SAFETY: every bit pattern is a `T`, which has no padding.
unsafe impl<T: Pod> aya::Pod for Plain<T> {}

fn bpf<A>(command: libc::c_long, attributes: &mut A) -> io::Result<i32> {
    // SAFETY: every attribute struct below has the layout of the kernel's `union bpf_attr` for
    // its command, and its pointers are to buffers of the sizes that the command needs.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<A>()) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

fn address<T>(pointer: *const T) -> u64 {
    pointer as u64
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

#[repr(C)]
#[derive(Default)]
struct ObjectAttributes {
    path: u64,
    fd: u32,
    flags: u32,
}

/// A link that is pinned: aya can open one, but gives out neither its descriptor nor, for sock_ops,
/// a way to replace its program.
#[derive(Debug)]
pub(super) struct PinnedLink(OwnedFd);

#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old: u32,
}

impl PinnedLink {
    /// Opens the link that is pinned at `path`.
    ///
    /// # Errors
    /// Nothing is pinned there, or the process lacks the privilege to open it.
    pub(super) fn open(path: &Path) -> io::Result<PinnedLink> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
        let mut attributes =
            ObjectAttributes { path: address(path.as_ptr()), ..ObjectAttributes::default() };
        let fd = bpf(OBJ_GET, &mut attributes)?;
        // SAFETY: a descriptor that the kernel just made for this process.
        Ok(PinnedLink(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Replaces the program that the link runs, without missing a packet.
    ///
    /// # Errors
    /// The type of link cannot be updated, or what it was attached to is gone.
    pub(super) fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let (link, program) = (raw(self.0.as_fd()), raw(program));
        bpf(LINK_UPDATE, &mut LinkUpdate { link, program, flags: 0, old: 0 }).map(drop)
    }
}

#[repr(C)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Reads up to `limit` entries of a hash map with keys `K` and values `V`, [`BATCH`] per system
/// call. aya's iterator makes two system calls for each entry. Needs Linux 5.6.
///
/// # Errors
/// The kernel's.
pub(super) fn read_all<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    limit: usize,
) -> io::Result<Vec<(K, V)>> {
    let mut found = Vec::new();
    // The number of a bucket.
    let mut cursor = [0u8; 64];
    let at = address(cursor.as_mut_ptr());
    let mut from = 0;
    let batch = BATCH.min(limit.max(1));
    // Uninitialised: most maps fill only the beginning.
    let mut keys = Vec::<K>::with_capacity(batch);
    let mut values = Vec::<V>::with_capacity(batch);
    while found.len() < limit {
        let mut attributes = Batch {
            from,
            to: at,
            keys: address(keys.as_mut_ptr()),
            values: address(values.as_mut_ptr()),
            count: batch as u32,
            map: raw(map),
            element_flags: 0,
            flags: 0,
        };
        let ended = match bpf(MAP_LOOKUP_BATCH, &mut attributes) {
            Ok(_) => false,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(error),
        };
        let count = batch.min(attributes.count as usize);
        // SAFETY: the kernel filled `count` of both, which is within their capacity.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        found.extend(keys.drain(..).zip(values.drain(..)));
        if ended || count == 0 {
            break;
        }
        from = at;
    }
    Ok(found)
}
