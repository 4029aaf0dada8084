//! [`RoomRegistry`]: which attempt has which bootstrap room, for what agents report of KV transfers.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use router_core::frame::RoomRecord;

/// Maximum number of rooms. When it is reached, the oldest is forgotten.
const MAX_ROOMS: usize = 32_768;

/// The difference between the clock of the gateway and that of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockOffset {
    /// What to add to a time of the agent.
    pub(crate) offset_us: i64,
    /// How far off that can be.
    pub(crate) error_us: u32,
}

/// Takes what agents report of the KV transfer of an attempt.
pub(crate) trait OnTransfer: Send + Sync {
    /// `clock` is `None` while the clocks have not been compared.
    fn on_transfer(&self, record: &RoomRecord, clock: Option<ClockOffset>);
}

/// The attempts by room. An attempt whose request is not kept any more is no longer found.
#[derive(Clone, Default)]
pub(crate) struct RoomRegistry(Arc<Mutex<Registered>>);

#[derive(Default)]
struct Registered {
    attempts: HashMap<u64, Weak<dyn OnTransfer>>,
    /// The rooms in the order in which they were registered.
    order: VecDeque<u64>,
}

impl RoomRegistry {
    pub(crate) fn register(&self, room: u64, attempt: Weak<dyn OnTransfer>) {
        let mut registered = self.0.lock();
        let Registered { attempts, order } = &mut *registered;
        while let Some(oldest) = order.front() {
            let is_gone = attempts.get(oldest).is_none_or(|attempt| attempt.strong_count() == 0);
            if !is_gone && order.len() < MAX_ROOMS {
                break;
            }
            attempts.remove(oldest);
            order.pop_front();
        }
        if attempts.insert(room, attempt).is_none() {
            order.push_back(room);
        }
    }

    /// Passes a record to the attempt with its room; returns whether there is one.
    pub(crate) fn apply(&self, record: &RoomRecord, clock: Option<ClockOffset>) -> bool {
        // The attempt is called without the lock.
        let attempt = self.0.lock().attempts.get(&record.room).and_then(Weak::upgrade);
        let Some(attempt) = attempt else { return false };
        attempt.on_transfer(record, clock);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU64);

    impl OnTransfer for Count {
        fn on_transfer(&self, _: &RoomRecord, _: Option<ClockOffset>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn of(room: u64) -> RoomRecord {
        RoomRecord { room, ..RoomRecord::default() }
    }

    #[test]
    fn a_record_reaches_the_attempt_with_its_room_while_that_is_kept() {
        let registry = RoomRegistry::default();
        let (one, other) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let as_attempt = |count: &Arc<Count>| -> Weak<dyn OnTransfer> {
            let weak: Weak<Count> = Arc::downgrade(count);
            weak
        };
        registry.register(1, as_attempt(&one));
        registry.register(2, as_attempt(&other));
        assert!(registry.apply(&of(1), None) && !registry.apply(&of(3), None));
        assert_eq!((one.0.load(Ordering::Relaxed), other.0.load(Ordering::Relaxed)), (1, 0));
        drop(one);
        assert!(!registry.apply(&of(1), None));
        // What is gone is removed with the next room, and the number of rooms is bounded.
        registry.register(3, as_attempt(&other));
        assert_eq!(registry.0.lock().order, [2, 3]);
        for room in 10..MAX_ROOMS as u64 + 20 {
            registry.register(room, as_attempt(&other));
        }
        let registered = registry.0.lock();
        assert_eq!((registered.order.len(), registered.attempts.len()), (MAX_ROOMS, MAX_ROOMS));
    }
}
