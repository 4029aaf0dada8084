//! [`WriteReport`]: what prevents a gateway from writing statuses and Services, as problems of the
//! fleet and as metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use router_core::fleet::Problem;
use tokio::sync::watch;

use super::index::Source;
use crate::metrics::Metrics;

const STATUS: &str = "StatusNotWritten";
const SERVICE: &str = "ServiceNotWritten";

/// The subjects of failed writes, and what is wrong with each. A problem is logged when it is new or
/// different, so a repeated error is logged once.
pub(super) struct WriteReport {
    leader: Gauge,
    failures: Counter,
    problems: Mutex<BTreeMap<Arc<str>, Problem>>,
    sender: watch::Sender<Vec<Problem>>,
}

impl WriteReport {
    pub(super) fn new(metrics: &Metrics) -> (WriteReport, watch::Receiver<Vec<Problem>>) {
        let (sender, receiver) = watch::channel(Vec::new());
        let report = WriteReport {
            leader: metrics.leader.clone(),
            failures: metrics.status_write_failures.clone(),
            problems: Mutex::default(),
            sender,
        };
        (report, receiver)
    }

    pub(super) fn set_leader(&self, leader: bool) {
        self.leader.set(leader.into());
    }

    /// A status could not be written.
    pub(super) fn status_failed(&self, object: &str, error: &dyn std::fmt::Display) {
        self.failures.inc();
        let reason = format!("cannot write the status of {object}: {error}");
        self.failed(object, STATUS, reason);
    }

    /// Services of Gateways could not be listed, or one of them could not be written.
    pub(super) fn service_failed(&self, service: &str, error: &dyn std::fmt::Display) {
        self.failed(service, SERVICE, format!("cannot read or write {service}: {error}"));
    }

    /// The Lease could not be acquired or renewed.
    pub(super) fn lease_failed(&self, lease: &str, error: &str) {
        let reason = format!(
            "cannot acquire or renew the Lease {lease}: {error}; this replica writes no statuses and no \
             Services"
        );
        self.failed(lease, "NotLeading", reason);
    }

    /// The subject was written.
    pub(super) fn succeeded(&self, subject: &str) {
        let mut problems = self.problems.lock();
        if problems.remove(subject).is_some() {
            self.send(&problems);
        }
    }

    /// Forgets statuses that no longer have to be written.
    pub(super) fn retain_statuses(&self, keep: impl Fn(&str) -> bool) {
        self.retain(STATUS, keep);
    }

    /// Forgets Services that no longer have to be written.
    pub(super) fn retain_services(&self, keep: impl Fn(&str) -> bool) {
        self.retain(SERVICE, keep);
    }

    fn retain(&self, code: &str, keep: impl Fn(&str) -> bool) {
        let mut problems = self.problems.lock();
        let before = problems.len();
        problems.retain(|subject, problem| problem.code != code || keep(subject));
        if problems.len() != before {
            self.send(&problems);
        }
    }

    fn failed(&self, subject: &str, code: &'static str, reason: String) {
        let mut problems = self.problems.lock();
        if problems.get(subject).is_some_and(|known| *known.reason == *reason) {
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
        problems.insert(subject.into(), problem);
        self.send(&problems);
    }

    fn send(&self, problems: &BTreeMap<Arc<str>, Problem>) {
        // The receiver is dropped at the end of the process.
        _ = self.sender.send(problems.values().cloned().collect());
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn a_failure_is_a_problem_until_a_write_succeeds_and_a_repeated_one_changes_nothing() {
        let (report, mut problems) = WriteReport::new(&Metrics::new(&mut Registry::default()));
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
        let (report, problems) = WriteReport::new(&metrics);
        let error = "403 Forbidden";
        report.status_failed("Gateway default/g", &error);
        report.status_failed("Gateway default/g", &error);
        assert_eq!(metrics.status_write_failures.get(), 2);
        assert_eq!(problems.borrow().len(), 1);
        report.service_failed("Service n/s", &error);
        report.retain_statuses(|_| false);
        assert_eq!(problems.borrow()[0].code, "ServiceNotWritten");
        report.retain_services(|_| false);
        assert!(problems.borrow().is_empty());
    }
}
