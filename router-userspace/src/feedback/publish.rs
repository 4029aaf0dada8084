//! The agent's side: what it measured, as frames for every gateway that listens.
//!
//! Subscribers share one ring of encoded frames. One that falls behind loses its place in the
//! ring and gets a full report instead of what it missed: nothing grows with its slowness.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame as Piece;
use parking_lot::{Mutex, MutexGuard};
use router_core::frame::{Body, Delta, Frame, PodRecord, Report};
use tokio::sync::broadcast::{self, error::RecvError};
use tracing::info;

/// What the stream says it is: frames of `router_core::frame`.
pub const CONTENT_TYPE: &str = "application/vnd.pd-router.loads";
/// With nothing to tell, a frame says at least so often that all is as it was.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// What goes on is told again with the report that is next to a heartbeat's time.
const AGAIN: Duration = Duration::from_millis(75);
/// Subscribers of one agent; one more is refused.
pub const MAX_SUBSCRIBERS: usize = 64;
/// Frames that a subscriber may be behind before it gets a report instead.
const BACKLOG: usize = 16;

/// What an agent measured since the last tick.
#[derive(Debug)]
pub enum AgentUpdate {
    /// A whole report, sorted.
    Full(Report),
    /// The pods whose request counts changed.
    Pods(Vec<PodRecord>),
}

/// Makes frames of reports and hands them to every subscriber.
#[derive(Clone, Debug)]
pub struct Publisher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    told: Mutex<Told>,
    frames: broadcast::Sender<(u64, Bytes)>,
    subscribers: AtomicUsize,
}

/// What subscribers know by now.
#[derive(Debug)]
struct Told {
    instance: u64,
    start: Instant,
    sequence: u64,
    report: Report,
    /// When it was told last, and when what goes on was told again.
    at: Instant,
    again: Instant,
    read: Instant,
}

impl Publisher {
    /// `instance` tells this agent from the one before it: drawn at random.
    pub fn new(instance: u64) -> Publisher {
        let (frames, _) = broadcast::channel(BACKLOG);
        let now = Instant::now();
        let told = Told {
            instance,
            start: now,
            sequence: 0,
            report: Report::default(),
            at: now,
            again: now,
            read: now,
        };
        let subscribers = AtomicUsize::new(0);
        Publisher(Arc::new(Shared { told: Mutex::new(told), frames, subscribers }))
    }

    /// Takes in what was measured by counters that were read at `read`: at most one frame goes
    /// out, and none where nothing changed and the last one is fresh.
    pub fn tick(&self, update: AgentUpdate, read: Instant, now: Instant) {
        let mut told = self.told();
        told.read = read;
        let delta = match update {
            AgentUpdate::Full(report) => told.changes(report, now),
            AgentUpdate::Pods(pods) => Delta { pods, ..Delta::default() },
        };
        let body = if !delta.is_empty() {
            told.report.apply(&delta);
            Body::Delta(delta)
        } else if now.saturating_duration_since(told.at) >= HEARTBEAT {
            Body::Heartbeat
        } else {
            return;
        };
        told.sequence += 1;
        told.at = now;
        let frame = told.encode(body, now);
        // Under the lock, so that no subscriber finds a gap between its report and the ring.
        // Nobody listening is no error.
        let _ = self.0.frames.send((told.sequence, frame));
    }

    /// The body of one subscriber's answer; `None` where there are too many.
    pub fn subscribe(&self) -> Option<UnsyncBoxBody<Bytes, Infallible>> {
        let seat = Seat::take(&self.0)?;
        let frames = {
            let _told = self.told();
            self.0.frames.subscribe()
        };
        let subscriber =
            Subscriber { shared: Arc::clone(&self.0), frames, known: None, _seat: seat };
        let pieces = stream::unfold(subscriber, |mut subscriber| async move {
            let frame = subscriber.next().await?;
            Some((Ok(Piece::data(frame)), subscriber))
        });
        Some(UnsyncBoxBody::new(StreamBody::new(pieces)))
    }

    /// Everything that subscribers know, as old as it is now.
    pub fn report(&self) -> Report {
        self.told().aged_report(Instant::now())
    }

    pub fn subscribers(&self) -> usize {
        self.0.subscribers.load(Ordering::Relaxed)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.told()
    }
}

impl Shared {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock()
    }
}

impl Told {
    /// What is to be told of a whole report.
    fn changes(&mut self, report: Report, now: Instant) -> Delta {
        let again = now.saturating_duration_since(self.again) >= AGAIN;
        if again {
            self.again = now;
        }
        let delta = self.report.delta_to(&report, again);
        // A name is not worth a frame.
        self.report.node = report.node;
        delta
    }

    fn aged_report(&self, now: Instant) -> Report {
        self.report.clone().aged(micros(now.saturating_duration_since(self.at)))
    }

