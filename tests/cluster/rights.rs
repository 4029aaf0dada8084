//! What the gateway says when something that it needs is missing in the cluster.

use router_tests::eventually;

use crate::{ELECTED, SOON, Scene, root, start_gateway};

const CODE: &str = "NotLeading";

// kubectl blocks a thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_may_not_be_written_is_a_problem_a_warning_and_a_metric() {
    let scene = Scene::with_documents().await;
    let role = ["role/pd-router-gateway", "--namespace", crate::NAMESPACE];
    scene.cluster.kubectl(&[&["delete"][..], &role].concat(), "");
    let gateway = start_gateway(&scene.cluster);
    gateway.wait_until_ready().await;
    eventually("the problem is listed", ELECTED, async || {
        gateway.fleet().await["problems"].to_string().contains(CODE).then_some(())
    })
    .await;
    // The log is written by a thread of its own.
    eventually("the log has the reason", SOON, async || {
        gateway.log().contains("forbidden").then_some(())
    })
    .await;
    assert_eq!(gateway.metric("pd_router_leader", &[]).await, 0.0);

    let overlay = root().join("tests/cluster/deploy");
    let overlay = overlay.to_str().expect("a path in UTF-8");
    scene.cluster.kubectl(&["apply", "-k", overlay], "");
    eventually("it leads", ELECTED, async || {
        (gateway.metric("pd_router_leader", &[]).await == 1.0).then_some(())
    })
    .await;
    eventually("the problem is solved", SOON, async || {
        (!gateway.fleet().await["problems"].to_string().contains(CODE)).then_some(())
    })
    .await;
    // Each problem that was logged when it appeared is logged as solved.
    let log = gateway.log();
    let mut problems: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(CODE) && line.contains("WARN"))
        .filter_map(|line| line.split_once("cannot acquire"))
        .map(|(_, problem)| problem)
        .collect();
    let all = problems.len();
    problems.sort_unstable();
    problems.dedup();
    assert_eq!(problems.len(), all, "an error is logged once: {log}");
}

// kubectl blocks a thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_is_not_installed_is_logged_once_and_served_once_it_is_there() {
    let scene = Scene::start().await;
    let definition = "customresourcedefinition/backendtrafficpolicies.gateway.envoyproxy.io";
    scene.cluster.kubectl(&["delete", definition], "");
    let gateway = scene.replica().await;
    let absent = |log: &str| {
        let lines = log.lines().filter(|line| line.contains("kind not installed"));
        lines.filter(|line| line.contains("BackendTrafficPolicy")).count()
    };
    assert_eq!(absent(&gateway.log()), 1, "{}", gateway.log());

    let file = root().join("tests/cluster/backendtrafficpolicies.yaml");
    let file = file.to_str().expect("a path in UTF-8");
    scene.cluster.kubectl(&["create", "--validate=false", "-f", file], "");
    eventually("the kind is found", SOON, async || {
        gateway.log().contains("kind installed").then_some(())
    })
    .await;
    let log = gateway.log();
    assert_eq!(absent(&log), 1, "{log}");
    assert!(!log.contains("Unsuccessful data error"), "{log}");
}
