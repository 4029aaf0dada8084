//! The requests to the engines of one attempt: dispatch, first event, faults and aborts.

pub(crate) mod abort;
pub(crate) mod dispatch;
pub(crate) mod fault;
pub(crate) mod first_event;
pub(crate) mod in_flight;
pub(crate) mod leg;
pub(crate) mod sent_mark;
pub(crate) mod source;
