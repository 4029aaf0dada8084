//! The parts of a long chore: each is timed and counted, and one table at the end shows them.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::counts::Counts;

/// Parts that have run, in their order.
#[derive(Debug, Default)]
pub(crate) struct Parts(Vec<Part>);

/// One part: its name, how long it took, and its result.
#[derive(Debug)]
struct Part {
    name: String,
    took: Duration,
    result: PartResult,
}

#[derive(Debug, PartialEq, Eq)]
enum PartResult {
    /// It ran; a chore without tests counts none.
    Ran(Counts),
    /// It could not run or broke off.
    Broken,
    /// It did not run: it was not asked for, or this machine lacks what it needs.
    LeftOut,
}

/// The last line of a long chore: the counts, and what they do not cover.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) counts: Counts,
    broken: Vec<String>,
    left_out: Vec<String>,
}

impl Parts {
    /// Runs a part. An error is printed and counts as one failure, so that the parts after it run.
    pub(crate) fn run(&mut self, name: &str, run: impl FnOnce() -> Result<Counts>) {
        println!("== {name}");
        let start = Instant::now();
        let result = run().map_or_else(
            |error| {
                println!("{name}: {error:#}");
                PartResult::Broken
            },
            PartResult::Ran,
        );
        self.0.push(Part { name: name.to_owned(), took: start.elapsed(), result });
    }

    /// Runs a chore that counts no tests.
    pub(crate) fn chore(&mut self, name: &str, run: impl FnOnce() -> Result<()>) {
        self.run(name, || run().map(|()| Counts::default()));
    }

    /// Notes a part that does not run, so that the last line names it.
    pub(crate) fn left_out(&mut self, name: &str) {
        let result = PartResult::LeftOut;
        self.0.push(Part { name: name.to_owned(), took: Duration::ZERO, result });
    }

    /// Whether no part has run a test, and none is broken.
    pub(crate) fn ran_nothing(&self) -> bool {
        let ran = |part: &Part| match part.result {
            PartResult::Ran(counts) => counts != Counts::default(),
            PartResult::Broken => true,
            PartResult::LeftOut => false,
        };
        !self.0.iter().any(ran)
    }

    /// Prints the table, and adds up its rows.
    pub(crate) fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        println!();
        for Part { name, took, result } in &self.0 {
            let (verdict, tests) = match result {
                PartResult::Ran(counts) if *counts == Counts::default() => ("ok", String::new()),
                PartResult::Ran(counts) if counts.failed == 0 => ("ok", counts.to_string()),
                PartResult::Ran(counts) => ("FAILED", counts.to_string()),
                PartResult::Broken => ("FAILED", String::new()),
                PartResult::LeftOut => ("left out", String::new()),
            };
            println!("{name:<14} {:>7.1} s  {verdict:<8} {tests}", took.as_secs_f64());
            match result {
                PartResult::Ran(counts) => summary.counts += *counts,
                PartResult::Broken => {
                    summary.counts += Counts::FAILURE;
                    summary.broken.push(name.clone());
                }
                PartResult::LeftOut => summary.left_out.push(name.clone()),
            }
        }
        summary
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.counts)?;
        if !self.broken.is_empty() {
            write!(f, "; not run to the end: {}", self.broken.join(", "))?;
        }
        if !self.left_out.is_empty() {
            write!(f, "; left out: {}", self.left_out.join(", "))?;
        }
        Ok(())
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
        assert_eq!(parts.summary().to_string(), "3 passed, 1 failed; not run to the end: breaks");
    }

    #[test]
    fn parts_that_counted_nothing_ran_nothing() {
        let mut parts = Parts::default();
        parts.run("test doc", || Ok(Counts::default()));
        parts.left_out("test kernel");
        assert!(parts.ran_nothing());
        parts.run("test unit", || Ok(Counts { passed: 1, failed: 0 }));
        assert!(!parts.ran_nothing());
    }

    #[test]
    fn the_last_line_names_what_was_left_out() {
        let mut parts = Parts::default();
        parts.run("unit", || Ok(Counts { passed: 2, failed: 0 }));
        parts.left_out("test kernel");
        assert_eq!(parts.summary().to_string(), "2 passed, 0 failed; left out: test kernel");
    }
}
