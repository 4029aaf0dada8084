//! [`InjectedFault`]: a fault that is injected into a simulated fleet for a part of the time.

use std::str::FromStr;

/// One fault. Workers are numbered from 0, prefills first. Times are shares of the period in which
/// requests arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InjectedFault {
    pub effect: FaultEffect,
    pub from: f64,
    pub until: f64,
}

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FaultEffect {
    /// The worker computes this many times as slowly.
    Slow { worker: usize, times: f64 },
    /// Other traffic uses this share of the worker's NIC.
    Busy { worker: usize, share: f64 },
    /// The path between two workers has this share of a NIC's bandwidth.
    Path { prefill: usize, decode: usize, share: f64 },
    /// The worker dies and does not return.
    Dies { worker: usize },
}

impl InjectedFault {
    /// Returns the highest worker number that the fault names.
    pub fn worker(&self) -> usize {
        match self.effect {
            FaultEffect::Slow { worker, .. }
            | FaultEffect::Busy { worker, .. }
            | FaultEffect::Dies { worker } => worker,
            FaultEffect::Path { prefill, decode, .. } => prefill.max(decode),
        }
    }

    /// Returns the prefill and the decode of a fault of a path.
    pub fn path(&self) -> Option<(usize, usize)> {
        match self.effect {
            FaultEffect::Path { prefill, decode, .. } => Some((prefill, decode)),
            FaultEffect::Slow { .. } | FaultEffect::Busy { .. } | FaultEffect::Dies { .. } => None,
        }
    }
}

impl FromStr for InjectedFault {
    type Err = String;

    /// Reads `slow:WORKER:TIMES`, `busy:WORKER:SHARE`, `path:PREFILL:DECODE:SHARE` or
    /// `dies:WORKER`, each optionally followed by `@FROM-UNTIL`; without it the fault lasts the whole time.
    fn from_str(text: &str) -> Result<InjectedFault, String> {
        let bad = || {
            format!(
                "`{text}` is none of slow:WORKER:TIMES, busy:WORKER:SHARE, \
                 path:PREFILL:DECODE:SHARE, dies:WORKER (each with @FROM-UNTIL, shares of the time)"
            )
        };
        let (what, when) = text.split_once('@').unwrap_or((text, "0-1"));
        let (from, until) = when.split_once('-').unwrap_or((when, "1"));
        let share = |text: &str| text.parse().ok().filter(|x: &f64| (0.0..=1.0).contains(x));
        let (from, until) = (share(from).ok_or_else(bad)?, share(until).ok_or_else(bad)?);
        if from > until {
            return Err(bad());
        }
        let number = |text: &str| text.parse::<usize>().map_err(|_| bad());
        // A NIC without any bandwidth left would be a dead worker, which is another fault.
        let part = |text: &str| share(text).ok_or_else(bad);
        let effect = match what.split(':').collect::<Vec<_>>()[..] {
            ["slow", worker, times] => {
                let times = times.parse().ok().filter(|x: &f64| (0.1..=100.0).contains(x));
                FaultEffect::Slow { worker: number(worker)?, times: times.ok_or_else(bad)? }
            }
            ["busy", worker, share] => {
                FaultEffect::Busy { worker: number(worker)?, share: part(share)?.min(0.99) }
            }
            ["path", prefill, decode, share] => {
                let share = part(share)?.max(0.001);
                FaultEffect::Path { prefill: number(prefill)?, decode: number(decode)?, share }
            }
            ["dies", worker] => FaultEffect::Dies { worker: number(worker)? },
            _ => return Err(bad()),
        };
        Ok(InjectedFault { effect, from, until })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_parse_and_an_error_lists_the_syntax() {
        let slow: InjectedFault = "slow:3:2.5@0.2-0.6".parse().unwrap();
        assert_eq!(slow.effect, FaultEffect::Slow { worker: 3, times: 2.5 });
        assert_eq!((slow.from, slow.until), (0.2, 0.6));
        assert!("path:0:9:0.1".parse::<InjectedFault>().is_ok());
        for wrong in
            ["", "slow:1", "dies:x", "busy:1:2", "slow:1:2@3-4", "slow:1:2@0.6-0.2", "slow:1:NaN"]
        {
            assert!(wrong.parse::<InjectedFault>().unwrap_err().contains("slow:WORKER"), "{wrong}");
        }
    }
}
