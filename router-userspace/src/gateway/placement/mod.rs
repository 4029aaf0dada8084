//! Which workers serve a request: choosing and leasing a pair, the queue while all are full, and
//! what requests teach the scheduler.

pub(crate) mod explain;
pub(crate) mod observe;
pub(crate) mod placer;
pub(crate) mod queue;
pub(crate) mod responses;
