//! The agent's side: publishes measurements as load frames to every subscribed gateway.
//!
//! Subscribers share one ring of encoded frames. A subscriber that falls behind gets a full frame
//! instead of the frames that it missed, so a slow one costs no memory.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame as Piece;
use parking_lot::Mutex;
use router_core::frame::{Body, Delta, Frame, LoadReport, MAX_ROOMS, PodRecord, RoomRecord};
use tokio::sync::broadcast::{self, error::RecvError};
use tracing::info;

use crate::clock::micros;

/// The content type of the stream: frames of `router_core::frame`.
pub const CONTENT_TYPE: &str = "application/vnd.pd-router.loads";
/// Maximum time between two frames: a heartbeat is sent if nothing changed.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// Active streams and transfers are published again with the first report after this time.
const REPEAT_INTERVAL: Duration = Duration::from_millis(75);
/// Maximum number of subscribers of one agent; further ones are refused.
pub const MAX_SUBSCRIBERS: usize = 64;
/// Number of frames that a subscriber may fall behind before it gets a full frame.
const MAX_BACKLOG: usize = 16;
/// Maximum number of records of rooms that wait for a frame. When it is reached, the oldest are dropped.
const MAX_WAITING_ROOMS: usize = 8 * MAX_ROOMS;

/// What an agent measured since the last tick.
#[derive(Debug)]
pub enum AgentUpdate {
    /// A whole report, sorted.
    Full(LoadReport),
    /// The pods whose request counts changed.
    Pods(Vec<PodRecord>),
}

/// Encodes updates as frames and hands them to every subscriber.
#[derive(Clone, Debug)]
pub struct Publisher(Arc<PublisherInner>);

#[derive(Debug)]
struct PublisherInner {
    state: Mutex<PublishedState>,
    frames: broadcast::Sender<(u64, Bytes)>,
    subscribers: AtomicUsize,
}

/// What was published so far.
#[derive(Debug)]
struct PublishedState {
    instance: u64,
    start: Instant,
    sequence: u64,
    report: LoadReport,
    /// When the last frame was published.
    published_at: Instant,
    /// When active streams and transfers were last published again.
    repeated_at: Instant,
    /// When the counters were last read.
    read_at: Instant,
    /// Records for the next frames.
    rooms: VecDeque<RoomRecord>,
}

impl Publisher {
    /// `instance` is random and distinguishes this agent from the one before a restart.
    pub fn new(instance: u64) -> Publisher {
        let (frames, _) = broadcast::channel(MAX_BACKLOG);
        let now = Instant::now();
        let state = PublishedState {
            instance,
            start: now,
            sequence: 0,
            report: LoadReport::default(),
            published_at: now,
            repeated_at: now,
            read_at: now,
            rooms: VecDeque::new(),
        };
        let subscribers = AtomicUsize::new(0);
        Publisher(Arc::new(PublisherInner { state: Mutex::new(state), frames, subscribers }))
    }

    /// Publishes an update of counters that were read at `read`. Sends at most one frame, and none
    /// if nothing changed and the last frame is younger than [`HEARTBEAT`].
    pub fn tick(&self, update: AgentUpdate, read: Instant, now: Instant) {
        let mut state = self.0.state.lock();
        state.read_at = read;
        let mut delta = match update {
            AgentUpdate::Full(report) => state.changes(report, now),
            AgentUpdate::Pods(pods) => Delta { pods, ..Delta::default() },
        };
        let count = state.rooms.len().min(MAX_ROOMS);
        delta.rooms = state.rooms.drain(..count).collect();
        let body = if !delta.is_empty() {
            state.report.apply(&delta);
            Body::Delta(delta)
        } else if now.saturating_duration_since(state.published_at) >= HEARTBEAT {
            Body::Heartbeat
        } else {
            return;
        };
        state.sequence += 1;
        state.published_at = now;
        let frame = state.encode(body, now);
        // Sent under the lock, so that no subscriber sees a gap between its full frame and the ring.
        // Without subscribers the send fails, which is no error.
        let _ = self.0.frames.send((state.sequence, frame));
    }

