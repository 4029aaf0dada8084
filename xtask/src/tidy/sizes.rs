//! How files open and how long they are. Clippy limits functions (`clippy.toml`).

use super::tree::{Problem, Tree};

const MAX_LINES: usize = 500;

/// Files that may be longer, each with its reason.
const LONG_FILES: [(&str, &str); 0] = [];

/// Every Rust file says in its first line what lives there.
pub(super) fn opening_sentence(tree: &Tree) -> Vec<Problem> {
    tree.rust()
        .filter(|(_, source)| !source.text.starts_with("//! "))
        .map(|(path, _)| Problem::new(path, 1, "a file opens with `//!` and what lives here"))
        .collect()
}

/// No file is longer than the limit without a reason.
pub(super) fn file_length(tree: &Tree) -> Vec<Problem> {
    file_length_with(tree, &LONG_FILES)
}

fn file_length_with(tree: &Tree, excused: &[(&str, &str)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, source) in tree.rust() {
        let length = source.text.lines().count();
        let reason = excused.iter().find(|(excused, _)| *excused == path);
        match reason {
            None if length > MAX_LINES => problems.push(Problem::new(
                path,
                length,
                format!("{length} lines: split it at {MAX_LINES}, or list it with a reason"),
            )),
            Some(_) if length <= MAX_LINES => {
                problems.push(Problem::new(path, 0, "short again: take it off the list"));
            }
            _ => {}
        }
    }
    for (path, _) in excused.iter().filter(|(path, _)| !tree.exists(path)) {
        problems.push(Problem::new(path, 0, "gone: take it off the list"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(count: usize) -> String {
        "//! Lines.\n".repeat(count)
    }

    #[test]
    fn a_file_without_its_sentence_is_named() {
        let tree = Tree::of(&[("a.rs", "//! Says it.\n"), ("b.rs", "use std::fmt;\n")]);
        let problems = opening_sentence(&tree);
        assert_eq!(problems.iter().map(|p| p.path.as_str()).collect::<Vec<_>>(), ["b.rs"]);
    }

    #[test]
    fn a_long_file_needs_a_reason_and_a_reason_needs_a_long_file() {
        let (long, short) = (lines(501), lines(500));
        let tree = Tree::of(&[("long.rs", &long), ("short.rs", &short), ("x.rs", "//! X.\n")]);
        let count = |excused: &[(&str, &str)]| file_length_with(&tree, excused).len();
        assert_eq!(count(&[]), 1);
        assert_eq!(count(&[("long.rs", "a table")]), 0);
        assert_eq!(count(&[("long.rs", "a table"), ("short.rs", "was long")]), 1);
        assert_eq!(count(&[("long.rs", "a table"), ("gone.rs", "was there")]), 1);
    }
}
