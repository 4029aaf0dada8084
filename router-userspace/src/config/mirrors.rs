//! Flags that limit mirrored requests.

use clap::Args;

/// Limits of the filter RequestMirror.
#[derive(Clone, Debug, Args)]
pub struct MirrorFlags {
    /// Maximum number of mirrored requests at once (the filter RequestMirror of an HTTPRoute), from the
    /// client's request to the end of the mirror's response. When it is reached, requests are not
    /// mirrored.
    #[arg(long, default_value_t = 256, value_name = "COUNT")]
    pub max_mirrors: usize,
    /// Maximum size in bytes of all request bodies that are copied for mirrors together. A request whose
    /// copy would exceed it is not mirrored.
    #[arg(long, default_value_t = 64 << 20, value_parser = super::size, value_name = "BYTES")]
    pub max_mirror_memory: usize,
}