    /// Adds what happened to KV transfers to the next frames. Without subscribers it is dropped.
    pub fn add_rooms(&self, rooms: Vec<RoomRecord>) {
        if rooms.is_empty() || self.subscribers() == 0 {
            return;
        }
        let mut state = self.0.state.lock();
        state.rooms.extend(rooms);
        let excess = state.rooms.len().saturating_sub(MAX_WAITING_ROOMS);
        state.rooms.drain(..excess);
    }

    /// A moment on the clock of the frames, in microseconds since the agent started.
    pub fn clock_us(&self, at: Instant) -> u64 {
        self.0.state.lock().clock_us(at)
    }

    /// The instance of the agent, and its clock now: what a gateway compares its own clock with.
    pub fn clock(&self) -> (u64, u64) {
        let state = self.0.state.lock();
        (state.instance, state.clock_us(Instant::now()))
    }

    /// The response body for a new subscriber; `None` if there are [`MAX_SUBSCRIBERS`] already.
    pub fn subscribe(&self) -> Option<UnsyncBoxBody<Bytes, Infallible>> {
        let slot = SubscriberSlot::take(&self.0)?;
        // Replaced at the first poll: `full` subscribes again, under the lock under which it reads what the
        // first frame holds.
        let frames = self.0.frames.subscribe();
        let subscriber =
            Subscriber { shared: Arc::clone(&self.0), frames, last_sequence: None, _slot: slot };
        let pieces = stream::unfold(subscriber, |mut subscriber| async move {
            let frame = subscriber.next().await?;
            Some((Ok(Piece::data(frame)), subscriber))
        });
        Some(UnsyncBoxBody::new(StreamBody::new(pieces)))
    }

    /// The published state with current ages.
    pub fn report(&self) -> LoadReport {
        self.0.state.lock().aged_report(Instant::now())
    }

    pub fn subscribers(&self) -> usize {
        self.0.subscribers.load(Ordering::Relaxed)
    }
}

impl PublishedState {
    /// The delta that publishes a whole report.
    fn changes(&mut self, report: LoadReport, now: Instant) -> Delta {
        let repeats = now.saturating_duration_since(self.repeated_at) >= REPEAT_INTERVAL;
        if repeats {
            self.repeated_at = now;
        }
        let delta = self.report.delta_to(&report, repeats);
        // Deltas do not carry the node's name; subscribers get it with the next full frame.
        self.report.node = report.node;
        delta
    }

    fn clock_us(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }

    fn aged_report(&self, now: Instant) -> LoadReport {
        self.report.clone().aged(micros(now.saturating_duration_since(self.published_at)))
    }

    fn encode(&self, body: Body, now: Instant) -> Bytes {
        let frame = Frame {
            instance: self.instance,
            sequence: self.sequence,
            sent_us: self.clock_us(now),
            read_age_us: micros(now.saturating_duration_since(self.read_at)),
            body,
        };
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        out.freeze()
    }
}

/// A counted subscriber; the slot is free again when this is dropped.
#[derive(Debug)]
struct SubscriberSlot(Arc<PublisherInner>);

impl SubscriberSlot {
    fn take(shared: &Arc<PublisherInner>) -> Option<SubscriberSlot> {
        let next = |count: usize| (count < MAX_SUBSCRIBERS).then_some(count + 1);
        let taken =
            shared.subscribers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        info!(subscribers = taken + 1, "gateway subscribed");
        Some(SubscriberSlot(Arc::clone(shared)))
    }
}

