//! Checks of the documents: modules that exist, links that resolve, chapters, numbered decisions.

use super::tree::{Problem, Tree};
use crate::conformance;

const ARCHITECTURE: &str = "ARCHITECTURE.md";
const BOOK: &str = "docs/";
const LONGEST_ARCHITECTURE: usize = 200;

/// ARCHITECTURE.md is short enough to be read, names every module, and names no path that is missing.
pub(super) fn architecture(tree: &Tree) -> Vec<Problem> {
    let Some(text) = tree.text(ARCHITECTURE) else {
        return vec![Problem::new(ARCHITECTURE, 0, "missing")];
    };
    let mut problems = Vec::new();
    let length = text.lines().count();
    if length > LONGEST_ARCHITECTURE {
        let message = format!("{length} lines; {LONGEST_ARCHITECTURE} is the limit");
        problems.push(Problem::new(ARCHITECTURE, length, message));
    }
    for module in modules(tree) {
        if !text.contains(&format!("`{module}`")) {
            problems.push(Problem::new(
                ARCHITECTURE,
                0,
                format!("the module `{module}` is not named"),
            ));
        }
    }
    for (index, line) in text.lines().enumerate() {
        for path in code_spans(line).filter(|span| is_path(span)) {
            // Short of its folder is enough where no other is meant: `gateway/upstream.rs`.
            let short = format!("/{path}");
            if !tree.exists(path) && !tree.files.keys().any(|file| file.ends_with(&short)) {
                problems.push(Problem::new(ARCHITECTURE, index + 1, format!("no `{path}` here")));
            }
        }
    }
    problems
}

/// Crates' roots (`src/`), and of what ships the modules right below them, as `path/`.
fn modules(tree: &Tree) -> Vec<String> {
    let mut modules: Vec<String> = tree
        .rust()
        .filter_map(|(path, _)| {
            let folder = path.strip_suffix("/mod.rs");
            let folder = folder.filter(|module| {
                module.starts_with("router-") && module.rsplit('/').nth(1) == Some("src")
            });
            let root = path.strip_suffix("/lib.rs").or_else(|| path.strip_suffix("/main.rs"));
            folder.or(root.filter(|root| root.ends_with("/src")))
        })
        .map(|folder| format!("{folder}/"))
        .collect();
    modules.dedup();
    modules
}

/// The text between single backticks.
fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// A path from the root: a folder ends in `/`, a file in a known ending.
fn is_path(span: &str) -> bool {
    let plain = !span.starts_with(['/', '-']) && !span.contains([' ', '*', '<', ':', '$']);
    plain && ["/", ".rs", ".md", ".toml"].iter().any(|end| span.ends_with(end))
}

/// Links between the documents lead to files and headings that exist, and those of the book's pages
/// stay in the book, which is also read without the repository.
pub(super) fn links(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, source) in tree.ending(".md") {
        let mut fenced = false;
        for (index, line) in source.text.lines().enumerate() {
            fenced ^= line.trim_start().starts_with("```");
            if fenced {
                continue;
            }
            for target in targets(line) {
                if !resolves(tree, path, target) {
                    let message = format!("the link to `{target}` leads nowhere");
                    problems.push(Problem::new(path, index + 1, message));
                } else if path.starts_with(BOOK) && !within_book(path, target) {
                    let message = format!("the link to `{target}` leaves the book");
                    problems.push(Problem::new(path, index + 1, message));
                }
            }
        }
    }
    problems
}

/// Targets of `[text](target)`, those of the web left out.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|target| {
        !["http://", "https://", "mailto:"].iter().any(|scheme| target.starts_with(scheme))
    })
}

fn within_book(from: &str, target: &str) -> bool {
    let file = target.split('#').next().unwrap_or_default();
    file.is_empty() || format!("{}/", joined(from, file)).starts_with(BOOK)
}

/// `docs/SUMMARY.md` lists every page of the book.
pub(super) fn chapters(tree: &Tree) -> Vec<Problem> {
    let summary = format!("{BOOK}SUMMARY.md");
    let Some(text) = tree.text(&summary) else {
        return vec![Problem::new(&summary, 0, "missing")];
    };
    let listed: Vec<String> =
        text.lines().flat_map(targets).map(|target| joined(&summary, target)).collect();
    let pages = tree.ending(".md").filter(|(path, _)| path.starts_with(BOOK) && *path != summary);
    pages
        .filter(|(path, _)| !listed.iter().any(|page| page == path))
        .map(|(path, _)| Problem::new(path, 0, format!("not in {summary}")))
        .collect()
}

