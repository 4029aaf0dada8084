//! Steps of a long chore: each prints its name when it starts and its time when it ends.

use std::time::Instant;

use anyhow::{Context, Result};

/// Runs a step between a line with its name and one with the time that it took.
///
/// # Errors
/// The step's own, with its name.
pub(crate) fn step<T>(name: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("{name} ...");
    let start = Instant::now();
    let result = run().with_context(|| name.to_owned())?;
    println!("{name}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(result)
}
