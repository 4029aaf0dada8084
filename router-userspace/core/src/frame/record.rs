//! The records of a frame: one pod, one pair of pods, one device. Units are in the names.

use bytes::BytesMut;
use serde::Serialize;

use super::FrameError;
use super::wire::{Bounded, Encode, FrameReader, put_text};
use crate::provenance::{Measured, Provenance};

/// The oldest age that is told: an hour.
pub(super) const MAX_AGE_US: u32 = 3_600_000_000;
const MAX_REQUESTS: u32 = 10_000_000;
const MAX_BYTES: u64 = 1 << 50;
/// Ten terabytes a second.
const MAX_RATE: f32 = 1e13;
const MAX_TIME_US: f32 = 3.6e9;

impl Encode for Measured<f32> {
    fn put(&self, out: &mut BytesMut) {
        (self.provenance as u8).put(out);
        self.value.put(out);
    }

    fn get(from: &mut FrameReader<'_>, field: &'static str) -> Result<Measured<f32>, FrameError> {
        let provenance = match u8::get(from, field)? {
            0 => Provenance::Unknown,
            1 => Provenance::Estimated,
            2 => Provenance::Exact,
            _ => return Err(FrameError::OutOfRange(field)),
        };
        Ok(Measured { value: f32::get(from, field)?, provenance })
    }
}

impl Bounded for Measured<f32> {
    fn is_at_most(self, most: Measured<f32>) -> bool {
        self.value <= most.value
    }

    fn bounded(self, most: Measured<f32>) -> Measured<f32> {
        match self.value.is_finite() {
            true => Measured { value: self.value.bounded(most.value), ..self },
            false => Measured::unknown(),
        }
    }
}

/// Declares a record with its bytes: the fields in their order, each up to its bound.
macro_rules! record {
    (
        $(#[$about:meta])*
        $name:ident { $($(#[$what:meta])* $field:ident: $kind:ty $(= $most:expr)?,)+ }
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize)]
        pub struct $name {
            $($(#[$what])* pub $field: $kind,)+
        }

        impl Encode for $name {
            fn put(&self, out: &mut BytesMut) {
                $(record!(@bound self $field $($most)?).put(out);)+
            }

            fn get(from: &mut FrameReader<'_>, _: &'static str) -> Result<$name, FrameError> {
                Ok($name { $($field: record!(@get from $field $($most)?),)+ })
            }
        }
    };
    (@bound $record:ident $field:ident) => { $record.$field };
    (@bound $record:ident $field:ident $most:expr) => { $record.$field.bounded($most) };
    (@get $from:ident $field:ident) => { Encode::get($from, stringify!($field))? };
    (@get $from:ident $field:ident $most:expr) => {
        $from.at_most(stringify!($field), $most)?
    };
}

record! {
    /// Times of one kind over the last fraction of a second. No samples: the times say nothing.
    LatencyRecord {
        mean_us: f32 = MAX_TIME_US,
        p99_us: f32 = MAX_TIME_US,
        samples: u32 = MAX_REQUESTS,
    }
}

record! {
    /// One pod of the agent's node.
    PodRecord {
        /// See [`pod_id`](super::pod_id).
        pod: u64,
        age_us: u32 = MAX_AGE_US,
        /// Requests whose answer has not ended, whose answer has not begun, and chunked answers
        /// under way.
        in_flight: u32 = MAX_REQUESTS,
        waiting: u32 = MAX_REQUESTS,
        streaming: u32 = MAX_REQUESTS,
        /// Bytes of the requests whose answer has not begun, their heads included.
        waiting_bytes: u64 = MAX_BYTES,
        /// Bytes of all requests, and of the KV cache that this pod sent, since it is known: how
        /// much KV cache a byte of prompt makes.
        asked_bytes: u64,
        kv_tx_bytes: u64,
        /// From a request's first byte to its answer's.
        ttft: LatencyRecord,
        /// Between two segments of a streamed answer; where streams have fallen silent, at least
        /// as long as the silence.
        itl: LatencyRecord,
        /// On the pod's own interface.
        tx_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        rx_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        retransmits_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        /// KV cache out of this pod and into it, over TCP and RDMA.
        kv_tx_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        kv_rx_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        /// What RDMA devices moved for this pod, whatever it was.
        rdma_tx_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        rdma_rx_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        /// The narrowest link between the pod and others, and what everybody uses of it.
        link_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        link_tx_used_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        link_rx_used_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        /// 0 idle to 1 saturated.
        score: Measured<f32> = Measured::exact(1.0),
    }
}

record! {
    /// Which pair: a pod of the agent's node, a peer (0: everybody who is no known pod), and what
    /// they talk about.
    PairId {
        pod: u64,
        peer: u64,
        class: Class,
    }
}

record! {
    /// What a pod and a peer moved.
    PairRecord {
        key: PairId,
        age_us: u32 = MAX_AGE_US,
        /// Connections.
        open: u32 = MAX_REQUESTS,
        tx_bytes_per_s: f32 = MAX_RATE,
        rx_bytes_per_s: f32 = MAX_RATE,
        retransmits_per_s: f32 = MAX_RATE,
        /// Round trips, as the pod's sockets measure them.
        rtt_us: Measured<f32> = Measured::exact(MAX_TIME_US),
        /// How fast data went while it moved, and for how long it did, over the last fraction of
        /// a second.
        transfer_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        transfer_us: u32 = MAX_AGE_US,
    }
}

/// What a pair's connections carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    #[default]
    Other,
    /// Requests to an engine.
    Engine,
    /// The bootstrap server of a prefill.
    Bootstrap,
    /// KV cache.
    Kv,
    KvControl,
}

impl Eq for PairId {}

impl std::hash::Hash for PairId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.pod, self.peer, self.class).hash(state);
    }
}

impl Encode for Class {
    fn put(&self, out: &mut BytesMut) {
        (*self as u8).put(out);
    }

    fn get(from: &mut FrameReader<'_>, field: &'static str) -> Result<Class, FrameError> {
        Ok(match u8::get(from, field)? {
            0 => Class::Other,
            1 => Class::Engine,
            2 => Class::Bootstrap,
            3 => Class::Kv,
            4 => Class::KvControl,
            value => return Err(FrameError::Unknown { field, value }),
        })
    }
}

/// What a device is to the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// An interface towards other nodes.
    #[default]
    Uplink,
    /// The host's end of a pod's interface.
    PodLink,
    Rdma,
}

impl Encode for DeviceKind {
    fn put(&self, out: &mut BytesMut) {
        (*self as u8).put(out);
    }

    fn get(from: &mut FrameReader<'_>, field: &'static str) -> Result<DeviceKind, FrameError> {
        Ok(match u8::get(from, field)? {
            0 => DeviceKind::Uplink,
            1 => DeviceKind::PodLink,
            2 => DeviceKind::Rdma,
            value => return Err(FrameError::Unknown { field, value }),
        })
    }
}

impl Encode for String {
    fn put(&self, out: &mut BytesMut) {
        put_text(self, out);
    }

    fn get(from: &mut FrameReader<'_>, field: &'static str) -> Result<String, FrameError> {
        from.text(field)
    }
}

record! {
    /// One device of the node.
    DeviceRecord {
        name: String,
        kind: DeviceKind,
        age_us: u32 = MAX_AGE_US,
        speed_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        tx_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        rx_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        /// Of the busier direction, 0 to 1.
        utilisation: Measured<f32> = Measured::exact(1.0),
    }
}
