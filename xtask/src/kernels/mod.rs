//! `cargo xtask test kernels`: the eBPF programs on the kernels that users run, each booted under
//! QEMU with the static binary and the tests in a small initramfs.

mod build;
mod cpio;
mod debian;
mod guest;
mod image;
mod matrix;
mod modules;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::counts::Counts;
use debian::Kernel;
use guest::Guest;
use matrix::Matrix;

/// The oldest kernel that users run and the newest that Debian has. Every change must pass these.
const ENDS: [&str; 2] = ["5.10", "7"];
/// All kernels that are fetched, by the beginning of their version.
const ALL: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7"];

/// Maximum number of guests at the same time. Each takes one CPU of this machine.
const GUESTS: usize = 2;

/// Time from power-on to the end of the last test, after which a guest is ended by force. An idle
/// machine needs minutes; a busy one needs a multiple of that.
const LIMIT: Duration = Duration::from_secs(3_600);

/// Boots the kernels one by one, prints what each can do, and counts the tests that ran there.
///
/// # Errors
/// Something is missing, cannot be fetched or built; what goes wrong in a guest is in the counts.
pub(crate) fn run(all: bool, filter: Option<&str>) -> Result<Counts> {
    let start = Instant::now();
    let families: &[&str] = if all { &ALL } else { &ENDS };
    let store = debian::store(families)?;
    println!("kernels, tools and QEMU: {:.1} s", start.elapsed().as_secs_f64());
    let start = Instant::now();
    let programs = build::programs()?;
    println!("static programs: {:.1} s", start.elapsed().as_secs_f64());

    let base = image::base(&store, &programs, &arguments(all, filter))?;
    let reports = at_once(&store.kernels, |kernel| {
        let start = Instant::now();
        let report = boot(kernel, &store, &base)?;
        let took = start.elapsed();
        println!("Linux {}: {} ({:.1} s)", kernel.version, report.counts, took.as_secs_f64());
        anyhow::Ok(report)
    });
    let mut counts = Counts::default();
    let mut matrix = Matrix::default();
    for (kernel, report) in store.kernels.iter().zip(reports) {
        let report = report?;
        counts += report.counts;
        matrix.add(&kernel.version, report);
    }
    println!("\n{matrix}");
    Ok(counts)
}

fn boot(kernel: &Kernel, store: &debian::Store, base: &[u8]) -> Result<guest::Report> {
    println!("booting Linux {}", kernel.version);
    let initrd = image::with_modules(base, kernel, &store.xz())?;
    Guest::start(kernel, &initrd, &store.logs)?.report(LIMIT)
}

/// Runs `run` for each, as many at once as there are guests at once; results in their order.
fn at_once<'a, T, R>(all: &'a [T], run: impl Fn(&'a T) -> R + Sync) -> Vec<R>
where
    T: Sync,
    R: Send,
{
    let next = AtomicUsize::new(0);
    let done: Vec<Mutex<Option<R>>> = all.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..GUESTS {
            scope.spawn(|| {
                while let Some((item, done)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    all.get(index).zip(done.get(index))
                } {
                    let result = run(item);
                    *done.lock().expect("no thread panics while it holds a result") = Some(result);
                }
            });
        }
    });
    let results = done
        .into_iter()
        .map(|done| done.into_inner().expect("no thread panics while it holds a result"));
    results.map(|result| result.expect("each was run")).collect()
}

/// Tests that fill the matrix. The others take minutes on an emulated CPU.
const MATRIX: &str = "vm::";

/// Arguments of the test program in the guest.
fn arguments(all: bool, filter: Option<&str>) -> Vec<String> {
    let word = filter.or((!all).then_some(MATRIX));
    word.map(ToOwned::to_owned).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_runs_once_and_results_keep_their_order() {
        let ran = AtomicUsize::new(0);
        let results = at_once(&[3, 1, 4, 1, 5], |number| {
            ran.fetch_add(1, Ordering::Relaxed);
            number * 2
        });
        assert_eq!((results, ran.into_inner()), (vec![6, 2, 8, 2, 10], 5));
    }
}
