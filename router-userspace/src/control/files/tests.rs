//! What a directory that changes does to the fleet.

use std::sync::atomic::{AtomicU32, Ordering};

use router_core::fleet::{Fleet, ObjectName, Phase};

use super::*;
use crate::control::objects::Kind;

/// A directory of its own, gone with the test.
pub(crate) struct TempDirectory(PathBuf);

impl TempDirectory {
    pub(crate) fn new() -> TempDirectory {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pd-router-files-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        TempDirectory(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file under a new inode, so that two states never look the same.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let next = self.0.join(format!("{name}.next"));
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, self.0.join(name)).unwrap();
    }
}

impl Drop for TempDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A directory that is being served.
struct Served {
    scratch: TempDirectory,
    directory: Directory,
    index: Index,
    fleet: Fleet,
}

impl Served {
    fn new(files: &[(&str, &str)]) -> Served {
        let scratch = TempDirectory::new();
        files.iter().for_each(|(name, text)| scratch.write(name, text));
        let directory = Directory::open(scratch.path()).unwrap();
        let mut served =
            Served { scratch, directory, index: Index::default(), fleet: Fleet::default() };
        assert!(served.directory.poll(&mut served.index), "the first look always reads");
        served.fleet = served.index.build(&served.fleet);
        served
    }

    /// Looks twice: a change is read when it has settled.
    fn look(&mut self) -> &Fleet {
        assert!(!self.directory.poll(&mut self.index), "the first look sees, the next one reads");
        assert!(self.directory.poll(&mut self.index));
        self.fleet = self.index.build(&self.fleet);
        assert!(!self.directory.poll(&mut self.index), "nothing has changed since");
        &self.fleet
    }

    fn look_until_changed(&mut self) {
        for _ in 0..=MAX_WAITS {
            if self.directory.poll(&mut self.index) {
                self.fleet = self.index.build(&self.fleet);
                return;
            }
        }
        panic!("no change was observed");
    }

    fn write(&mut self, name: &str, text: &str) -> &Fleet {
        self.scratch.write(name, text);
        self.look()
    }

    fn pods(&self) -> Vec<String> {
        let members = &self.fleet.pools[0].members;
        members.iter().map(|member| format!("{} {:?}", member.worker.name, member.phase)).collect()
    }

    fn problems(&self) -> String {
        let all: Vec<String> = self.fleet.problems.iter().map(ToString::to_string).collect();
        all.join("\n")
    }
}

const POOL: &str = "
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata: {name: pool}
spec: {selector: {app: a}, targetPortNumber: 8000}
";

