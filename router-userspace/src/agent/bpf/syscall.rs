//! The bpf system call, for what aya does not cover: batched map lookup, replacing the program of a
//! link, and running a program on a packet.
#![expect(unsafe_code, reason = "the only module that may use the bpf system call")]

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytemuck::Pod;

const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const MAP_DELETE: libc::c_long = 3;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const PROG_TEST_RUN: libc::c_long = 10;
const INFO_BY_FD: libc::c_long = 15;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const LINK_UPDATE: libc::c_long = 29;

/// Entries that one batch requests.
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
struct ObjectAttributes {
    path: u64,
    fd: u32,
    flags: u32,
}

fn path_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens the map, program or link that is pinned at `path`.
///
/// # Errors
/// Nothing is pinned there, or the process lacks the privilege to open it.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = path_of(path)?;
    let fd = bpf(
        OBJ_GET,
        &mut ObjectAttributes { path: address(path.as_ptr()), ..ObjectAttributes::default() },
    )?;
    // SAFETY: a descriptor that the kernel just made for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a map, program or link at `path`.
///
/// # Errors
/// The path exists already, or is not on a bpf file system.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_of(path)?;
    let fd = raw(fd);
    bpf(OBJ_PIN, &mut ObjectAttributes { path: address(path.as_ptr()), fd, flags: 0 }).map(drop)
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

/// Replaces the program that `link` runs, without missing a packet.
///
/// # Errors
/// The type of link cannot be updated, or what it was attached to is gone.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (link, program) = (raw(link), raw(program));
    bpf(LINK_UPDATE, &mut LinkUpdate { link, program, flags: 0, old: 0 }).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct InfoAttributes {
    fd: u32,
    length: u32,
    info: u64,
}

/// The type of a map, and the sizes of its keys and values in bytes.
struct MapInfo {
    kind: u32,
    key: u32,
    value: u32,
}

/// Types of maps with a value for each CPU: hash, array and LRU hash (`enum bpf_map_type`).
const PER_CPU: [u32; 3] = [5, 6, 10];

fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    // struct bpf_map_info: type, id, key_size, value_size, max_entries, ...
    let mut info = [0u32; 22];
    let mut attributes = InfoAttributes {
        fd: raw(map),
        length: size_of_val(&info) as u32,
        info: address(info.as_mut_ptr()),
    };
    bpf(INFO_BY_FD, &mut attributes)?;
    Ok(MapInfo { kind: info[0], key: info[2], value: info[3] })
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

