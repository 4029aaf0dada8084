//! How many tests passed and failed, read from what the test runners print.

use std::fmt;
use std::ops::AddAssign;

/// Tests that passed and failed; a failed chore without tests of its own counts as one failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

impl Counts {
    /// One failure: something other than a test went wrong.
    pub(crate) const FAILURE: Counts = Counts { passed: 0, failed: 1 };

    /// Reads a summary line of cargo-nextest or of libtest; other lines are `None`.
    pub(crate) fn of_line(line: &str) -> Option<Counts> {
        // Indented, it is what cargo-nextest shows of a test's own output.
        let summary = match line.strip_prefix("test result: ") {
            Some(rest) => rest,
            None if line.trim_start().starts_with("Summary [") => line.split_once(" run: ")?.1,
            None => return None,
        };
        let mut counts = Counts::default();
        let mut last_number = 0;
        for word in summary.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()) {
            match word {
                "passed" => counts.passed += last_number,
                "failed" | "timed" => counts.failed += last_number,
                _ => last_number = word.parse().unwrap_or(last_number),
            }
        }
        Some(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(passed: u64, failed: u64) -> Option<Counts> {
        Some(Counts { passed, failed })
    }

    #[test]
    fn nextest_summaries_are_read() {
        let one = "     Summary [   0.322s] 1 test run: 1 passed, 117 skipped";
        assert_eq!(Counts::of_line(one), counts(1, 0));
        let line = "     Summary [   1.234s] 12 tests run: 9 passed (1 slow), 2 failed, 1 timed out, 3 skipped";
        assert_eq!(Counts::of_line(line), counts(9, 3));
        let line = "     Summary [   0.005s] 5 tests run: 5 passed, 0 skipped";
        assert_eq!(Counts::of_line(line), counts(5, 0));
        let line = "     Summary [   9.005s] 5/8 tests run: 4 passed, 1 failed, 0 skipped";
        assert_eq!(Counts::of_line(line), counts(4, 1));
    }

    #[test]
    fn libtest_summaries_are_read() {
        let line = "test result: FAILED. 4 passed; 2 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.01s";
        assert_eq!(Counts::of_line(line), counts(4, 2));
    }

    #[test]
    fn other_lines_count_nothing() {
        for line in [
            "",
            "    test result: FAILED. 0 passed; 1 failed",
            "test counts::tests::a ... ok",
            "error: test run failed",
            "3 passed, 2 failed",
        ] {
            assert_eq!(Counts::of_line(line), None, "{line}");
        }
    }
}
