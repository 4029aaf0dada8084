//! [`WriteReport`]: what prevents a gateway from writing statuses and Services, as problems of the
//! fleet and as metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use router_core::fleet::Problem;
use tokio::sync::watch;

use super::index::Source;
use crate::metrics::Metrics;

/// The subjects of failed writes, and what is wrong with each. A problem is logged when it is new or
/// different, so a repeated error is logged once.
pub(super) struct WriteReport {
    leader: Gauge,
    failures: Counter,
    problems: BTreeMap<Arc<str>, Problem>,
    sender: watch::Sender<Vec<Problem>>,
}

impl WriteReport {
    pub(super) fn new(metrics: &Metrics) -> (WriteReport, watch::Receiver<Vec<Problem>>) {
        let (sender, receiver) = watch::channel(Vec::new());
        let report = WriteReport {
            leader: metrics.leader.clone(),
            failures: metrics.status_write_failures.clone(),
            problems: BTreeMap::new(),
            sender,
        };
        (report, receiver)
    }

    pub(super) fn set_leader(&self, leader: bool) {
        self.leader.set(leader.into());
    }

    /// A status could not be written.
    pub(super) fn status_failed(&mut self, object: &str, error: &dyn std::fmt::Display) {
        self.failures.inc();
        let reason = format!("cannot write the status of {object}: {error}");
        self.failed(object, "StatusNotWritten", reason);
    }

    /// The Lease could not be acquired or renewed.
    pub(super) fn lease_failed(&mut self, lease: &str, error: &str) {
        let reason = format!(
            "cannot acquire or renew the Lease {lease}: {error}; this replica writes no statuses and no \
             Services"
        );
        self.failed(lease, "NotLeading", reason);
    }

    /// The subject was written.
    pub(super) fn succeeded(&mut self, subject: &str) {
        if self.problems.remove(subject).is_some() {
            self.send();
        }
    }

    /// Forgets statuses that this replica no longer has to write.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        let before = self.problems.len();
        self.problems
            .retain(|subject, problem| problem.code != "StatusNotWritten" || keep(subject));
        if self.problems.len() != before {
            self.send();
        }
    }

    fn failed(&mut self, subject: &str, code: &'static str, reason: String) {
        if self.problems.get(subject).is_some_and(|known| *known.reason == *reason) {
            return;
        }
        let problem = Problem {
            source: Source::Cluster.name(),
            document: None,
            // Not the object itself: its conditions are about what the operator wrote.
            object: None,
            field: None,
            code,
            reason: reason.into(),
        };
        self.problems.insert(subject.into(), problem);
        self.send();
    }

    fn send(&self) {
        // The receiver is dropped at the end of the process.
        _ = self.sender.send(self.problems.values().cloned().collect());
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn a_failure_is_a_problem_until_a_write_succeeds_and_a_repeated_one_changes_nothing() {
        let (mut report, mut problems) = WriteReport::new(&Metrics::new(&mut Registry::default()));
        report.lease_failed("lease", "forbidden");
        assert!(problems.has_changed().unwrap());
        let codes = |all: &[Problem]| all.iter().map(|one| one.code).collect::<Vec<_>>();
        assert_eq!(codes(&problems.borrow_and_update()), ["NotLeading"]);
        report.lease_failed("lease", "forbidden");
        assert!(!problems.has_changed().unwrap());
        report.lease_failed("lease", "timeout");
        assert!(problems.borrow_and_update()[0].reason.contains("timeout"));
        report.succeeded("lease");
        assert!(problems.borrow_and_update().is_empty());
    }

    #[test]
    fn a_status_that_cannot_be_written_is_counted_each_time() {
        let metrics = Metrics::new(&mut Registry::default());
        let (mut report, problems) = WriteReport::new(&metrics);
        let error = "403 Forbidden";
        report.status_failed("Gateway default/g", &error);
        report.status_failed("Gateway default/g", &error);
        assert_eq!(metrics.status_write_failures.get(), 2);
        assert_eq!(problems.borrow().len(), 1);
        report.retain(|_| false);
        assert!(problems.borrow().is_empty());
    }
}
