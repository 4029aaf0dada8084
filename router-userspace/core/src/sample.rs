//! Rates and latencies of a pod, from two readings of its counters and the time between.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use router_common::histogram::{BUCKETS, floor_us};

/// A sum of durations, and their number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DurationSum {
    pub sum: Duration,
    pub samples: u64,
}

impl DurationSum {
    /// The mean of the durations added since `older`.
    fn mean_since(self, older: DurationSum) -> Option<Duration> {
        let samples = self.samples.checked_sub(older.samples).filter(|samples| *samples > 0)?;
        let nanos = self.sum.checked_sub(older.sum)?.as_nanos() / u128::from(samples);
        u64::try_from(nanos).ok().map(Duration::from_nanos)
    }
}

/// A pod's counters at one moment. All fields are monotonic unless they are called a gauge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodReading {
    pub started: u64,
    pub finished: u64,
    /// Gauge: requests whose response has not ended.
    pub in_flight: u64,
    /// Gauge: bytes of the requests whose response has not started.
    pub waiting_bytes: u64,
    pub ttft: DurationSum,
    pub itl: DurationSum,
    pub duration: DurationSum,
    pub ttft_us: [u64; BUCKETS],
    pub itl_us: [u64; BUCKETS],
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

impl Default for PodReading {
    fn default() -> Self {
        PodReading {
            started: 0,
            finished: 0,
            in_flight: 0,
            waiting_bytes: 0,
            ttft: DurationSum::default(),
            itl: DurationSum::default(),
            duration: DurationSum::default(),
            ttft_us: [0; BUCKETS],
            itl_us: [0; BUCKETS],
            rx_bytes: 0,
            tx_bytes: 0,
        }
    }
}

/// What happened between two readings. `None` means that there was nothing to measure.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SampledRates {
    /// Per second.
    pub requests: f64,
    pub answers: f64,
    pub rx_bytes: f64,
    pub tx_bytes: f64,
    pub ttft: Option<Duration>,
    pub ttft_p99: Option<Duration>,
    pub ttft_samples: u64,
    pub itl: Option<Duration>,
    pub itl_p99: Option<Duration>,
    pub itl_samples: u64,
    pub duration: Option<Duration>,
}

/// Rates between `older` and `newer`, `elapsed` apart. A counter that went back (a new pod with an
/// old name) gives a rate of 0.
///
/// ```
/// use std::time::Duration;
/// use router_core::sample::{PodReading, rates};
///
/// let older = PodReading { started: 10, ..PodReading::default() };
/// let newer = PodReading { started: 30, ..PodReading::default() };
/// assert_eq!(rates(&older, &newer, Duration::from_secs(2)).requests, 10.0);
/// ```
pub fn rates(older: &PodReading, newer: &PodReading, elapsed: Duration) -> SampledRates {
    let seconds = elapsed.as_secs_f64();
    let per_second = |older: u64, newer: u64| {
        if seconds > 0.0 { newer.saturating_sub(older) as f64 / seconds } else { 0.0 }
    };
    SampledRates {
        requests: per_second(older.started, newer.started),
        answers: per_second(older.finished, newer.finished),
        rx_bytes: per_second(older.rx_bytes, newer.rx_bytes),
        tx_bytes: per_second(older.tx_bytes, newer.tx_bytes),
        ttft: newer.ttft.mean_since(older.ttft),
        ttft_p99: quantile(&older.ttft_us, &newer.ttft_us, 0.99),
        ttft_samples: newer.ttft.samples.saturating_sub(older.ttft.samples),
        itl: newer.itl.mean_since(older.itl),
        itl_p99: quantile(&older.itl_us, &newer.itl_us, 0.99),
        itl_samples: newer.itl.samples.saturating_sub(older.itl.samples),
        duration: newer.duration.mean_since(older.duration),
    }
}

/// The upper bound of the bucket that holds the `share` quantile of the durations since `older`.
fn quantile(older: &[u64; BUCKETS], newer: &[u64; BUCKETS], share: f64) -> Option<Duration> {
    let grown = |index: usize| newer[index].saturating_sub(older[index]);
    let total: u64 = (0..BUCKETS).map(grown).sum();
    if total == 0 {
        return None;
    }
    let wanted = (total as f64 * share).ceil() as u64;
    let mut below = 0;
    let index = (0..BUCKETS).find(|index| {
        below += grown(*index);
        below >= wanted
    })?;
    Some(Duration::from_micros(floor_us(index + 1)))
}

