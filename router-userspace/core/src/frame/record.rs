//! The records of a frame: one pod, one pair of pods, one device. Units are in the names.

use bytes::{BufMut, BytesMut};
use serde::Serialize;

use super::FrameError;
use super::wire::{Bounded, Encode, FrameReader, put_text};
use crate::provenance::{Measured, Provenance};

/// Maximum age: one hour.
pub(super) const MAX_AGE_US: u32 = 3_600_000_000;
const MAX_REQUESTS: u32 = 10_000_000;
const MAX_BYTES: u64 = 1 << 50;
/// Ten terabytes per second.
const MAX_RATE: f32 = 1e13;
const MAX_TIME_US: f32 = 3.6e9;

impl Encode for Measured<f32> {
    fn put(&self, out: &mut BytesMut) {
        // One write: each checks the capacity.
        let [a, b, c, d] = self.value.to_le_bytes();
        out.put_slice(&[self.provenance as u8, a, b, c, d]);
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
    fn is_at_most(self, max: Measured<f32>) -> bool {
        self.value <= max.value
    }

    fn bounded(self, max: Measured<f32>) -> Measured<f32> {
        match self.value.is_finite() {
            true => Measured { value: self.value.bounded(max.value), ..self },
            false => Measured::unknown(),
        }
    }
}

/// Declares a record and its encoding: the fields in order, each with its maximum.
macro_rules! record {
    (
        $(#[$about:meta])*
        $name:ident { $($(#[$what:meta])* $field:ident: $kind:ty $(= $max:expr)?,)+ }
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize)]
        pub struct $name {
            $($(#[$what])* pub $field: $kind,)+
        }

        impl Encode for $name {
            fn put(&self, out: &mut BytesMut) {
                $(record!(@bound self $field $($max)?).put(out);)+
            }

            fn get(from: &mut FrameReader<'_>, _: &'static str) -> Result<$name, FrameError> {
                Ok($name { $($field: record!(@get from $field $($max)?),)+ })
            }
        }
    };
    (@bound $record:ident $field:ident) => { $record.$field };
    (@bound $record:ident $field:ident $max:expr) => { $record.$field.bounded($max) };
    (@get $from:ident $field:ident) => { Encode::get($from, stringify!($field))? };
    (@get $from:ident $field:ident $max:expr) => {
        $from.at_most(stringify!($field), $max)?
    };
}
pub(super) use record;

record! {
    /// Latencies over a fraction of a second. Without samples the latencies are meaningless.
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
        /// Requests whose response has not ended.
        in_flight: u32 = MAX_REQUESTS,
        /// Requests whose response has not started.
        waiting: u32 = MAX_REQUESTS,
        /// Chunked responses that have not ended.
        streaming: u32 = MAX_REQUESTS,
        /// Bytes of the requests whose response has not started, including their heads.
        waiting_bytes: u64 = MAX_BYTES,
        /// Total bytes of all requests. Together with `kv_tx_bytes` it gives the size of KV cache per
        /// byte of prompt.
        request_bytes: u64,
        /// Total bytes of KV cache that this pod sent.
        kv_tx_bytes: u64,
        /// Time from a request's first byte to the first byte of its response.
        ttft: LatencyRecord,
        /// Time between two segments of a streamed response. While streams are silent it is at least as
        /// long as the silence.
        itl: LatencyRecord,
        /// Traffic of the pod's own interface.
        tx_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        rx_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        retransmits_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        /// KV cache that this pod sends and receives, over TCP and RDMA.
        kv_tx_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        kv_rx_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        /// All traffic of this pod on RDMA devices.
        rdma_tx_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        rdma_rx_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        /// Speed of the slowest link between the pod and other nodes, and its use by all pods.
        link_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        link_tx_used_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        link_rx_used_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        /// Load score: 0 idle, 1 saturated.
        score: Measured<f32> = Measured::exact(1.0),
    }
}

record! {
    /// A pod of the agent's node, a peer (0 for all peers that are not known pods), and the class of
    /// their connections.
    PairId {
        pod: u64,
        peer: u64,
        class: Class,
    }
}

record! {
    /// Traffic between a pod and a peer.
    PairRecord {
        key: PairId,
        age_us: u32 = MAX_AGE_US,
        /// Open connections.
        open: u32 = MAX_REQUESTS,
        tx_bytes_per_s: f32 = MAX_RATE,
        rx_bytes_per_s: f32 = MAX_RATE,
        retransmits_per_s: f32 = MAX_RATE,
        /// Mean round trip time, measured by the pod's sockets.
        rtt_us: Measured<f32> = Measured::exact(MAX_TIME_US),
        /// Throughput while data was moving, and the time for which it was moving, over a fraction of a
        /// second.
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
    /// Requests to a prefill's bootstrap server.
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

/// The role of a network device on the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// An interface to other nodes.
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
    /// One network device of the node.
    DeviceRecord {
        name: String,
        kind: DeviceKind,
        age_us: u32 = MAX_AGE_US,
        speed_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        tx_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        rx_bytes_per_s: Measured<f32> = Measured::exact(MAX_RATE),
        /// Utilisation of the busier direction, 0 to 1.
        utilisation: Measured<f32> = Measured::exact(1.0),
    }
}
