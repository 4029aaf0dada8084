//! [`Pace`]: how slowly a client may send the body of its request.

use std::time::Duration;

use tokio::time::Instant;

/// Minimum rate in bytes per second, over the whole body: Apache's default. A client that sends one byte
/// every few seconds would otherwise hold an engine's connection for a day.
const MIN_RATE: u64 = 500;

/// The time that a client has for its body: a limit for each piece, and for all pieces together that limit
/// plus the time that their bytes take at [`MIN_RATE`]. Only time in which the client is waited for
/// counts.
#[derive(Debug)]
pub(crate) struct Pace {
    idle: Duration,
    waited: Duration,
    received: u64,
}

impl Pace {
    /// `idle` is the limit for one piece.
    pub(crate) fn new(idle: Duration) -> Pace {
        Pace { idle, waited: Duration::ZERO, received: 0 }
    }

    /// When the next piece must have come, if it is waited for since `start`.
    pub(crate) fn deadline(&self, start: Instant) -> Instant {
        let earned = Duration::from_secs(self.received / MIN_RATE);
        let left = self.idle.saturating_add(earned).saturating_sub(self.waited);
        // Far away, if the limit is beyond what a clock holds.
        start.checked_add(left.min(self.idle)).unwrap_or(start + Duration::from_secs(86_400))
    }

    /// A piece of that many bytes has come, which was waited for since `start`.
    pub(crate) fn received(&mut self, bytes: usize, start: Instant) {
        self.received += bytes as u64;
        self.waited += start.elapsed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_runs_out_of_time_and_a_steady_one_does_not() {
        let idle = Duration::from_secs(30);
        let pieces = |bytes, pause| {
            let mut pace = Pace::new(idle);
            async move {
                for piece in 0.. {
                    let start = Instant::now();
                    if piece == 1_000 || pace.deadline(start) < start + pause {
                        return piece;
                    }
                    tokio::time::advance(pause).await;
                    pace.received(bytes, start);
                }
                0
            }
        };
        assert_eq!(pieces(1, Duration::from_secs(5)).await, 6, "one byte every five seconds");
        assert_eq!(pieces(10_000, Duration::from_secs(5)).await, 1_000, "2000 bytes a second");
        assert_eq!(pieces(1 << 20, Duration::from_secs(31)).await, 0, "a pause over the limit");
    }
}
