//! The bpf system call where no library covers it: maps read in batches, links replaced in place,
//! programs run on a packet.
#![expect(unsafe_code, reason = "the one door to the bpf system call")]

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use router_common::plain::Plain;

const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const MAP_DELETE: libc::c_long = 3;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const PROG_TEST_RUN: libc::c_long = 10;
const INFO_BY_FD: libc::c_long = 15;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const LINK_UPDATE: libc::c_long = 29;

/// Entries that one batch asks for.
const BATCH: usize = 4_096;

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

#[repr(C)]
#[derive(Default)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

fn path_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens what is pinned at `path`.
///
/// # Errors
/// Nothing is pinned there, or the process may not open it.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = path_of(path)?;
    let fd = bpf(OBJ_GET, &mut Object { path: address(path.as_ptr()), ..Object::default() })?;
    // SAFETY: a descriptor that the kernel just made for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a map, program or link at `path`.
///
/// # Errors
/// Something is there already, or it is not on a bpf file system.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_of(path)?;
    let fd = raw(fd);
    bpf(OBJ_PIN, &mut Object { path: address(path.as_ptr()), fd, flags: 0 }).map(drop)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old: u32,
}

/// Puts `program` in the place of the one that `link` runs, without a packet between them.
///
/// # Errors
/// The link's kind cannot be updated, or what it was attached to is gone.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (link, program) = (raw(link), raw(program));
    bpf(LINK_UPDATE, &mut LinkUpdate { link, program, flags: 0, old: 0 }).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct Info {
    fd: u32,
    length: u32,
    info: u64,
}

/// Sizes of a map: its key, its value, how many entries fit.
///
/// # Errors
/// The descriptor is no map's.
pub fn map_sizes(map: BorrowedFd<'_>) -> io::Result<(u32, u32, u32)> {
    // struct bpf_map_info: type, id, key_size, value_size, max_entries, ...
    let mut info = [0u32; 22];
    let mut attributes =
        Info { fd: raw(map), length: size_of_val(&info) as u32, info: address(info.as_mut_ptr()) };
    bpf(INFO_BY_FD, &mut attributes)?;
    Ok((info[2], info[3], info[4]))
}

