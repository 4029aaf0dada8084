//! How files open and how long files and functions are.

use super::tree::{Problem, Tree};

const LONGEST_FILE: usize = 400;
const MEDIAN_FILE: usize = 150;
const LONGEST_FUNCTION: usize = 60;

/// Files that may be longer, each with its reason.
const LONG_FILES: [(&str, &str); 0] = [];

/// Every Rust file says in its first line what lives there.
pub(super) fn opening_sentence(tree: &Tree) -> Vec<Problem> {
    tree.rust()
        .filter(|(_, source)| !source.text.starts_with("//! "))
        .map(|(path, _)| Problem::new(path, 1, "a file opens with `//!` and what lives here"))
        .collect()
}

/// No file over the limit without a reason; the median stays small.
pub(super) fn file_length(tree: &Tree) -> Vec<Problem> {
    file_length_with(tree, &LONG_FILES)
}

fn file_length_with(tree: &Tree, excused: &[(&str, &str)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut lengths = Vec::new();
    for (path, source) in tree.rust() {
        let length = source.text.lines().count();
        lengths.push(length);
        let reason = excused.iter().find(|(excused, _)| *excused == path);
        match reason {
            None if length > LONGEST_FILE => problems.push(Problem::new(
                path,
                length,
                format!("{length} lines: split it at {LONGEST_FILE}, or list it with a reason"),
            )),
            Some(_) if length <= LONGEST_FILE => {
                problems.push(Problem::new(path, 0, "short again: take it off the list"));
            }
            _ => {}
        }
    }
    for (path, _) in excused.iter().filter(|(path, _)| !tree.exists(path)) {
        problems.push(Problem::new(path, 0, "gone: take it off the list"));
    }
    lengths.sort_unstable();
    let median = lengths.get(lengths.len() / 2).copied().unwrap_or(0);
    if median > MEDIAN_FILE {
        problems.push(Problem::new(
            "the workspace",
            0,
            format!("half of the files are over {median} lines; {MEDIAN_FILE} is the limit"),
        ));
    }
    problems
}

/// No function over the limit.
pub(super) fn function_length(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, source) in tree.rust() {
        for (name, start, lines) in functions(&source.code) {
            if lines > LONGEST_FUNCTION {
                let message =
                    format!("`{name}` has {lines} lines; {LONGEST_FUNCTION} is the limit");
                problems.push(Problem::new(path, start, message));
            }
        }
    }
    problems
}

/// Each function with a body: its name, its first line (from 1), how many lines.
fn functions(code: &str) -> Vec<(&str, usize, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let is_word_before = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let name = code[at + 3..].split(|c: char| !c.is_alphanumeric() && c != '_').next();
        let Some(name) = name.filter(|name| !name.is_empty() && !is_word_before) else { continue };
        if let Some(length) = body_end(&code[at..]) {
            let lines = code[at..at + length].lines().count();
            found.push((name, code[..at].matches('\n').count() + 1, lines));
        }
    }
    found
}

/// Where the function at the start ends; `None` for a declaration without body.
fn body_end(code: &str) -> Option<usize> {
    let (mut round, mut curly) = (0_u32, 0_u32);
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' => round += 1,
            ')' | ']' => round = round.saturating_sub(1),
            ';' if round == 0 && curly == 0 => return None,
            '{' => curly += 1,
            '}' if curly <= 1 => return Some(at + 1),
            '}' => curly -= 1,
            _ => {}
        }
    }
    None
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
        let (long, short) = (lines(401), lines(400));
        let tree = Tree::of(&[("long.rs", &long), ("short.rs", &short), ("x.rs", "//! X.\n")]);
        let count = |excused: &[(&str, &str)]| {
            let problems = file_length_with(&tree, excused);
            problems.iter().filter(|p| p.path != "the workspace").count()
        };
        assert_eq!(count(&[]), 1);
        assert_eq!(count(&[("long.rs", "a table")]), 0);
        assert_eq!(count(&[("long.rs", "a table"), ("short.rs", "was long")]), 1);
        assert_eq!(count(&[("long.rs", "a table"), ("gone.rs", "was there")]), 1);
    }

    #[test]
    fn a_high_median_is_named() {
        let (long, short) = (lines(151), lines(150));
        let median = |text: &str| file_length(&Tree::of(&[("a.rs", text)])).len();
        assert_eq!((median(&short), median(&long)), (0, 1));
    }

    #[test]
    fn a_long_function_is_named_with_its_line() {
        let body = "    let x = '{';\n".repeat(59);
        let code = format!("//! F.\n\nfn declared(a: [u8; 4]);\nfn long() {{\n{body}}}\n");
        let problems = function_length(&Tree::of(&[("a.rs", &code)]));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].message.contains("`long` has 61 lines"), "{problems:?}");
        assert_eq!(problems[0].line, 4);
        let shorter = code.replacen("    let x = '{';\n", "", 1);
        assert_eq!(function_length(&Tree::of(&[("a.rs", &shorter)])), []);
    }
}