impl Drop for SubscriberSlot {
    fn drop(&mut self) {
        self.0.subscribers.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Subscriber {
    shared: Arc<PublisherInner>,
    frames: broadcast::Receiver<(u64, Bytes)>,
    /// The sequence of the last frame sent to it; `None` if it needs a full frame.
    last_sequence: Option<u64>,
    _slot: SubscriberSlot,
}

impl Subscriber {
    /// The next frame; `None` once the publisher is dropped.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.last_sequence.is_none() {
                return Some(self.full());
            }
            match self.frames.recv().await {
                Ok((sequence, frame)) if self.last_sequence.is_some_and(|last| sequence > last) => {
                    self.last_sequence = Some(sequence);
                    return Some(frame);
                }
                // The full frame contained it already.
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => self.last_sequence = None,
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn full(&mut self) -> Bytes {
        let state = self.shared.state.lock();
        // The full frame contains everything in the ring.
        self.frames = self.frames.resubscribe();
        self.last_sequence = Some(state.sequence);
        let now = Instant::now();
        state.encode(Body::Full(state.aged_report(now)), now)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use router_core::frame::{LatencyRecord, decode};

    use super::*;

    fn pod(in_flight: u32) -> PodRecord {
        PodRecord { pod: 7, in_flight, ..PodRecord::default() }
    }

    fn report(in_flight: u32) -> AgentUpdate {
        AgentUpdate::Full(LoadReport { pods: vec![pod(in_flight)], ..LoadReport::default() })
    }

    async fn next(body: &mut UnsyncBoxBody<Bytes, Infallible>) -> Frame {
        let piece = body.frame().await.expect("a piece").expect("cannot fail");
        decode(&piece.into_data().expect("data")[4..]).expect("a frame")
    }

    #[tokio::test]
    async fn a_subscriber_gets_a_full_frame_then_deltas_then_heartbeats() {
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
        assert_eq!(third.read_age_us, 300_000, "the age of the last reading");
    }

    #[tokio::test]
    async fn request_counts_are_published_between_reports_and_confirmed_by_heartbeats() {
        let publisher = Publisher::new(3);
        let start = Instant::now();
        publisher.tick(report(1), start, start);
        let mut body = publisher.subscribe().unwrap();
        next(&mut body).await;
        publisher.tick(AgentUpdate::Pods(vec![pod(2)]), start, start);
        let Body::Delta(delta) = next(&mut body).await.body else { panic!("no delta") };
        assert_eq!(delta.pods, [pod(2)]);
        // The next report repeats it, so no delta is sent.
        publisher.tick(report(2), start, start);
        publisher.tick(AgentUpdate::Pods(Vec::new()), start, start + HEARTBEAT);
        assert_eq!(next(&mut body).await.body, Body::Heartbeat);
        assert_eq!(publisher.report().pods[0].in_flight, 2);
    }

    #[tokio::test]
    async fn active_streams_are_published_with_every_second_report() {
        let publisher = Publisher::new(3);
        let start = Instant::now();
        let streams = || {
            let itl = LatencyRecord { mean_us: 20_000.0, samples: 9, ..LatencyRecord::default() };
            let pods = vec![PodRecord { itl, ..pod(1) }];
            AgentUpdate::Full(LoadReport { pods, ..LoadReport::default() })
        };
        let begun_us = {
            let state = publisher.0.state.lock();
            start.saturating_duration_since(state.start).as_micros() as u64
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
            let frame = next(&mut body).await;
            assert!(matches!(frame.body, Body::Delta(_)), "{frame:?}");
            assert_eq!((frame.sent_us - begun_us) / 1000, at_ms);
        }
    }

    #[tokio::test]
    async fn a_slow_subscriber_gets_a_full_frame_instead_of_missed_frames() {
        let publisher = Publisher::new(3);
        let now = Instant::now();
        let mut body = publisher.subscribe().unwrap();
        assert!(matches!(next(&mut body).await.body, Body::Full(_)));
        for in_flight in 1..=10 * MAX_BACKLOG as u32 {
            publisher.tick(report(in_flight), now, now);
        }
        let caught_up = next(&mut body).await;
        let Body::Full(full) = caught_up.body else { panic!("{caught_up:?}") };
        assert_eq!(full.pods[0].in_flight, 10 * MAX_BACKLOG as u32);
        publisher.tick(report(0), now, now);
        let after = next(&mut body).await;
        assert_eq!(after.sequence, caught_up.sequence + 1);
    }

    #[tokio::test]
    async fn subscribers_are_limited_and_a_dropped_one_frees_its_slot() {
        let publisher = Publisher::new(3);
        let bodies: Vec<_> = (0..MAX_SUBSCRIBERS).map(|_| publisher.subscribe().unwrap()).collect();
        assert!(publisher.subscribe().is_none());
        drop(bodies);
        assert!(publisher.subscribe().is_some());
    }
}
