//! Laws: properties that hold for any input bytes, used by the unit tests and the fuzz targets, as those
//! of [`router_core`].

#[cfg(test)]
#[path = "../core/src/laws/inputs.rs"]
pub(crate) mod inputs;

pub use crate::control::laws::manifest;
pub use crate::gateway::{coding, head};
