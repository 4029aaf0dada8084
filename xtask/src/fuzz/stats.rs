//! [`RunStats`]: what libFuzzer prints of a run.

use std::fmt;
use std::time::Duration;

/// Maximum number of lines of a failure that are shown.
const MAX_SHOWN: usize = 40;

/// The columns of [`RunStats`].
pub(super) const HEADER: &str = "      runs   runs/s  coverage  kept  slowest s  peak MiB";

/// The figures of one target, over all its jobs.
#[derive(Debug, Default)]
pub(super) struct RunStats {
    runs: u64,
    pub(super) took: Duration,
    /// Edges of the program that were reached.
    coverage: u64,
    /// Inputs that reached something new.
    kept: u64,
    slowest_s: u64,
    peak_mib: u64,
    /// What failed, and the file with its input.
    pub(super) failure: Option<String>,
    shown: usize,
}

impl RunStats {
    /// Reads one line of output. Those about a failure are shown.
    pub(super) fn read(&mut self, line: &str) {
        if let Some((name, value)) = line.strip_prefix("stat::").and_then(|l| l.split_once(':')) {
            let value = value.trim().parse().unwrap_or(0);
            match name {
                "number_of_executed_units" => self.runs = value,
                "new_units_added" => self.kept = value,
                "slowest_unit_time_sec" => self.slowest_s = value,
                "peak_rss_mb" => self.peak_mib = value,
                _ => {}
            }
        } else if let Some((_, coverage)) = line.split_once(" cov: ") {
            let digits = coverage.split(' ').next().unwrap_or_default();
            self.coverage = digits.parse().unwrap_or(self.coverage);
        } else if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.failure = Some(format!("fails on {}", path.trim()));
        } else if !is_progress(line) && self.shown < MAX_SHOWN {
            self.shown += 1;
            eprintln!("{line}");
        }
    }

    /// Adds another job of the same target.
    pub(super) fn add(&mut self, job: RunStats) {
        self.runs += job.runs;
        self.kept += job.kept;
        self.coverage = self.coverage.max(job.coverage);
        self.slowest_s = self.slowest_s.max(job.slowest_s);
        self.peak_mib = self.peak_mib.max(job.peak_mib);
        self.failure = self.failure.take().or(job.failure);
    }
}

/// Whether a line is one of those that every run prints.
fn is_progress(line: &str) -> bool {
    // The last is a word of the dictionary that libFuzzer recommends.
    let starts = ["INFO:", "#", "Done ", "\tNEW_", "\""];
    line.trim().is_empty() || starts.iter().any(|start| line.starts_with(start))
}

impl fmt::Display for RunStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_second = self.runs as f64 / self.took.as_secs_f64().max(1e-3);
        let RunStats { runs, coverage, kept, slowest_s, peak_mib, .. } = self;
        write!(
            f,
            "{runs:>10} {per_second:>8.0} {coverage:>9} {kept:>5} {slowest_s:>10} {peak_mib:>9}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_a_run_are_read_and_added() {
        let mut all = RunStats::default();
        for runs in ["7", "5"] {
            let mut job = RunStats::default();
            for line in [
                "INFO: Seed: 1",
                "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 44Mb",
                "#1000\tDONE   cov: 345 ft: 346 corp: 9/90b lim: 4 exec/s: 500 rss: 45Mb",
                &format!("stat::number_of_executed_units: {runs}"),
                "stat::average_exec_per_sec:     500",
                "stat::new_units_added:          9",
                "stat::slowest_unit_time_sec:    1",
                "stat::peak_rss_mb:              45",
            ] {
                job.read(line);
            }
            all.add(job);
        }
        assert_eq!((all.runs, all.kept, all.coverage), (12, 18, 345));
        assert_eq!((all.slowest_s, all.peak_mib), (1, 45));
        assert!(all.failure.is_none());
    }

    #[test]
    fn only_what_is_about_a_failure_is_shown() {
        for line in [
            "INFO: Seed: 1",
            "#2\tNEW    cov: 1",
            "\tNEW_FUNC[1/2]: 0x1",
            "###### End #",
            "\"\\001$\" # Uses: 24",
            "",
        ] {
            assert!(is_progress(line), "{line}");
        }
        for line in
            ["thread 'main' panicked at a.rs:1:1:", "accepted, but not JSON", "==1== ERROR: x"]
        {
            assert!(!is_progress(line), "{line}");
        }
    }

    #[test]
    fn a_failure_names_the_file_with_its_input() {
        let mut stats = RunStats::default();
        stats.read("artifact_prefix='a/'; Test unit written to a/crash-0123");
        stats.add(RunStats::default());
        assert_eq!(stats.failure.as_deref(), Some("fails on a/crash-0123"));
    }
}
