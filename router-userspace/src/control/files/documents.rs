//! The documents' manifests, Chinese (the example) and English, make the fleet that they describe.

use std::path::{Path, PathBuf};

use router_core::fleet::{Fleet, ListenPort, Profile, Role};
use router_core::route::{Head, Target, find};

use super::tests::TempDirectory;
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
    assert_eq!(fleet.ports(), [ListenPort { number: 8080, secure: false }]);
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
        (member.role, member.worker.address().to_string(), bootstrap)
    };
    let of = |role, ip: &str, bootstrap: bool| {
        (role, format!("{ip}:8000"), bootstrap.then(|| format!("{ip}:34000")))
    };
    assert_eq!(pool.members.len(), 3);
    assert_eq!(member(0), of(Role::Decode, "127.0.0.21", false));
    assert_eq!(member(1), of(Role::Prefill, "127.0.0.11", true));
    assert_eq!(member(2), of(Role::Prefill, "127.0.0.12", true));
    assert_eq!((pool.compatible_sets.len(), pool.excluded.len()), (1, 0));
    head.path = "/metrics";
    assert!(find(fleet, 8080, &head, 7).is_none());
}

#[test]
fn the_example_loads_unchanged() {
    assert_documented(&load(&root().join("deploy/examples/qwen3-32b")));
}

#[test]
fn the_english_page_loads_unchanged_too() {
    let scratch = TempDirectory::new();
    scratch.write("page.yaml", include_str!("english.yaml"));
    let pods = root().join("deploy/examples/qwen3-32b/pods.yaml");
    scratch.write("pods.yaml", &std::fs::read_to_string(pods).unwrap());
    assert_documented(&load(scratch.path()));
}
