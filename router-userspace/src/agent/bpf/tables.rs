//! Pinned maps whose keys and values have the types that the programs use.
//!
//! aya writes through `&mut`, though the kernel orders the writes: each map is in a [`RefCell`], which
//! no call keeps borrowed. `get` makes one system call; `all` makes one for each batch, where aya makes
//! two for each entry.

use std::cell::RefCell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::{
    Array, HashMap, IterableMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf,
};
use bytemuck::Pod;

use super::syscall::{self, Plain};

/// Opens a pinned map as one of aya's types, which check the sizes of keys and values.
fn open<M: TryFrom<Map, Error = MapError>>(path: &Path) -> io::Result<RefCell<M>> {
    let with_path =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let data = MapData::from_pin(path).map_err(io_error).map_err(with_path)?;
    let map = Map::from_map_data(data).and_then(M::try_from);
    map.map(RefCell::new).map_err(|error| {
        let path = path.display();
        io::Error::other(format!("{path}: the map has another layout: {error}"))
    })
}

/// The kernel's error, where it is one.
fn io_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        error => io::Error::other(error),
    }
}

fn found<V>(result: Result<V, MapError>) -> io::Result<Option<V>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::OutOfBounds { .. }) => Ok(None),
        Err(error) => Err(io_error(error)),
    }
}

/// Whether a write happened, where an error of `kind` means that it was not needed.
fn unless(kind: io::ErrorKind, result: Result<(), MapError>) -> io::Result<bool> {
    match result.map_err(io_error) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == kind => Ok(false),
        Err(error) => Err(error),
    }
}

/// A hash map.
pub struct HashTable<K: Pod, V: Pod>(RefCell<HashMap<MapData, Plain<K>, Plain<V>>>);

impl<K: Pod, V: Pod> HashTable<K, V> {
    /// Opens a pinned map and checks its type and the sizes of its keys and values.
    ///
    /// # Errors
    /// The map is missing, or has another layout.
    pub fn open(path: &Path) -> io::Result<HashTable<K, V>> {
        open(path).map(HashTable)
    }

    /// The value under `key`.
    ///
    /// # Errors
    /// The kernel's, but for a missing key, which is `None`.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let value = found(self.0.borrow().get(&Plain(*key), 0))?;
        Ok(value.map(|Plain(value)| value))
    }

    /// Writes `value` under `key`.
    ///
    /// # Errors
    /// The kernel's; `E2BIG` if the map is full.
    pub fn set(&self, key: &K, value: &V) -> io::Result<()> {
        self.0.borrow_mut().insert(Plain(*key), Plain(*value), 0).map_err(io_error)
    }

    /// Writes `value` unless `key` exists; returns whether it was written.
    ///
    /// # Errors
    /// As [`HashTable::set`].
    pub fn add(&self, key: &K, value: &V) -> io::Result<bool> {
        const NOEXIST: u64 = 1;
        let written = self.0.borrow_mut().insert(Plain(*key), Plain(*value), NOEXIST);
        unless(io::ErrorKind::AlreadyExists, written)
    }

    /// Removes `key`; returns whether it existed.
    ///
    /// # Errors
    /// The kernel's, but for a missing key.
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        let removed = self.0.borrow_mut().remove(&Plain(*key));
        unless(io::ErrorKind::NotFound, removed)
    }

    /// Reads up to `limit` entries. Needs Linux 5.6.
    ///
    /// # Errors
    /// The kernel's.
    pub fn all(&self, limit: usize) -> io::Result<Vec<(K, V)>> {
        let map = self.0.borrow();
        syscall::read_all(map.map().fd().as_fd(), limit)
    }
}

/// An array.
pub struct ArrayTable<V: Pod>(RefCell<Array<MapData, Plain<V>>>);

impl<V: Pod> ArrayTable<V> {
    /// As [`HashTable::open`].
    ///
    /// # Errors
    /// The map is missing, or has another layout.
    pub fn open(path: &Path) -> io::Result<ArrayTable<V>> {
        open(path).map(ArrayTable)
    }

    /// The value at `index`, or `None` beyond the end.
    ///
    /// # Errors
    /// The kernel's.
    pub fn get(&self, index: &u32) -> io::Result<Option<V>> {
        let value = found(self.0.borrow().get(index, 0))?;
        Ok(value.map(|Plain(value)| value))
    }

    /// Writes `value` at `index`.
    ///
    /// # Errors
    /// The kernel's, or `index` is beyond the end.
    pub fn set(&self, index: &u32, value: &V) -> io::Result<()> {
        self.0.borrow_mut().set(*index, Plain(*value), 0).map_err(io_error)
    }
}

/// An array with a value for each CPU.
pub struct PerCpuTable<V: Pod>(RefCell<PerCpuArray<MapData, Plain<V>>>);

impl<V: Pod> PerCpuTable<V> {
    /// As [`HashTable::open`].
    ///
    /// # Errors
    /// The map is missing, or has another layout.
    pub fn open(path: &Path) -> io::Result<PerCpuTable<V>> {
        open(path).map(PerCpuTable)
    }

    /// The values at `index`, one for each CPU.
    ///
    /// # Errors
    /// The kernel's.
    pub fn get(&self, index: &u32) -> io::Result<Option<Vec<V>>> {
        let values = found(self.0.borrow().get(index, 0))?;
        Ok(values.map(|values| values.iter().map(|Plain(value)| *value).collect()))
    }

    /// Zeroes every CPU's value at `index`.
    ///
    /// # Errors
    /// The kernel's, or `index` is beyond the end.
    pub fn clear(&self, index: &u32) -> io::Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let zeros = PerCpuValues::try_from(vec![Plain(V::zeroed()); cpus])?;
        self.0.borrow_mut().set(*index, zeros, 0).map_err(io_error)
    }
}

/// The reading end of a ring in which programs hand up values. It is not pinned: it belongs to the programs of
/// one object.
pub struct RingTable<V> {
    ring: RingBuf<MapData>,
    value: PhantomData<V>,
}

impl<V: Pod> RingTable<V> {
    /// The ring of a map that was taken from a loaded object.
    ///
    /// # Errors
    /// The map is none, or cannot be mapped into memory.
    pub(super) fn new(map: Map) -> io::Result<RingTable<V>> {
        let ring = RingBuf::try_from(map).map_err(io_error)?;
        Ok(RingTable { ring, value: PhantomData })
    }

    /// Takes the next value, if there is one.
    pub fn pop(&mut self) -> Option<V> {
        let item = self.ring.next()?;
        bytemuck::try_pod_read_unaligned(&item).ok()
    }
}
