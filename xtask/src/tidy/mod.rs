//! `cargo xtask tidy`: the house style, checked by machine.

mod blank;
mod documents;
mod doors;
mod sizes;
mod tree;
mod words;

use anyhow::{Result, bail};

use crate::workspace;
use tree::{Problem, Tree};

type Check = fn(&Tree) -> Vec<Problem>;

const CHECKS: [Check; 11] = [
    sizes::opening_sentence,
    sizes::file_length,
    sizes::function_length,
    words::file_names,
    words::banned_words,
    words::unfinished_code,
    words::lock_file_sources,
    doors::one_door_each,
    documents::architecture,
    documents::links,
    documents::decisions_and_commands,
];

/// Runs every check over the workspace's files.
///
/// # Errors
/// Names every file and line that breaks a rule.
pub(crate) fn run() -> Result<()> {
    let tree = Tree::read(workspace::root())?;
    let problems: Vec<Problem> = CHECKS.iter().flat_map(|check| check(&tree)).collect();
    for problem in &problems {
        println!("{problem}");
    }
    if !problems.is_empty() {
        bail!("{} breaks of the house style", problems.len());
    }
    Ok(())
}
