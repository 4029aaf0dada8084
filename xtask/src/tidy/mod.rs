//! `cargo xtask tidy`: the style rules that a machine can check.

mod blank;
mod documents;
mod language;
mod restrictions;
mod sizes;
mod tree;
mod words;

use anyhow::{Result, bail};

use crate::workspace;
use tree::{Problem, Tree};

type Check = fn(&Tree) -> Vec<Problem>;

const CHECKS: [Check; 15] = [
    sizes::opening_sentence,
    sizes::file_length,
    language::idioms,
    language::one_meaning_a_type,
    words::file_names,
    words::banned_words,
    words::unfinished_code,
    words::lock_file_sources,
    restrictions::restricted_libraries,
    documents::architecture,
    documents::links,
    documents::chapters,
    documents::reasons,
    documents::conformance,
    documents::decisions_and_commands,
];

/// Runs every check over the workspace's files.
///
/// # Errors
/// Names every file and line that breaks a rule.
pub(crate) fn run() -> Result<()> {
    report(&CHECKS)
}

/// Runs the checks of links and chapters alone.
///
/// # Errors
/// Names every link that leads nowhere and every page outside the book.
pub(crate) fn documents() -> Result<()> {
    report(&[documents::links, documents::chapters])
}

fn report(checks: &[Check]) -> Result<()> {
    let tree = Tree::read(workspace::root())?;
    let problems: Vec<Problem> = checks.iter().flat_map(|check| check(&tree)).collect();
    for problem in &problems {
        println!("{problem}");
    }
    if !problems.is_empty() {
        bail!("{} violations of the style", problems.len());
    }
    Ok(())
}