/// A map whose keys and values have the types that the programs use.
#[derive(Debug)]
pub struct MapTable<K, V> {
    map: OwnedFd,
    entries: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> MapTable<K, V> {
    /// Opens a pinned map and checks the sizes of its keys and values.
    ///
    /// # Errors
    /// The map is missing, has another layout, or has a value for each CPU.
    pub fn open(path: &Path) -> io::Result<MapTable<K, V>> {
        let (table, is_per_cpu) = MapTable::open_any(path)?;
        if is_per_cpu { Err(other_layout(path)) } else { Ok(table) }
    }

    /// The table, and whether it has a value for each CPU.
    fn open_any(path: &Path) -> io::Result<(MapTable<K, V>, bool)> {
        let map = open(path)?;
        let info = map_info(map.as_fd())?;
        if info.key as usize != size_of::<K>() || info.value as usize != size_of::<V>() {
            return Err(other_layout(path));
        }
        Ok((MapTable { map, entries: PhantomData }, PER_CPU.contains(&info.kind)))
    }

    fn element(&self, key: &K, value: u64, flags: u64) -> Element {
        let map = raw(self.map.as_fd());
        Element { map, reserved: 0, key: address(&raw const *key), value, flags }
    }

    /// Returns whether `key` exists; if so, its value is written to the buffer at `value`.
    fn look_up(&self, key: &K, value: u64) -> io::Result<bool> {
        match bpf(MAP_LOOKUP, &mut self.element(key, value, 0)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The value under `key`.
    ///
    /// # Errors
    /// The kernel's, but for a missing key, which is `None`.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::zeroed();
        let found = self.look_up(key, address(&raw mut value))?;
        Ok(found.then_some(value))
    }

    /// Writes `value` under `key`.
    ///
    /// # Errors
    /// The kernel's; `E2BIG` if the map is full.
    pub fn set(&self, key: &K, value: &V) -> io::Result<()> {
        bpf(MAP_UPDATE, &mut self.element(key, address(&raw const *value), 0)).map(drop)
    }

    /// Writes `value` unless `key` exists; returns whether it was written.
    ///
    /// # Errors
    /// As [`MapTable::set`].
    pub fn add(&self, key: &K, value: &V) -> io::Result<bool> {
        const NOEXIST: u64 = 1;
        match bpf(MAP_UPDATE, &mut self.element(key, address(&raw const *value), NOEXIST)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes `key`; returns whether it existed.
    ///
    /// # Errors
    /// The kernel's, but for a missing key.
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        match bpf(MAP_DELETE, &mut self.element(key, 0, 0)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads up to `limit` entries, [`BATCH`] per system call. Needs Linux 5.6.
    ///
    /// # Errors
    /// The kernel's.
    pub fn all(&self, limit: usize) -> io::Result<Vec<(K, V)>> {
        let mut found = Vec::new();
        // A hash map's cursor is a bucket's number, an array's the key.
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
                map: raw(self.map.as_fd()),
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
}

fn other_layout(path: &Path) -> io::Error {
    io::Error::other(format!("{}: the map has another layout", path.display()))
}

/// A map with a value for each CPU.
#[derive(Debug)]
pub struct PerCpuTable<K, V> {
    table: MapTable<K, V>,
    cpus: usize,
}

impl<K: Pod, V: Pod> PerCpuTable<K, V> {
    /// As [`MapTable::open`]; `cpus` is the number of possible CPUs.
    ///
    /// # Errors
    /// The map is missing, has another layout, or has one value for all CPUs.
    pub fn open(path: &Path, cpus: usize) -> io::Result<PerCpuTable<K, V>> {
        const { assert!(size_of::<V>().is_multiple_of(8), "the kernel would leave gaps") };
        let (table, is_per_cpu) = MapTable::open_any(path)?;
        if is_per_cpu { Ok(PerCpuTable { table, cpus }) } else { Err(other_layout(path)) }
    }

    /// The values under `key`, one for each CPU.
    ///
    /// # Errors
    /// As [`MapTable::get`].
    pub fn get(&self, key: &K) -> io::Result<Option<Vec<V>>> {
        let mut values = vec![V::zeroed(); self.cpus];
        let found = self.table.look_up(key, address(values.as_mut_ptr()))?;
        Ok(found.then_some(values))
    }

    /// Zeroes every CPU's value under `key`.
    ///
    /// # Errors
    /// As [`MapTable::set`].
    pub fn clear(&self, key: &K) -> io::Result<()> {
        let zeros = vec![0u8; size_of::<V>() * self.cpus];
        bpf(MAP_UPDATE, &mut self.table.element(key, address(zeros.as_ptr()), 0)).map(drop)
    }
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttributes {
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

/// Runs a program on `packet` `repeat` times; returns its verdict and the mean nanoseconds of a run.
///
/// # Errors
/// The kernel cannot test programs of this type, or the packet is shorter than an Ethernet header.
pub fn test_run(program: BorrowedFd<'_>, packet: &[u8], repeat: u32) -> io::Result<(i32, u32)> {
    let mut run = TestRunAttributes {
        program: raw(program),
        size_in: packet.len() as u32,
        data_in: address(packet.as_ptr()),
        repeat,
        ..TestRunAttributes::default()
    };
    bpf(PROG_TEST_RUN, &mut run)?;
    Ok((run.result.cast_signed(), run.duration))
}
