//! Runs the checks in order, prints each result, and prints the totals as libtest does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use tokio::runtime::Runtime;

use crate::testbed::TestBed;

pub(crate) struct CheckRunner {
    runtime: Runtime,
    testbed: TestBed,
    /// Run only checks whose name contains one of these. Empty runs all.
    only: Vec<String>,
    passed: u32,
    failed: u32,
}

impl CheckRunner {
    pub(crate) fn new(runtime: Runtime, testbed: TestBed) -> CheckRunner {
        let only = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
        CheckRunner { runtime, testbed, only, passed: 0, failed: 0 }
    }

    /// Runs a check. A failure does not stop the following checks.
    pub(crate) fn check(&mut self, name: &str, check: impl AsyncFnOnce(&mut TestBed)) {
        if !self.only.is_empty() && !self.only.iter().any(|part| name.contains(part)) {
            return;
        }
        let start = Instant::now();
        let CheckRunner { runtime, testbed, .. } = self;
        let run = AssertUnwindSafe(|| {
            runtime.block_on(async {
                testbed.recover().await;
                check(testbed).await;
            });
        });
        let passed = catch_unwind(run).is_ok();
        let result = if passed { "ok" } else { "FAILED" };
        println!("test {name} ... {result} ({:.1} s)", start.elapsed().as_secs_f32());
        *(if passed { &mut self.passed } else { &mut self.failed }) += 1;
    }

    pub(crate) fn finish(self) -> ExitCode {
        let CheckRunner { passed, failed, .. } = self;
        let result = if failed == 0 { "ok" } else { "FAILED" };
        println!("test result: {result}. {passed} passed; {failed} failed");
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
