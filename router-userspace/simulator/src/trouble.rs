//! [`Trouble`]: what goes wrong in a simulated fleet, and when.

use std::str::FromStr;

/// One thing that is not as it should be. Workers are numbered from 0, prefills first; times are
/// shares of the time in which requests arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trouble {
    pub kind: Kind,
    pub from: f64,
    pub until: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Computes so many times as slowly.
    Slow { worker: usize, times: f64 },
    /// Other traffic takes this share of its NIC.
    Busy { worker: usize, share: f64 },
    /// The path between two carries this share of a NIC's speed.
    Path { prefill: usize, decode: usize, share: f64 },
    /// Dies, and stays dead.
    Dies { worker: usize },
}

impl Trouble {
    /// The highest number of a worker that it names.
    pub fn worker(&self) -> usize {
        match self.kind {
            Kind::Slow { worker, .. } | Kind::Busy { worker, .. } | Kind::Dies { worker } => worker,
            Kind::Path { prefill, decode, .. } => prefill.max(decode),
        }
    }
}

impl Trouble {
    /// The prefill and the decode between which it lies, where it lies between two.
    pub fn path(&self) -> Option<(usize, usize)> {
        match self.kind {
            Kind::Path { prefill, decode, .. } => Some((prefill, decode)),
            Kind::Slow { .. } | Kind::Busy { .. } | Kind::Dies { .. } => None,
        }
    }
}

impl FromStr for Trouble {
    type Err = String;

    /// Reads `slow:WORKER:TIMES`, `busy:WORKER:SHARE`, `path:PREFILL:DECODE:SHARE` or
    /// `dies:WORKER`, each with `@FROM-UNTIL` after it where it is not for the whole time.
    fn from_str(text: &str) -> Result<Trouble, String> {
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
        let number = |text: &str| text.parse::<usize>().map_err(|_| bad());
        // Nothing left of a NIC would be a dead worker, which is another trouble.
        let part = |text: &str| share(text).ok_or_else(bad);
        let kind = match what.split(':').collect::<Vec<_>>()[..] {
            ["slow", worker, times] => {
                let times = times.parse().ok().filter(|x: &f64| (0.1..=100.0).contains(x));
                Kind::Slow { worker: number(worker)?, times: times.ok_or_else(bad)? }
            }
            ["busy", worker, share] => {
                Kind::Busy { worker: number(worker)?, share: part(share)?.min(0.99) }
            }
            ["path", prefill, decode, share] => {
                let share = part(share)?.max(0.001);
                Kind::Path { prefill: number(prefill)?, decode: number(decode)?, share }
            }
            ["dies", worker] => Kind::Dies { worker: number(worker)? },
            _ => return Err(bad()),
        };
        Ok(Trouble { kind, from, until })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_are_read_and_wrong_ones_told_how_to_write_them() {
        let slow: Trouble = "slow:3:2.5@0.2-0.6".parse().unwrap();
        assert_eq!(slow.kind, Kind::Slow { worker: 3, times: 2.5 });
        assert_eq!((slow.from, slow.until), (0.2, 0.6));
        assert!("path:0:9:0.1".parse::<Trouble>().is_ok());
        for wrong in ["", "slow:1", "dies:x", "busy:1:2", "slow:1:2@3-4", "slow:1:NaN"] {
            assert!(wrong.parse::<Trouble>().unwrap_err().contains("slow:WORKER"), "{wrong}");
        }
    }
}