    fn encode(&self, body: Body, now: Instant) -> Bytes {
        let frame = Frame {
            instance: self.instance,
            sequence: self.sequence,
            sent_us: u64::try_from(now.saturating_duration_since(self.start).as_micros())
                .unwrap_or(u64::MAX),
            read_age_us: micros(now.saturating_duration_since(self.read)),
            body,
        };
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        out.freeze()
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// A subscriber's place; counted until dropped.
#[derive(Debug)]
struct Seat(Arc<Shared>);

impl Seat {
    fn take(shared: &Arc<Shared>) -> Option<Seat> {
        let seat = |count: usize| (count < MAX_SUBSCRIBERS).then_some(count + 1);
        let taken =
            shared.subscribers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, seat).ok()?;
        info!(subscribers = taken + 1, "a gateway listens");
        Some(Seat(Arc::clone(shared)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.subscribers.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Subscriber {
    shared: Arc<Shared>,
    frames: broadcast::Receiver<(u64, Bytes)>,
    /// The last frame that it was given; `None`: it needs a full report.
    known: Option<u64>,
    _seat: Seat,
}

impl Subscriber {
    /// The next frame for it; `None` once the publisher is gone.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.known.is_none() {
                return Some(self.full());
            }
            match self.frames.recv().await {
                Ok((sequence, frame)) if self.known.is_some_and(|known| sequence > known) => {
                    self.known = Some(sequence);
                    return Some(frame);
                }
                // It is in the report already.
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => self.known = None,
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn full(&mut self) -> Bytes {
        let told = self.shared.told();
        // What is in the ring is in the report.
        self.frames = self.frames.resubscribe();
        self.known = Some(told.sequence);
        let now = Instant::now();
        told.encode(Body::Full(told.aged_report(now)), now)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use router_core::frame::{Latency, decode};

    use super::*;

    fn pod(in_flight: u32) -> PodRecord {
        PodRecord { pod: 7, in_flight, ..PodRecord::default() }
    }

    fn report(in_flight: u32) -> AgentUpdate {
        AgentUpdate::Full(Report { pods: vec![pod(in_flight)], ..Report::default() })
    }

    async fn next(body: &mut UnsyncBoxBody<Bytes, Infallible>) -> Frame {
        let piece = body.frame().await.expect("a piece").expect("cannot fail");
        decode(&piece.into_data().expect("data")[4..]).expect("a frame")
    }

    #[tokio::test]
    async fn a_subscriber_gets_a_report_then_changes_then_heartbeats() {
        let publisher = Publisher::new(3);
        let start = Instant::now();
        publisher.tick(report(1), start, start);
        let mut body = publisher.subscribe().unwrap();
        let first = next(&mut body).await;
        let Body::Full(full) = first.body else { panic!("{first:?}") };
        assert_eq!((first.instance, full.pods[0].in_flight), (3, 1));
        publisher.tick(report(1), start, start);
        publisher.tick(report(2), start, start + HEARTBEAT / 2);
        let second = next(&mut body).await;
        let Body::Delta(delta) = second.body else { panic!("{second:?}") };
        assert_eq!((second.sequence, delta.pods[0].in_flight), (first.sequence + 1, 2));
        let later = start + HEARTBEAT * 3;
        publisher.tick(report(2), start, later);
        let third = next(&mut body).await;
        assert_eq!((third.sequence, &third.body), (first.sequence + 2, &Body::Heartbeat));
        assert_eq!(third.read_age_us, 300_000, "it says how old the reading is");
    }

    #[tokio::test]
    async fn requests_are_told_between_reports_and_heartbeats_too() {
        let publisher = Publisher::new(3);
        let start = Instant::now();
        publisher.tick(report(1), start, start);
        let mut body = publisher.subscribe().unwrap();
        next(&mut body).await;
        publisher.tick(AgentUpdate::Pods(vec![pod(2)]), start, start);
        let Body::Delta(delta) = next(&mut body).await.body else { panic!("no delta") };
        assert_eq!(delta.pods, [pod(2)]);
        // The next report says nothing new of it.
        publisher.tick(report(2), start, start);
        publisher.tick(AgentUpdate::Pods(Vec::new()), start, start + HEARTBEAT);
        assert_eq!(next(&mut body).await.body, Body::Heartbeat);
        assert_eq!(publisher.report().pods[0].in_flight, 2);
    }

    #[tokio::test]
    async fn what_goes_on_is_told_again_with_every_second_report() {
        let publisher = Publisher::new(3);
        let start = Instant::now();
        let streams = || {
            let itl = Latency { mean_us: 20_000.0, samples: 9, ..Latency::default() };
            let pods = vec![PodRecord { itl, ..pod(1) }];
            AgentUpdate::Full(Report { pods, ..Report::default() })
        };
        let begun_us = {
            let told = publisher.told();
            start.saturating_duration_since(told.start).as_micros() as u64
        };
        publisher.tick(streams(), start, start);
        let mut body = publisher.subscribe().unwrap();
        next(&mut body).await;
        // Ticks come a little early or late.
        for ms in [49, 99, 150, 201] {
            let now = start + Duration::from_millis(ms);
            publisher.tick(streams(), now, now);
        }
        for at_ms in [99, 201] {
            let told = next(&mut body).await;
            assert!(matches!(told.body, Body::Delta(_)), "{told:?}");
            assert_eq!((told.sent_us - begun_us) / 1000, at_ms);
        }
    }

    #[tokio::test]
    async fn one_that_is_slow_gets_a_report_instead_of_what_it_missed() {
        let publisher = Publisher::new(3);
        let now = Instant::now();
        let mut body = publisher.subscribe().unwrap();
        assert!(matches!(next(&mut body).await.body, Body::Full(_)));
        for in_flight in 1..=10 * BACKLOG as u32 {
            publisher.tick(report(in_flight), now, now);
        }
        let caught_up = next(&mut body).await;
        let Body::Full(full) = caught_up.body else { panic!("{caught_up:?}") };
        assert_eq!(full.pods[0].in_flight, 10 * BACKLOG as u32);
        publisher.tick(report(0), now, now);
        let after = next(&mut body).await;
        assert_eq!(after.sequence, caught_up.sequence + 1);
    }

    #[tokio::test]
    async fn subscribers_are_limited_and_a_place_is_given_back() {
        let publisher = Publisher::new(3);
        let bodies: Vec<_> = (0..MAX_SUBSCRIBERS).map(|_| publisher.subscribe().unwrap()).collect();
        assert!(publisher.subscribe().is_none());
        drop(bodies);
        assert!(publisher.subscribe().is_some());
    }
}
