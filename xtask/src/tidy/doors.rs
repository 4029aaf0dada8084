//! One door for each outside thing: who may name which library.

use super::tree::{Problem, Tree};

/// An outside thing: how code names it, and the files that may.
struct Door {
    thing: &'static str,
    /// Words that a path or a `use` must hold, in this order.
    words: &'static [&'static str],
    files: &'static [&'static str],
}

const USERSPACE: &str = "router-userspace/src/";

const DOORS: [Door; 4] = [
    Door { thing: "aya", words: &["aya"], files: &["agent/kernel.rs"] },
    Door {
        thing: "the Kubernetes client",
        words: &["kube"],
        files: &[
            "control/kube.rs",
            "control/lead.rs",
            "control/status.rs",
            "control/fronts/mod.rs",
            "agent/pods.rs",
        ],
    },
    Door {
        thing: "the HTTP client",
        words: &["hyper|hyper_util", "client"],
        files: &["http_client/mod.rs"],
    },
    Door { thing: "the environment", words: &["std", "env"], files: &["config.rs"] },
];

/// What ships names each outside thing in its door alone.
pub(super) fn one_door_each(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, source) in tree.rust().filter(|(path, _)| ships(path)) {
        for door in &DOORS {
            let is_door = door.files.iter().any(|file| path == format!("{USERSPACE}{file}"));
            if is_door {
                continue;
            }
            for line in named_at(&source.code, door.words) {
                let message = format!("{} has its own door: {}", door.thing, door.files.join(", "));
                problems.push(Problem::new(path, line, message));
            }
        }
    }
    problems
}

/// Tests, benches, build scripts and chores may meet the world wherever they like.
fn ships(path: &str) -> bool {
    let ships = path.starts_with("router-userspace/") || path.starts_with("router-common/");
    let tests =
        ["/build.rs", "/benches/", "/tests/", "/fuzz/", "/golden/", "/golden.rs", "/tests.rs"];
    ships && !tests.iter().any(|part| path.contains(part))
}

/// Lines where a path such as `a::b`, or a `use a::{x, b}`, holds the words in order.
fn named_at(code: &str, words: &[&str]) -> Vec<usize> {
    let mut lines = Vec::new();
    let mut offset = 0;
    for statement in code.split_inclusive([';', '=', ' ', '(', '<', '&']).collect::<Vec<_>>() {
        // A `use` with braces holds spaces: it is looked at whole below.
        if holds(statement, words) && statement.contains("::") {
            lines.push(code[..offset].matches('\n').count() + 1);
        }
        offset += statement.len();
    }
    for (at, _) in code.match_indices("use ") {
        let statement = code[at..].split(';').next().unwrap_or_default();
        if holds(statement, words) {
            lines.push(code[..at].matches('\n').count() + 1);
        }
    }
    lines.sort_unstable();
    lines.dedup();
    lines
}

fn holds(statement: &str, words: &[&str]) -> bool {
    // The door itself may have the library's name: a path of ours leads to it.
    let statement = statement.replace("super::kube", "");
    let mut idents = statement.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.iter().all(|word| idents.any(|ident| word.split('|').any(|one| one == ident)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, code: &str) -> usize {
        one_door_each(&Tree::of(&[(path, code)])).len()
    }

    #[test]
    fn an_outside_thing_is_named_in_its_door_alone() {
        for (door, code) in [
            ("agent/kernel.rs", "use aya::Ebpf;"),
            ("control/kube.rs", "use kube::{Api, Client};"),
            ("http_client/mod.rs", "use hyper_util::{rt::TokioIo, client::legacy::Client};"),
            ("config.rs", "fn f() { let x = std::env::var(\"X\"); }"),
        ] {
            assert_eq!(problems(&format!("router-userspace/src/{door}"), code), 0, "{code}");
            assert_eq!(
                problems("router-userspace/src/gateway/request/handle.rs", code),
                1,
                "{code}"
            );
            assert_eq!(problems("tests/src/gateway.rs", code), 0, "{code}");
        }
    }

    #[test]
    fn likenesses_and_comments_are_no_outside_thing() {
        for code in [
            "// aya::Ebpf would do it",
            "use crate::control::kube_like;",
            "use super::kube::Cluster;",
            "use hyper_util::server::conn::auto;\nuse crate::client::Client;",
            "let env = std::fs::read(path); let client = hyper::Request::new(());",
        ] {
            assert_eq!(
                problems("router-userspace/src/gateway/request/handle.rs", code),
                0,
                "{code}"
            );
        }
    }
}
