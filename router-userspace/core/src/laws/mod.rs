//! Laws: properties that hold for any input bytes, used by the unit tests and the fuzz targets.
//!
//! The unit tests try each law on mutations of the seed corpus, `cargo xtask fuzz` on what libFuzzer
//! generates. A violated law panics.

mod answer;
mod event;
mod frame;
#[cfg(test)]
mod inputs;
mod kv_segment;
mod request;

pub use answer::answer;
pub use event::event;
pub use frame::frame;
pub use kv_segment::kv_segment;
pub use request::request;

use serde::de::IgnoredAny;

/// Whether another parser reads the bytes as JSON.
fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(bytes).is_ok()
}
