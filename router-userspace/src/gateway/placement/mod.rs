//! Which workers serve a request: choosing and leasing a pair, and the queue while all are full.

pub(crate) mod candidates;
pub(crate) mod explain;
pub(crate) mod placer;
pub(crate) mod queue;