fn resolves(tree: &Tree, from: &str, target: &str) -> bool {
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { from.to_owned() } else { joined(from, file) };
    if !tree.exists(&path) {
        return false;
    }
    anchor.is_empty()
        || tree.text(&path).is_some_and(|text| {
            text.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == anchor)
        })
}

/// `file` as seen from the folder of `from`, with `..` followed.
fn joined(from: &str, file: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in file.split('/') {
        match part {
            "." | "" => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A heading's anchor, as GitHub makes it.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Decisions are numbered without a gap; README names the two commands.
pub(super) fn decisions_and_commands(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    let decisions = tree.files.keys().filter(|path| path.starts_with("docs/adr/"));
    for (expected, path) in (1..).zip(decisions) {
        let name = path.trim_start_matches("docs/adr/");
        if !name.starts_with(&format!("{expected:04}-")) || !name.ends_with(".md") {
            let message = format!("decisions are numbered: {expected:04}-title.md comes here");
            problems.push(Problem::new(path, 0, message));
        }
    }
    let readme = tree.text("README.md").unwrap_or_default();
    for command in ["cargo xtask demo", "cargo xtask test"] {
        if !readme.contains(command) {
            problems.push(Problem::new("README.md", 0, format!("does not name `{command}`")));
        }
    }
    problems
}

/// `reasons.md` has every reason of a rejection and of a leg's failure.
pub(super) fn reasons(tree: &Tree) -> Vec<Problem> {
    let page = format!("{BOOK}operate/reasons.md");
    let text = tree.text(&page).unwrap_or_default();
    let quoted = |file: &str| {
        let sources = tree.ending(file).map(|(_, source)| source.text.as_str());
        let words = sources.flat_map(|text| text.split('"').skip(1).step_by(2));
        words.filter(|word| is_reason(word)).map(str::to_owned).collect::<Vec<_>>()
    };
    let rejections = quoted("gateway/request/reject.rs");
    let faults = quoted("gateway/upstream/fault.rs").into_iter();
    let faults =
        faults.filter(|name| !name.starts_with("prefill_") && !name.starts_with("decode_"));
    let faults = faults.map(|name| match name.strip_prefix("engine_") {
        Some(reason) => format!("..._{reason}"),
        None => name,
    });
    rejections
        .into_iter()
        .chain(faults)
        .filter(|reason| !text.contains(&format!("| `{reason}` |")))
        .map(|reason| Problem::new(&page, 0, format!("no row of the reason `{reason}`")))
        .collect()
}

/// Two or more words in lower case, joined by `_`, or one that stands for a state.
fn is_reason(word: &str) -> bool {
    let plain = word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    plain && (word.contains('_') || ["misdirected", "unsupported", "draining"].contains(&word))
}

/// The page of a conformance suite is made from its report.
pub(super) fn conformance(tree: &Tree) -> Vec<Problem> {
    let problem = |path: &str, message: String| vec![Problem::new(path, 0, message)];
    let Some(report) = tree.text(conformance::REPORT) else {
        return problem(conformance::REPORT, "missing".to_owned());
    };
    match conformance::page(report) {
        Err(error) => problem(conformance::REPORT, format!("{error:#}")),
        Ok(page) if tree.text(conformance::PAGE) == Some(&page) => Vec::new(),
        Ok(_) => problem(
            conformance::PAGE,
            format!("not what {} makes: run `cargo xtask conformance page`", conformance::REPORT),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architecture_names_what_exists_and_nothing_else() {
        let check = |text: &str| {
            let code = [("router-core/src/lib.rs", ""), ("router-core/src/fleet/mod.rs", "")];
            architecture(&Tree::of(&[code[0], code[1], (ARCHITECTURE, text)])).len()
        };
        assert_eq!(check("`router-core/src/` and `router-core/src/fleet/`, not `Pair<P, D>`"), 0);
        assert_eq!(check("`router-core/src/`, `router-core/src/fleet/`, `fleet/mod.rs`"), 0);
        assert_eq!(check("`router-core/src/` alone"), 1);
        assert_eq!(
            check(
                "`router-core/src/`, `router-core/src/fleet/`, `router-core/src/gone.rs`, `gone/`"
            ),
            2
        );
        assert_eq!(
            check(&format!("`router-core/src/` `router-core/src/fleet/`{}", "\n".repeat(201))),
            1
        );
        assert_eq!(architecture(&Tree::default()).len(), 1);
    }

    #[test]
    fn a_link_leads_to_a_file_and_a_heading() {
        let check = |text: &str| {
            let guide = ("docs/guide.md", "# Start\n## One pool, two roles\n");
            links(&Tree::of(&[guide, ("docs/a.md", text)])).len()
        };
        for good in [
            "[x](guide.md)",
            "[x](guide.md#one-pool-two-roles)",
            "[x](../docs/guide.md#start) [y](https://a.example/x)",
            "# Here\n[x](#here)",
            "[x](../docs/)",
            "```\n[x](nowhere)\n```",
        ] {
            assert_eq!(check(good), 0, "{good}");
        }
        for bad in ["[x](gone.md)", "[x](guide.md#two)", "[x](#here)", "[x](guide.md/../gone.md)"] {
            assert_eq!(check(bad), 1, "{bad}");
        }
    }

    #[test]
    fn a_link_of_the_book_stays_in_the_book() {
        let check = |path: &str, text: &str| {
            let other = ("deploy/README.md", "# Deploy\n");
            links(&Tree::of(&[other, ("docs/start/b.md", "# B\n"), (path, text)])).len()
        };
        assert_eq!(check("docs/a.md", "[x](start/b.md#b)"), 0);
        assert_eq!(check("README.md", "[x](deploy/README.md) [y](docs/start/b.md)"), 0);
        assert_eq!(check("docs/a.md", "[x](../deploy/README.md)"), 1);
    }

    #[test]
    fn every_page_is_a_chapter() {
        let check = |summary: &str| {
            let pages = [("docs/a.md", "# A\n"), ("docs/start/b.md", "# B\n"), ("README.md", "")];
            chapters(&Tree::of(&[pages[0], pages[1], pages[2], ("docs/SUMMARY.md", summary)])).len()
        };
        assert_eq!(check("- [A](a.md)\n  - [B](start/b.md)\n"), 0);
        assert_eq!(check("- [A](a.md)\n"), 1);
        assert_eq!(chapters(&Tree::default()).len(), 1);
    }

    #[test]
    fn every_reason_has_a_row() {
        let reject =
            ("src/gateway/request/reject.rs", r#"Reject::NoRoute => "no_route", "some text""#);
        let fault = ("src/gateway/upstream/fault.rs", r#"["prefill_died", "engine_died"]"#);
        let check = |page: &str| {
            reasons(&Tree::of(&[reject, fault, ("docs/operate/reasons.md", page)])).len()
        };
        assert_eq!(check("| `no_route` | 404 |\n| `..._died` | 502 |"), 0);
        assert_eq!(check("| `no_route` | 404 |"), 1);
        assert_eq!(check("no_route"), 2);
    }

    #[test]
    fn a_conformance_page_that_differs_from_its_report_is_refused() {
        let report = conformance::EXAMPLE;
        let page = conformance::page(report).unwrap();
        let check = |page: &str| {
            let files = [(conformance::REPORT, report), (conformance::PAGE, page)];
            super::conformance(&Tree::of(&files)).len()
        };
        assert_eq!(check(&page), 0);
        assert_eq!(check(&page.replace("35", "36")), 1);
        assert_eq!(super::conformance(&Tree::default()).len(), 1);
        let broken = Tree::of(&[(conformance::REPORT, "kind: Pod\n")]);
        assert_eq!(super::conformance(&broken).len(), 1);
    }

    #[test]
    fn decisions_are_numbered_without_a_gap() {
        let readme = ("README.md", "cargo xtask demo, cargo xtask test");
        let check = |files: &[&str]| {
            let mut all = vec![readme];
            all.extend(files.iter().map(|file| (*file, "")));
            decisions_and_commands(&Tree::of(&all)).len()
        };
        assert_eq!(check(&["docs/adr/0001-a.md", "docs/adr/0002-b.md"]), 0);
        assert_eq!(check(&["docs/adr/0001-a.md", "docs/adr/0003-b.md"]), 1);
        assert_eq!(check(&["docs/adr/a.md"]), 1);
    }

    #[test]
    fn readme_names_the_two_commands() {
        assert_eq!(decisions_and_commands(&Tree::default()).len(), 2);
    }
}
