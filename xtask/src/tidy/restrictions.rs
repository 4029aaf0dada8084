//! Which modules may use which library of the outside world.

use super::tree::{Problem, Tree};

/// A library or interface, and the only files that may use it.
struct Restriction {
    subject: &'static str,
    /// Words that a path or a `use` must hold, in this order.
    words: &'static [&'static str],
    files: &'static [&'static str],
}

const USERSPACE: &str = "router-userspace/src/";

const RESTRICTIONS: [Restriction; 4] = [
    Restriction {
        subject: "aya",
        words: &["aya"],
        files: &["agent/bpf/programs.rs", "agent/bpf/syscall.rs", "agent/bpf/tables.rs"],
    },
    Restriction {
        subject: "the Kubernetes client",
        words: &["kube"],
        files: &[
            "control/api_resource.rs",
            "control/kube.rs",
            "control/leader_election.rs",
            "control/status_writer.rs",
            "control/gateway_service/mod.rs",
            "agent/pods/source.rs",
        ],
    },
    Restriction {
        subject: "the HTTP client",
        words: &["hyper|hyper_util", "client"],
        files: &[
            "http_client/http1.rs",
            "http_client/idle_connections.rs",
            "http_client/mod.rs",
            "http_client/tls.rs",
            "http_client/watched_stream.rs",
        ],
    },
    Restriction { subject: "the environment", words: &["std", "env"], files: &["config.rs"] },
];

/// Code that ships uses each restricted library only in the files that may.
pub(super) fn restricted_libraries(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, source) in tree.shipped() {
        for restriction in &RESTRICTIONS {
            let files = restriction.files;
            if files.iter().any(|file| path == format!("{USERSPACE}{file}")) {
                continue;
            }
            for line in named_at(&source.code, restriction.words) {
                let message = format!("only {} may use {}", files.join(", "), restriction.subject);
                problems.push(Problem::new(path, line, message));
            }
        }
    }
    problems
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
    // A module of this workspace may have the library's name.
    let statement = statement.replace("super::kube", "");
    let mut idents = statement.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.iter().all(|word| idents.any(|ident| word.split('|').any(|one| one == ident)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, code: &str) -> usize {
        restricted_libraries(&Tree::of(&[(path, code)])).len()
    }

    #[test]
    fn a_restricted_library_outside_its_files_is_refused() {
        for (file, code) in [
            ("agent/bpf/programs.rs", "use aya::Ebpf;"),
            ("control/kube.rs", "use kube::{Api, Client};"),
            ("http_client/mod.rs", "use hyper_util::{rt::TokioIo, client::legacy::Client};"),
            ("config.rs", "fn f() { let x = std::env::var(\"X\"); }"),
        ] {
            assert_eq!(problems(&format!("router-userspace/src/{file}"), code), 0, "{code}");
            assert_eq!(
                problems("router-userspace/src/gateway/request/handle.rs", code),
                1,
                "{code}"
            );
            assert_eq!(problems("tests/src/gateway.rs", code), 0, "{code}");
        }
    }

    #[test]
    fn similar_names_and_comments_are_allowed() {
        for code in [
            "// aya::Ebpf would do it",
            "use crate::control::kube_like;",
            "use aya_ebpf::maps::HashMap;",
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
