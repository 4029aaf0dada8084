//! Names and words that do not belong in the project.

use super::tree::{Problem, Tree};

/// Names that say nothing about what lives in a file.
const EMPTY_NAMES: [&str; 8] =
    ["util", "utils", "helper", "helpers", "common", "misc", "types", "context"];

/// Paths of one machine, or of files that a clone does not have.
const FOREIGN_PATHS: [&str; 7] = [
    concat!("/wo", "rk/"),
    concat!("/fa", "rm/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/tmp/bash", "_jobs"),
    concat!("--index", "-url"),
    concat!("extra-index", "-url"),
];

/// Reference material that stands beside a checkout: only tests and benches may read it.
const BESIDE: &str = concat!("../sha", "red");

/// Marks of unfinished work, in code (comments and literals are blanked).
const UNFINISHED_CODE: [&str; 4] = ["todo!", "unimplemented!", "dbg!", "#[ignore"];

/// Marks of unfinished work, anywhere in a Rust file.
const UNFINISHED_WORDS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// No file is called by a name that says nothing.
pub(super) fn file_names(tree: &Tree) -> Vec<Problem> {
    let says_nothing = |path: &str| {
        path.split('/').any(|part| EMPTY_NAMES.contains(&part.trim_end_matches(".rs")))
    };
    tree.rust()
        .filter(|(path, _)| says_nothing(path))
        .map(|(path, _)| Problem::new(path, 0, "the name says nothing about what lives here"))
        .collect()
}

/// No path of one machine, and no reading of what a clone does not have.
pub(super) fn banned_words(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, source) in &tree.files {
        let may_read_beside = path.starts_with("tests/") || path.contains("/benches/");
        for (index, line) in source.text.lines().enumerate() {
            let absolute = FOREIGN_PATHS.into_iter().find(|word| stands_alone(line, word));
            let beside = (!may_read_beside && line.contains(BESIDE)).then_some(BESIDE);
            if let Some(word) = absolute.or(beside) {
                let message = format!("`{word}`: a clone elsewhere has no such thing");
                problems.push(Problem::new(path, index + 1, message));
            }
        }
    }
    problems
}

/// Whether the path is absolute here, rather than the end of a longer one (`src/work/`).
fn stands_alone(line: &str, word: &str) -> bool {
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}~".contains(c)))
}

/// Nothing unfinished, and no lint switched off without a reason.
pub(super) fn unfinished_code(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, source) in tree.rust() {
        for (index, (code, text)) in source.code.lines().zip(source.text.lines()).enumerate() {
            let in_code = UNFINISHED_CODE.into_iter().find(|mark| code.contains(mark));
            let in_text = UNFINISHED_WORDS.into_iter().find(|mark| text.contains(mark));
            if let Some(mark) = in_code.or(in_text) {
                let message = format!("`{mark}`: finish it or leave it out");
                problems.push(Problem::new(path, index + 1, message));
            }
        }
        problems.extend(switched_off_lints(path, &source.code));
    }
    problems
}

fn switched_off_lints(path: &str, code: &str) -> Vec<Problem> {
    ["#[allow(", "#![allow(", "#[expect(", "#![expect("]
        .into_iter()
        .flat_map(|open| code.match_indices(open))
        .filter(|(at, _)| {
            let attribute = code[*at..].split(")]").next().unwrap_or_default();
            !attribute.contains("reason")
        })
        .map(|(at, _)| {
            let line = code[..at].matches('\n').count() + 1;
            Problem::new(path, line, "a lint is switched off without a reason")
        })
        .collect()
}

/// The lock file names the public registry alone, so that it serves everywhere.
pub(super) fn lock_file_sources(tree: &Tree) -> Vec<Problem> {
    let public = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
    let lock = tree.text("Cargo.lock").unwrap_or_default();
    lock.lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with("source = ") && *line != public)
        .map(|(index, _)| Problem::new("Cargo.lock", index + 1, "not the public registry"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_say_nothing_are_refused() {
        let tree = Tree::of(&[("src/helpers.rs", ""), ("src/util/a.rs", ""), ("src/pair.rs", "")]);
        assert_eq!(file_names(&tree).len(), 2);
        let crates = Tree::of(&[("router-common/src/lib.rs", "")]);
        assert_eq!(file_names(&crates), []);
    }

    #[test]
    fn paths_of_one_machine_are_refused() {
        let home = format!("see {}a", FOREIGN_PATHS[0]);
        assert_eq!(banned_words(&Tree::of(&[("README.md", &home)])).len(), 1);
        let below = format!("src{}a", FOREIGN_PATHS[0]);
        assert_eq!(banned_words(&Tree::of(&[("README.md", &below)])), []);
    }

    #[test]
    fn only_tests_read_what_stands_beside_a_checkout() {
        let text = format!("{BESIDE}/seeds");
        let tree = Tree::of(&[("src/a.rs", &text), ("tests/src/a.rs", &text)]);
        assert_eq!(banned_words(&tree).len(), 1);
    }

    #[test]
    fn unfinished_code_is_refused_and_speaking_of_it_is_not() {
        let count = |text: &str| unfinished_code(&Tree::of(&[("a.rs", text)])).len();
        assert_eq!(count("fn f() { todo!() }"), 1);
        assert_eq!(count("#[ignore]\nfn f() {}"), 1);
        assert_eq!(count(&format!("// {} later", UNFINISHED_WORDS[0])), 1);
        assert_eq!(count("// never write todo!()\nlet x = \"dbg!\";"), 0);
    }

    #[test]
    fn a_lint_is_switched_off_only_with_a_reason() {
        let count = |text: &str| unfinished_code(&Tree::of(&[("a.rs", text)])).len();
        assert_eq!(count("#[allow(dead_code)]\nfn f() {}"), 1);
        assert_eq!(count("#[expect(dead_code, reason = \"why\")]\nfn f() {}"), 0);
    }

    #[test]
    fn a_private_registry_in_the_lock_file_is_named() {
        let lock = "source = \"registry+https://github.com/rust-lang/crates.io-index\"\n\
                    source = \"registry+https://crates.example/index\"\n";
        let problems = lock_file_sources(&Tree::of(&[("Cargo.lock", lock)]));
        assert_eq!(problems.iter().map(|p| p.line).collect::<Vec<_>>(), [2]);
    }
}
