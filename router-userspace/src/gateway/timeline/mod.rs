//! Where the time of each request went: the moments of an attempt, the summary of a request that has
//! ended, and the last of these in memory.

pub(crate) mod attempt_marks;
pub(crate) mod recent;
pub(crate) mod summary;
