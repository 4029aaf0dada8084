//! The checks in their order, each told as it ends, counted at the end as libtest counts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use tokio::runtime::Runtime;

use crate::world::World;

pub(crate) struct Report {
    runtime: Runtime,
    world: World,
    /// Only checks whose name contains one of these; all where there is none.
    only: Vec<String>,
    passed: u32,
    failed: u32,
}

impl Report {
    pub(crate) fn new(runtime: Runtime, world: World) -> Report {
        let only = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
        Report { runtime, world, only, passed: 0, failed: 0 }
    }

    /// Runs a check; a failed one does not keep the next from running.
    pub(crate) fn check(&mut self, name: &str, check: impl AsyncFnOnce(&mut World)) {
        if !self.only.is_empty() && !self.only.iter().any(|part| name.contains(part)) {
            return;
        }
        let start = Instant::now();
        let Report { runtime, world, .. } = self;
        let run = AssertUnwindSafe(|| {
            runtime.block_on(async {
                world.heal().await;
                check(world).await;
            });
        });
        let passed = catch_unwind(run).is_ok();
        let result = if passed { "ok" } else { "FAILED" };
        println!("test {name} ... {result} ({:.1} s)", start.elapsed().as_secs_f32());
        *(if passed { &mut self.passed } else { &mut self.failed }) += 1;
    }

    pub(crate) fn finish(self) -> ExitCode {
        let Report { passed, failed, .. } = self;
        let result = if failed == 0 { "ok" } else { "FAILED" };
        println!("test result: {result}. {passed} passed; {failed} failed");
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
