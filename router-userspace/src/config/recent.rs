//! [`RecentFlags`]: how many of the last requests are kept in memory.

use std::time::Duration;

use clap::Args;

use super::duration;

/// Which requests that have ended are kept in memory for `/requests`.
#[derive(Clone, Debug, Args)]
pub struct RecentFlags {
    /// Number of ended requests of pools that are kept in memory for /requests, at 1.5 KiB each, at most
    /// 1000000. A quarter as many slow and as many failed requests are kept beside them. 0 keeps none.
    #[arg(
        long,
        default_value_t = 4096,
        value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(..=1_000_000)
    )]
    pub requests_kept: u32,
    /// Time to first token from which a request counts as slow and is kept for /requests beside faster
    /// ones. Of a response that is not a stream the whole duration counts.
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "DURATION")]
    pub slow_request: Duration,
}