#[repr(C)]
struct Element {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
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

/// A map of keys and values that are the same on both sides.
#[derive(Debug)]
pub struct Table<K, V> {
    map: OwnedFd,
    per_cpu: usize,
    entries: PhantomData<(K, V)>,
}

/// Bytes that a per-CPU value takes in the system call.
fn rounded(size: usize) -> usize {
    size.next_multiple_of(8)
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// Opens a pinned map and checks that its sizes are those of the types.
    ///
    /// # Errors
    /// It is not there, or of another layout.
    pub fn open(path: &Path) -> io::Result<Table<K, V>> {
        let map = open(path)?;
        let (key, value, _) = map_sizes(map.as_fd())?;
        if key as usize != size_of::<K>() || value as usize != size_of::<V>() {
            return Err(io::Error::other(format!("{} has another layout", path.display())));
        }
        Ok(Table { map, per_cpu: 1, entries: PhantomData })
    }

    /// The same of a map that has a value for each CPU.
    ///
    /// # Errors
    /// As [`Table::open`].
    pub fn open_per_cpu(path: &Path, cpus: usize) -> io::Result<Table<K, V>> {
        Ok(Table { per_cpu: cpus, ..Table::open(path)? })
    }

    fn value_bytes(&self) -> usize {
        if self.per_cpu == 1 { size_of::<V>() } else { rounded(size_of::<V>()) * self.per_cpu }
    }

    fn values(&self, bytes: &[u8]) -> Vec<V> {
        let size = self.value_bytes() / self.per_cpu;
        bytes.chunks_exact(size).filter_map(V::of).collect()
    }

    fn element(&self, key: &K, value: u64, flags: u64) -> Element {
        let map = raw(self.map.as_fd());
        Element { map, reserved: 0, key: address(&raw const *key), value, flags }
    }

    /// The value under `key`: one, or one for each CPU.
    ///
    /// # Errors
    /// The kernel's, but for "not there", which is `None`.
    pub fn get(&self, key: &K) -> io::Result<Option<Vec<V>>> {
        let mut bytes = vec![0; self.value_bytes()];
        match bpf(MAP_LOOKUP, &mut self.element(key, address(bytes.as_mut_ptr()), 0)) {
            Ok(_) => Ok(Some(self.values(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes `value` under `key`.
    ///
    /// # Errors
    /// The kernel's; a full map is `E2BIG`.
    pub fn set(&self, key: &K, value: &V) -> io::Result<()> {
        bpf(MAP_UPDATE, &mut self.element(key, address(&raw const *value), 0)).map(drop)
    }

    /// Writes `value` unless the kernel was faster; whether it did.
    ///
    /// # Errors
    /// As [`Table::set`].
    pub fn add(&self, key: &K, value: &V) -> io::Result<bool> {
        const NOEXIST: u64 = 1;
        match bpf(MAP_UPDATE, &mut self.element(key, address(&raw const *value), NOEXIST)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Zeroes every CPU's value under `key`.
    ///
    /// # Errors
    /// As [`Table::set`].
    pub fn clear(&self, key: &K) -> io::Result<()> {
        let zeros = vec![0u8; self.value_bytes()];
        bpf(MAP_UPDATE, &mut self.element(key, address(zeros.as_ptr()), 0)).map(drop)
    }

    /// Removes what is under `key`; whether there was anything.
    ///
    /// # Errors
    /// The kernel's, but for "not there".
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        match bpf(MAP_DELETE, &mut self.element(key, 0, 0)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Up to `limit` entries, a few thousand to a system call (5.6 and later).
    ///
    /// # Errors
    /// The kernel's.
    pub fn all(&self, limit: usize) -> io::Result<Vec<(K, Vec<V>)>> {
        let mut found = Vec::new();
        // A hash map's cursor is a bucket's number, an array's the key.
        let mut cursor = [0u8; 64];
        let mut first = true;
        let batch = BATCH.min(limit.max(1));
        let mut keys = vec![0u8; size_of::<K>() * batch];
        let mut values = vec![0u8; self.value_bytes() * batch];
        while found.len() < limit {
            let at = address(cursor.as_mut_ptr());
            let mut attributes = Batch {
                from: if first { 0 } else { at },
                to: at,
                keys: address(keys.as_mut_ptr()),
                values: address(values.as_mut_ptr()),
                count: batch as u32,
                map: raw(self.map.as_fd()),
                element_flags: 0,
                flags: 0,
            };
            let result = bpf(MAP_LOOKUP_BATCH, &mut attributes);
            let ended = match result {
                Ok(_) => false,
                Err(error) if error.kind() == io::ErrorKind::NotFound => true,
                Err(error) => return Err(error),
            };
            let count = attributes.count as usize;
            let keys = keys.chunks_exact(size_of::<K>()).filter_map(K::of);
            let values = values.chunks_exact(self.value_bytes()).map(|bytes| self.values(bytes));
            found.extend(keys.zip(values).take(count));
            if ended || count == 0 {
                break;
            }
            first = false;
        }
        Ok(found)
    }
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
}

/// Runs a program on `packet` as often as `repeat` says: its verdict, and nanoseconds a run.
///
/// # Errors
/// The kernel cannot run programs of this kind so, or the packet is shorter than Ethernet's header.
pub fn test_run(program: BorrowedFd<'_>, packet: &[u8], repeat: u32) -> io::Result<(i32, u32)> {
    let mut run = TestRun {
        program: raw(program),
        size_in: packet.len() as u32,
        data_in: address(packet.as_ptr()),
        repeat,
        ..TestRun::default()
    };
    bpf(PROG_TEST_RUN, &mut run)?;
    Ok((run.result.cast_signed(), run.duration))
}