fn pod(name: &str, number: u8) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  uid: u-{number}\n  labels: {{app: a}}\n\
         status: {{podIP: 10.0.0.{number}, conditions: [{{type: Ready, status: \"True\"}}]}}\n"
    )
}

#[test]
fn pods_come_go_and_drain_with_their_files() {
    let mut served = Served::new(&[("pool.yaml", POOL), ("a.yaml", &pod("a", 1))]);
    assert_eq!(served.pods(), ["default/a Ready"]);
    served.write("b.yml", &pod("b", 2));
    assert_eq!(served.pods(), ["default/a Ready", "default/b Ready"]);
    let draining = pod("a", 1).replace("uid:", "deletionTimestamp: 2026-01-01T00:00:00Z\n  uid:");
    let worker = Arc::clone(&served.fleet.pools[0].members[0].worker);
    served.write("a.yaml", &draining);
    assert_eq!(served.pods(), ["default/a Draining", "default/b Ready"]);
    assert!(Arc::ptr_eq(&worker, &served.fleet.pools[0].members[0].worker));
    assert_eq!(served.fleet.pools[0].members[0].phase, Phase::Draining);
    std::fs::remove_file(served.scratch.path().join("a.yaml")).unwrap();
    served.look();
    assert_eq!(served.pods(), ["default/b Ready"]);
    assert_eq!(served.problems(), "");
}

#[test]
fn a_document_that_does_not_parse_keeps_its_last_good_version_alone() {
    let mut served = Served::new(&[("all.yaml", &(POOL.to_owned() + &pod("a", 1) + &pod("b", 2)))]);
    // The type is wrong in a, which is known by its name though it has moved; b changes.
    let broken = pod("a", 1).replace("{app: a}", "{app: 1}");
    served.write("all.yaml", &(POOL.to_owned() + &pod("b", 4) + &broken));
    let members = &served.fleet.pools[0].members;
    let addresses: Vec<String> = members.iter().map(|m| m.worker.address().to_string()).collect();
    assert_eq!(addresses, ["10.0.0.1:8000", "10.0.0.4:8000"]);
    let problems = served.problems();
    assert!(
        problems.contains("all.yaml document 3, Pod default/a, metadata.labels.app: "),
        "{problems}"
    );
    assert!(problems.contains("the last valid version stays in effect"), "{problems}");
    // Whole again.
    served.write("all.yaml", &(POOL.to_owned() + &pod("a", 5)));
    assert_eq!(served.pods(), ["default/a Ready"]);
    assert_eq!(served.problems(), "");
}

#[test]
fn text_that_is_not_yaml_keeps_the_document_that_stood_there() {
    let good = POOL.to_owned() + &pod("a", 1) + &pod("b", 2);
    let mut served = Served::new(&[("all.yaml", &good)]);
    served.write("all.yaml", &(POOL.to_owned() + "---\n{{ template }}\n" + &pod("b", 3)));
    assert_eq!(served.pods(), ["default/a Ready", "default/b Ready"]);
    // An object that moved in the file now is not kept twice.
    served.write("all.yaml", &(POOL.to_owned() + "---\n{{ template }}\n" + &pod("a", 1)));
    assert_eq!(served.pods(), ["default/a Ready"]);
}

#[test]
fn a_document_that_never_parsed_is_absent_and_the_pods_beside_it_apply() {
    let broken = POOL.replace("8000", "none");
    let mut served = Served::new(&[("pool.yaml", POOL), ("broken.yaml", &(broken + &pod("a", 1)))]);
    assert_eq!(served.pods(), ["default/a Ready"]);
    let problems = served.problems();
    assert!(
        problems
            .contains("broken.yaml document 1, InferencePool default/pool, spec.targetPortNumber")
    );
    assert!(!problems.contains("stays in effect"), "{problems}");
    std::fs::remove_file(served.scratch.path().join("broken.yaml")).unwrap();
    served.look();
    assert_eq!((served.problems(), served.pods().len()), (String::new(), 0));
}

const TLS_POLICY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: p}
spec:
  targetRefs: [{group: '', kind: Service, name: a}]
  validation: {hostname: a.test, wellKnownCACertificates: System}
";

#[test]
fn a_policy_that_restricts_has_a_stand_in_until_a_valid_version_is_read() {
    // The targets, and the host name if it was read.
    let stored = |served: &Served| {
        let name = ObjectName { namespace: "default".into(), name: "p".into() };
        let key = Key { kind: Kind::BackendTlsPolicy, name };
        let source = Source::File { name: "tls.yaml".into(), document: 1 };
        let (policy, hostname) = match served.index.stored(&source, &key).unwrap() {
            Object::BackendTlsPolicy(policy) => {
                let hostname = policy.spec.validation.hostname.clone();
                (policy, Some(hostname))
            }
            Object::UnreadBackendTlsPolicy(policy) => (policy, None),
            other => panic!("{other:?}"),
        };
        (policy.spec.target_refs[0].name.clone(), hostname)
    };
    let broken = TLS_POLICY.replace("a.test", "[1]");
    let mut served = Served::new(&[("tls.yaml", &broken)]);
    assert_eq!(stored(&served), ("a".to_owned(), None));
    served.write("tls.yaml", &broken.replace("name: a}", "name: b}"));
    assert_eq!(stored(&served), ("b".to_owned(), None), "not that of the version before");
    assert!(!served.problems().contains("stays in effect"), "{}", served.problems());
    served.write("tls.yaml", TLS_POLICY);
    assert_eq!(stored(&served), ("a".to_owned(), Some("a.test".to_owned())));
    served.write("tls.yaml", &broken);
    assert_eq!(stored(&served), ("a".to_owned(), Some("a.test".to_owned())));
    assert!(served.problems().contains("the last valid version stays in effect"));
}

#[test]
fn the_first_file_by_name_wins_until_it_is_gone() {
    let mut served =
        Served::new(&[("pool.yaml", POOL), ("b.yaml", &pod("a", 2)), ("a.yaml", &pod("a", 1))]);
    assert_eq!(served.fleet.pools[0].members[0].worker.address().to_string(), "10.0.0.1:8000");
    assert!(served.problems().contains("b.yaml document 1, Pod default/a: is also in a.yaml"));
    std::fs::remove_file(served.scratch.path().join("a.yaml")).unwrap();
    served.look();
    assert_eq!(served.fleet.pools[0].members[0].worker.address().to_string(), "10.0.0.2:8000");
    assert_eq!(served.problems(), "");
}

#[test]
fn a_file_that_cannot_be_read_keeps_what_was_read_of_it() {
    let mut served = Served::new(&[("pool.yaml", POOL), ("a.yaml", &pod("a", 1))]);
    std::fs::write(served.scratch.path().join("a.yaml"), [0xff, 0xfe]).unwrap();
    served.look();
    assert_eq!(served.pods(), ["default/a Ready"]);
    assert!(served.problems().contains("a.yaml: cannot be read"), "{}", served.problems());
    let large = std::fs::File::create(served.scratch.path().join("a.yaml")).unwrap();
    large.set_len(MAX_FILE_BYTES + 1).unwrap();
    served.look();
    assert_eq!(served.pods(), ["default/a Ready"]);
    assert!(served.problems().contains("is larger than"), "{}", served.problems());
}

#[test]
fn a_mounted_config_map_that_swaps_its_symlink_is_seen() {
    let scratch = TempDirectory::new();
    for (version, number) in [("..v1", 1), ("..v2", 2)] {
        std::fs::create_dir(scratch.path().join(version)).unwrap();
        std::fs::write(
            scratch.path().join(version).join("a.yaml"),
            POOL.to_owned() + &pod("a", number),
        )
        .unwrap();
    }
    let link = |to: &str, name: &str| {
        let next = scratch.path().join("..next");
        std::os::unix::fs::symlink(to, &next).unwrap();
        std::fs::rename(next, scratch.path().join(name)).unwrap();
    };
    link("..v1", "..data");
    link("..data/a.yaml", "a.yaml");
    let mut directory = Directory::open(scratch.path()).unwrap();
    let mut index = Index::default();
    let mut address = |directory: &mut Directory| {
        while directory.poll(&mut index) || directory.waited > 0 {}
        index.build(&Fleet::default()).pools[0].members[0].worker.address().to_string()
    };
    assert_eq!(address(&mut directory), "10.0.0.1:8000");
    link("..v2", "..data");
    assert_eq!(address(&mut directory), "10.0.0.2:8000");
}

#[test]
fn a_directory_that_keeps_changing_is_read_after_a_few_looks() {
    let mut served = Served::new(&[("pool.yaml", POOL)]);
    let mut looks = 0;
    loop {
        looks += 1;
        served.scratch.write("a.yaml", &pod("a", looks));
        if served.directory.poll(&mut served.index) {
            break;
        }
    }
    assert_eq!(u32::from(looks), MAX_WAITS + 1);
}

#[test]
fn a_directory_that_is_gone_keeps_its_fleet_and_comes_back() {
    let mut served = Served::new(&[("pool.yaml", POOL), ("a.yaml", &pod("a", 1))]);
    let aside = served.scratch.path().with_extension("aside");
    std::fs::rename(served.scratch.path(), &aside).unwrap();
    assert!(served.directory.poll(&mut served.index), "the problem is news");
    assert!(!served.directory.poll(&mut served.index), "once");
    served.fleet = served.index.build(&served.fleet);
    assert_eq!(served.pods(), ["default/a Ready"]);
    assert!(served.problems().contains("cannot be read"), "{}", served.problems());
    std::fs::rename(&aside, served.scratch.path()).unwrap();
    served.look_until_changed();
    assert_eq!(served.problems(), "");
}

#[test]
fn other_files_and_directories_are_not_read() {
    let served = Served::new(&[
        ("pool.yaml", POOL),
        ("README.md", &pod("a", 1)),
        (".hidden.yaml", &pod("b", 2)),
    ]);
    assert!(served.pods().is_empty());
    assert!(Directory::open(served.scratch.path().join("nowhere")).is_err());
}

#[test]
fn a_good_version_in_the_same_file_counts_before_the_last_good_one() {
    let mut served = Served::new(&[("all.yaml", &(POOL.to_owned() + &pod("a", 1)))]);
    let broken = pod("a", 2).replace("{app: a}", "{app: 1}");
    served.write("all.yaml", &(POOL.to_owned() + &broken + &broken + &pod("a", 3)));
    assert_eq!(served.fleet.pools[0].members[0].worker.address().to_string(), "10.0.0.3:8000");
    assert!(!served.problems().contains("kept"), "{}", served.problems());
    served.write("all.yaml", &(POOL.to_owned() + &broken + &broken));
    assert_eq!(served.fleet.pools[0].members[0].worker.address().to_string(), "10.0.0.3:8000");
    assert!(!served.problems().contains("is also in"), "{}", served.problems());
}

#[test]
fn a_link_that_leads_in_a_circle_is_named_and_nothing_else_suffers() {
    let mut served = Served::new(&[("pool.yaml", POOL), ("a.yaml", &pod("a", 1))]);
    let path = served.scratch.path().join("a.yaml");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("a.yaml", &path).unwrap();
    served.look();
    assert_eq!(served.pods(), ["default/a Ready"]);
    assert!(served.problems().contains("a.yaml: cannot be read"), "{}", served.problems());
}

#[test]
fn a_list_that_is_no_longer_yaml_keeps_all_its_items() {
    let item = |name: &str, number: u8| {
        let pod = pod(name, number);
        "- ".to_owned() + pod.trim_start_matches("---\n").trim_end().replace('\n', "\n  ").as_str()
    };
    let list =
        |items: &[String]| format!("apiVersion: v1\nkind: List\nitems:\n{}\n", items.join("\n"));
    let good = list(&[item("a", 1), item("b", 2)]);
    let mut served = Served::new(&[("pool.yaml", POOL), ("list.yaml", &good)]);
    assert_eq!(served.pods(), ["default/a Ready", "default/b Ready"]);
    served.write("list.yaml", &(good.clone() + "  }\n"));
    assert_eq!(served.pods(), ["default/a Ready", "default/b Ready"]);
    assert!(
        served.problems().contains("last valid version stays in effect"),
        "{}",
        served.problems()
    );
    served.write("list.yaml", &list(&[item("b", 2)]));
    assert_eq!(served.pods(), ["default/b Ready"]);
}
