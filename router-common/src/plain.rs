//! [`Plain`]: types that can be copied from and to bytes, for the bpf system call.
#![expect(unsafe_code, reason = "maps hold bytes, and these types are plain bytes")]

use crate::flow::{
    FlowKey, Losses, OpenConnection, PairKey, PairStats, Pod, PodAddress, PodHttp, PodPort,
    PodTraffic, ProgramSettings, QueuePairKey, QueuePairStats, Uplink,
};
use crate::http::HttpStream;
use crate::roce::Sequences;

/// A type without padding for which any bytes of its size are a value.
///
/// # Safety
///
/// `repr(C)` or an integer, no padding, no invalid bit patterns, no pointers.
pub unsafe trait Plain: Copy {
    /// The value's bytes.
    fn bytes(&self) -> &[u8] {
        // SAFETY: no padding, so every byte is initialised.
        unsafe { core::slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>()) }
    }

    /// The value that `bytes` begin with; `None` if they are too few.
    fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < size_of::<Self>() {
            return None;
        }
        // SAFETY: long enough, and any bytes are a value.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }
}

macro_rules! plain {
    ($($name:ty),+ $(,)?) => {
        // SAFETY: integers, and structs whose sizes are asserted to be those of their fields.
        $(unsafe impl Plain for $name {})+
    };
}

plain!(u32, u64, OpenConnection, PodAddress, FlowKey, Losses, PairKey, PairStats, Pod, PodHttp);
plain!(
    PodPort,
    PodTraffic,
    QueuePairKey,
    QueuePairStats,
    Sequences,
    ProgramSettings,
    HttpStream,
    Uplink
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_survives_its_bytes_and_fewer_bytes_make_none() {
        let key = PairKey { pod: 1, peer: 2, class: 3 };
        assert_eq!(PairKey::of(key.bytes()), Some(key));
        assert_eq!(PairKey::of(&key.bytes()[1..]), None);
    }
}
