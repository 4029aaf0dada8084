//! The parts of a long chore: each timed, each with what it counted, one table at the end.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::counts::Counts;

/// Parts that have run, in their order.
#[derive(Debug, Default)]
pub(crate) struct Parts(Vec<Part>);

/// One part: its name, how long it took, what it counted.
#[derive(Debug)]
struct Part {
    name: String,
    took: Duration,
    counts: Counts,
}

impl Parts {
    /// Runs a part. An error is printed and counts as one failure, so that the parts after it run.
    pub(crate) fn run(&mut self, name: &str, run: impl FnOnce() -> Result<Counts>) {
        println!("== {name}");
        let start = Instant::now();
        let counts = run().unwrap_or_else(|error| {
            println!("{name}: {error:#}");
            Counts::FAILURE
        });
        self.0.push(Part { name: name.to_owned(), took: start.elapsed(), counts });
    }

    /// As [`Parts::run`] for a chore that counts no tests.
    pub(crate) fn chore(&mut self, name: &str, run: impl FnOnce() -> Result<()>) {
        self.run(name, || run().map(|()| Counts::default()));
    }

    /// Prints the table, and sums up.
    pub(crate) fn told(&self) -> Counts {
        let mut total = Counts::default();
        println!();
        for Part { name, took, counts } in &self.0 {
            let verdict = if counts.failed == 0 { "ok" } else { "FAILED" };
            let tests =
                if *counts == Counts::default() { String::new() } else { counts.to_string() };
            println!("{name:<14} {:>7.1} s  {verdict:<7} {tests}", took.as_secs_f64());
            total += *counts;
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_fails_counts_once_and_the_next_one_runs() {
        let mut parts = Parts::default();
        parts.chore("breaks", || anyhow::bail!("on purpose"));
        parts.run("counts", || Ok(Counts { passed: 3, failed: 0 }));
        assert_eq!(parts.told(), Counts { passed: 3, failed: 1 });
    }
}
