//! What each kernel can do, side by side, as docs/reference/linux.md shows it.

use std::fmt;

use super::guest::Report;

/// Kernels are columns, findings are rows.
#[derive(Debug, Default)]
pub(super) struct Matrix {
    kernels: Vec<(String, Report)>,
}

impl Matrix {
    pub(super) fn add(&mut self, version: &str, report: Report) {
        // `6.1.0-56-amd64` is 6.1.0-56: all are amd64.
        let version = version.strip_suffix("-amd64").unwrap_or(version);
        self.kernels.push((version.to_owned(), report));
    }

    /// Names of all findings, sorted.
    fn rows(&self) -> Vec<&str> {
        let mut rows: Vec<&str> = Vec::new();
        for (what, _) in self.kernels.iter().flat_map(|(_, report)| &report.findings) {
            if !rows.contains(&what.as_str()) {
                rows.push(what);
            }
        }
        rows.sort_unstable();
        rows
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line =
            |f: &mut fmt::Formatter<'_>, cells: &[String]| writeln!(f, "| {} |", cells.join(" | "));
        let each = |cell: &dyn Fn(&Report) -> String| -> Vec<String> {
            self.kernels.iter().map(|(_, report)| cell(report)).collect()
        };
        let versions = self.kernels.iter().map(|(version, _)| version.clone()).collect();
        line(f, &[vec!["Linux".to_owned()], versions].concat())?;
        line(f, &vec!["---".to_owned(); self.kernels.len() + 1])?;
        for row in self.rows() {
            let found = each(&|report| {
                let found = report.findings.iter().find(|(what, _)| what == row);
                found.map_or("?".to_owned(), |(_, found)| found.clone())
            });
            line(f, &[vec![row.to_owned()], found].concat())?;
        }
        let tests = each(&|report| match &report.failure {
            Some(failure) => format!("{} ({failure})", report.counts),
            None => report.counts.to_string(),
        });
        line(f, &[vec!["tests".to_owned()], tests].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::Counts;

    #[test]
    fn a_kernel_without_a_finding_has_a_question_mark() {
        let mut matrix = Matrix::default();
        let findings = vec![("tc".to_owned(), "clsact".to_owned())];
        let counts = Counts { passed: 2, failed: 0 };
        matrix.add("5.10.0-46-amd64", Report { counts, findings, failure: None });
        let failure = Some("it ended before its tests".to_owned());
        matrix.add("7.3", Report { counts: Counts::FAILURE, findings: Vec::new(), failure });
        assert_eq!(
            matrix.to_string(),
            "| Linux | 5.10.0-46 | 7.3 |\n| --- | --- | --- |\n| tc | clsact | ? |\n\
             | tests | 2 passed, 0 failed | 0 passed, 1 failed (it ended before its tests) |\n"
        );
    }
}