/// Seconds in which a pod would finish its requests in flight (Little's law); 0 if it has none, `None`
/// if it has not finished any request.
pub fn drain_seconds(in_flight: u64, rates: &SampledRates) -> Option<f64> {
    if in_flight == 0 {
        return Some(0.0);
    }
    if rates.answers > 0.0 {
        return Some(in_flight as f64 / rates.answers);
    }
    rates.duration.map(|duration| duration.as_secs_f64() * in_flight as f64)
}

/// Recent readings, at least a step apart so that their number is bounded. Equal consecutive readings
/// share one allocation.
#[derive(Clone, Debug)]
pub struct ReadingWindow {
    span: Duration,
    step: Duration,
    readings: VecDeque<(Duration, Arc<PodReading>)>,
    newest: Option<(Duration, Arc<PodReading>)>,
}

impl ReadingWindow {
    /// Keeps readings for `span`, at least `step` apart: at most `span / step + 2`.
    pub fn new(span: Duration, step: Duration) -> ReadingWindow {
        ReadingWindow { span, step, readings: VecDeque::new(), newest: None }
    }

    /// Adds a reading taken at `at`, a time of any monotonic clock.
    pub fn push(&mut self, at: Duration, reading: Arc<PodReading>) {
        let far = |(last, _): &(Duration, _)| at.saturating_sub(*last) >= self.step;
        if self.readings.back().is_none_or(far) {
            self.readings.push_back((at, Arc::clone(&reading)));
        }
        // Only the oldest reading may be older than the span.
        while self.readings.get(1).is_some_and(|(next, _)| at.saturating_sub(*next) >= self.span) {
            self.readings.pop_front();
        }
        self.newest = Some((at, reading));
    }

    /// The newest reading, and its time.
    pub fn newest(&self) -> Option<&(Duration, Arc<PodReading>)> {
        self.newest.as_ref()
    }

    /// The rates between the oldest and the newest reading.
    pub fn rates(&self) -> SampledRates {
        match (self.readings.front(), &self.newest) {
            (Some((then, older)), Some((now, newer))) if !Arc::ptr_eq(older, newer) => {
                rates(older, newer, now.saturating_sub(*then))
            }
            _ => SampledRates::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(finished: u64) -> PodReading {
        PodReading { started: finished, finished, ..PodReading::default() }
    }

    #[test]
    fn readings_older_than_the_span_are_dropped() {
        let mut window = ReadingWindow::new(Duration::from_secs(1), Duration::from_millis(50));
        for tick in 0..1_000u32 {
            window.push(Duration::from_millis(10) * tick, reading(u64::from(tick)).into());
        }
        assert!(window.readings.len() <= 22, "{} readings", window.readings.len());
        assert!((window.rates().answers - 100.0).abs() < 1.0, "{:?}", window.rates());
        let (_, last) = window.newest().cloned().expect("a reading");
        for tick in 1_000..1_200u32 {
            window.push(Duration::from_millis(10) * tick, Arc::clone(&last));
        }
        assert_eq!(
            window.rates(),
            SampledRates::default(),
            "the counters did not change for a second"
        );
        assert_eq!(rates(&last, &last, Duration::from_secs(1)), SampledRates::default());
    }

    #[test]
    fn latencies_are_means_between_the_readings() {
        let ttft = DurationSum { sum: Duration::from_secs(10), samples: 10 };
        let mut older = PodReading { ttft, ..PodReading::default() };
        older.ttft_us[40] = 10;
        let mut newer = older.clone();
        newer.ttft =
            DurationSum { sum: Duration::from_secs(10) + Duration::from_millis(30), samples: 13 };
        newer.ttft_us[20] = 3;
        let rates = rates(&older, &newer, Duration::from_secs(1));
        assert_eq!(rates.ttft, Some(Duration::from_millis(10)));
        assert_eq!(rates.ttft_p99, Some(Duration::from_micros(floor_us(21))));
        assert_eq!(rates.itl, None);
    }

    #[test]
    fn counters_that_went_back_have_a_rate_of_zero() {
        let rates = rates(&reading(50), &reading(3), Duration::from_secs(1));
        assert_eq!((rates.requests, rates.answers), (0.0, 0.0));
    }

    #[test]
    fn the_time_to_drain_follows_the_response_rate_or_is_unknown() {
        let busy = SampledRates { answers: 4.0, ..SampledRates::default() };
        assert_eq!(drain_seconds(8, &busy), Some(2.0));
        assert_eq!(drain_seconds(0, &SampledRates::default()), Some(0.0));
        assert_eq!(drain_seconds(8, &SampledRates::default()), None);
    }
}
