//! How slow this machine is right now, so that a bound on a reaction holds on a busy one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Sleep and CPU work of one sample. Together they take a tenth of a core.
const SLEEP: Duration = Duration::from_millis(36);
const WORK: Duration = Duration::from_millis(4);

/// A thread that sleeps and works in turn, and records how much longer that takes than it should.
/// It stops when this value is dropped.
pub(crate) struct Pace {
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: Arc<AtomicBool>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    took: Duration,
}

/// What a period on this machine was like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slowness {
    /// Mean time of a sample over the time it takes on an idle machine: 1 is idle.
    pub(crate) factor: f64,
    /// How late the latest sample was.
    pub(crate) longest_stall: Duration,
}

impl Slowness {
    /// A bound for an idle machine, stretched to what this machine was.
    pub(crate) fn stretch(self, bound: Duration) -> Duration {
        bound.mul_f64(self.factor) + self.longest_stall
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Pace {
    pub(crate) fn start() -> Pace {
        let pace = Pace { samples: Arc::default(), stop: Arc::default() };
        let (samples, stop) = (Arc::clone(&pace.samples), Arc::clone(&pace.stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let at = Instant::now();
                std::thread::sleep(SLEEP);
                let end = cpu_time() + WORK;
                while cpu_time() < end {
                    std::hint::spin_loop();
                }
                let sample = Sample { at, took: at.elapsed() };
                samples.lock().expect("no reader panics").push(sample);
            }
        });
        pace
    }

    /// How slow the machine was from `from` until now.
    pub(crate) fn since(&self, from: Instant) -> Slowness {
        let samples = self.samples.lock().expect("the sampler does not panic");
        let took: Vec<Duration> =
            samples.iter().filter(|sample| sample.at >= from).map(|sample| sample.took).collect();
        let idle = SLEEP + WORK;
        let longest = took.iter().max().copied().unwrap_or(idle);
        let mean = took.iter().sum::<Duration>().as_secs_f64() / took.len().max(1) as f64;
        Slowness {
            factor: (mean / idle.as_secs_f64()).max(1.0),
            longest_stall: longest.saturating_sub(idle),
        }
    }
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every Linux has this clock").into()
}
