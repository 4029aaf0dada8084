//! Prints what a command is asked for.

use std::io::{ErrorKind, Write};

use anyhow::{Context, Result};

/// Writes to standard output. `print!` would panic where it cannot be written. A reader that has seen
/// enough, such as `head`, is no error.
///
/// # Errors
/// Standard output is closed, or its file system is full.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}
