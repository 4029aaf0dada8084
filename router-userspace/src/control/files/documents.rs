//! The documents' manifests, as they stand in the example and on the pages, make the fleet that
//! they describe.

use std::path::{Path, PathBuf};

use router_core::fleet::{Fleet, Profile, Role};
use router_core::route::{Head, Target, find};

use super::tests::Scratch;
use super::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn load(path: &Path) -> Fleet {
    let mut index = Index::default();
    assert!(Directory::open(path).unwrap().poll(&mut index));
    index.build(&Fleet::default())
}

/// The two prefills, the decode, the route and the timeout of the documents.
fn assert_documented(fleet: &Fleet) {
    assert_eq!(fleet.problems, []);
    assert_eq!(fleet.ports(), [8080]);
    let headers = http::HeaderMap::new();
    let method = http::Method::POST;
    let mut head = Head {
        method: &method,
        host: Some("203.0.113.7:8080"),
        path: "/v1/chat/completions",
        query: None,
        headers: &headers,
    };
    let found = find(fleet, 8080, &head, 7).unwrap();
    assert_eq!(found.route().to_string(), "default/inference-route");
    assert_eq!(found.timeouts().request, Some(std::time::Duration::from_secs(24 * 3600)));
    let Target::Pool(pool) = found.target else { panic!("{:?}", found.target) };
    assert_eq!((pool.profile, &*pool.runtime), (Profile::Pd, "sglang"));
    let member = |at: usize| {
        let member = &pool.members[at];
        let bootstrap = member.bootstrap.map(|address| address.to_string());
        (member.role, member.worker.address.to_string(), bootstrap)
    };
    let of = |role, ip: &str, bootstrap: bool| {
        (role, format!("{ip}:8000"), bootstrap.then(|| format!("{ip}:34000")))
    };
    assert_eq!(pool.members.len(), 3);
    assert_eq!(member(0), of(Role::Decode, "127.0.0.21", false));
    assert_eq!(member(1), of(Role::Prefill, "127.0.0.11", true));
    assert_eq!(member(2), of(Role::Prefill, "127.0.0.12", true));
    assert_eq!((pool.fits.len(), pool.unfit.len()), (1, 0));
    head.path = "/metrics";
    assert!(find(fleet, 8080, &head, 7).is_none());
}

#[test]
fn the_example_loads_unchanged() {
    assert_documented(&load(&root().join("deploy/examples/qwen3-32b")));
}

/// The manifests of a page: indented blocks that begin with a manifest's first line.
fn blocks(page: &str) -> Vec<String> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let lines: Vec<&str> = page.lines().collect();
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        let comment = line.trim_start().starts_with("# InferencePool");
        if !(line.trim_start().starts_with("apiVersion:") || comment) {
            at += 1;
            continue;
        }
        let margin = indent(line);
        let inside = |line: &&&str| line.trim().is_empty() || indent(line) >= margin;
        let block: Vec<&str> = lines[at..].iter().take_while(inside).copied().collect();
        at += block.len();
        let text: Vec<&str> = block.iter().map(|line| line.get(margin..).unwrap_or("")).collect();
        blocks.push(text.join("\n").trim_end().to_owned() + "\n");
    }
    blocks
}

const FILES: [&str; 4] =
    ["llm-model.yaml", "sglang_pd.yaml", "inference-policy.yaml", "inference-gateway.yaml"];

#[test]
fn both_pages_load_unchanged_and_the_example_is_verbatim() {
    let seeds = root().join("../shared/seeds");
    if !seeds.exists() {
        eprintln!("skipped: the pages are not here");
        return;
    }
    let example = root().join("deploy/examples/qwen3-32b");
    for page in ["zh", "en"] {
        let text = std::fs::read_to_string(seeds.join(format!("inference-routing-{page}.txt")));
        let blocks = blocks(&text.unwrap());
        assert_eq!(blocks.len(), FILES.len(), "{page}");
        let scratch = Scratch::new();
        for (name, block) in FILES.iter().zip(&blocks) {
            if page == "zh" {
                assert_eq!(*block, std::fs::read_to_string(example.join(name)).unwrap(), "{name}");
            }
            scratch.write(name, block);
        }
        scratch.write("pods.yaml", &std::fs::read_to_string(example.join("pods.yaml")).unwrap());
        assert_documented(&load(scratch.path()));
    }
}
