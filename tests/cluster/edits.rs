//! Objects are edited, broken, deleted and repaired, and routing follows.

use kube::api::{Api, DeleteParams, DynamicObject, PostParams};
use router_tests::manifests::{ENGINE_PORT, LISTENER_PORT};
use router_tests::{Client, Fleet, Gateway, eventually};
use serde_json::{Value, json};

use crate::{CHAT, SOON, Scene, chat, patch};

/// Waits until the documents' request is answered with this status.
async fn answers(entrance: &Client, status: u16, why: &str) {
    eventually(&format!("{status}: {why}"), SOON, async || {
        let request = entrance.json_request(CHAT, chat(why).to_string());
        let answer = entrance.try_send(request).await.ok()?;
        (answer.status == status).then_some(())
    })
    .await;
}

/// Deletes an object and returns it in a form that can be created again.
async fn take_away(api: &Api<DynamicObject>, name: &str) -> DynamicObject {
    let mut object = api.get(name).await.expect("the object");
    api.delete(name, &DeleteParams::default()).await.expect("deleting it");
    object.metadata.resource_version = None;
    object.metadata.uid = None;
    object.data.as_object_mut().expect("an object").remove("status");
    object
}

/// `Status/Reason` of a condition of a policy.
async fn condition(api: &Api<DynamicObject>, name: &str, condition: &str) -> String {
    let object = api.get(name).await.expect("the object");
    let all = object.data.pointer("/status/conditions").and_then(Value::as_array).cloned();
    let all = all.unwrap_or_default();
    let found = all.iter().find(|one| one["type"] == condition);
    let text = |at: &str| found.and_then(|one| one[at].as_str()).unwrap_or_default();
    format!("{}/{}", text("status"), text("reason"))
}

// kubectl blocks a thread; the engines need another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routing_follows_every_edit_and_repair() {
    let scene = Scene::with_documents().await;
    let gateway = scene.replica().await;
    let fleet = Fleet::start(1, 1).await;
    scene.serve(&gateway, &fleet).await;
    let entrance = scene.entrance("inference-gateway", LISTENER_PORT).await;
    answers(&entrance, 200, "all is well").await;
    pool_is_edited(&scene, &gateway, &entrance).await;
    route_is_edited(&scene, &entrance).await;
    policy_is_edited(&scene, &gateway, &entrance).await;
}

async fn pool_is_edited(scene: &Scene, gateway: &Gateway, entrance: &Client) {
    let create = PostParams::default();
    let group = "inference.networking.x-k8s.io/v1alpha2";
    let pools = scene.api(group, "InferencePool", "inferencepools");
    let name = "qwen-inference-pool";
    let port = |port: u16| json!({"spec": {"targetPortNumber": port}});
    patch(&pools, name, port(ENGINE_PORT + 1)).await;
    let served = async |port: u16| {
        eventually("the fleet has the pool's port", SOON, async || {
            let members = gateway.fleet().await["pools"][0]["members"].to_string();
            members.contains(&format!(":{port}\"")).then_some(())
        })
        .await;
    };
    served(ENGINE_PORT + 1).await;
    patch(&pools, name, port(ENGINE_PORT)).await;
    answers(entrance, 200, "the port is right again").await;
    let selector = |value: Option<&str>| json!({"spec": {"selector": {"more": value}}});
    patch(&pools, name, selector(Some("than any pod has, and no label may be"))).await;
    answers(entrance, 503, "the pool selects no pod").await;
    patch(&pools, name, selector(None)).await;
    answers(entrance, 200, "the pool selects again").await;
    let pool = take_away(&pools, name).await;
    answers(entrance, 500, "the pool is gone").await;
    pools.create(&create, &pool).await.expect("creating the pool again");
    answers(entrance, 200, "the pool is back").await;
}

async fn route_is_edited(scene: &Scene, entrance: &Client) {
    let create = PostParams::default();
    let routes = scene.api("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes");
    let matches = |kind: &str, value: &str| {
        json!([{"op": "replace", "path": "/spec/rules/0/matches",
            "value": [{"path": {"type": kind, "value": value}}]}])
    };
    let edit = async |change: Value| {
        let change =
            kube::api::Patch::<Value>::Json(serde_json::from_value(change).expect("a JSON patch"));
        let edited = routes.patch("inference-route", &Default::default(), &change).await;
        edited.expect("editing the route");
    };
    edit(matches("PathPrefix", "/v2")).await;
    answers(entrance, 404, "the route leads elsewhere").await;
    edit(matches("RegularExpression", "/v1/(chat/)?completions")).await;
    answers(entrance, 200, "the pattern matches").await;
    edit(matches("RegularExpression", "/v1/(chat")).await;
    answers(entrance, 404, "what is no pattern drops its rule").await;
    edit(matches("PathPrefix", "/v1/chat/completions")).await;
    answers(entrance, 200, "the route is right again").await;
    let route = take_away(&routes, "inference-route").await;
    answers(entrance, 404, "the route is gone").await;
    routes.create(&create, &route).await.expect("creating the route again");
    answers(entrance, 200, "the route is back").await;
}

async fn policy_is_edited(scene: &Scene, gateway: &Gateway, entrance: &Client) {
    let create = PostParams::default();
    let group = "inferenceextension.alibabacloud.com/v1alpha1";
    let policies = scene.api(group, "InferenceTrafficPolicy", "inferencetrafficpolicies");
    let policy = "inference-policy";
    let label = |name: &str| json!({"spec": {"profile": {"pd": {"pdRoleLabelName": name}}}});
    patch(&policies, policy, label("on.no/pod")).await;
    answers(entrance, 503, "no pod has a role").await;
    let accepted = async |wanted: &str| {
        eventually(&format!("the policy's condition Accepted is {wanted}"), SOON, async || {
            (condition(&policies, policy, "Accepted").await == wanted).then_some(())
        })
        .await;
    };
    accepted("False/RoleLabelMissing").await;
    patch(&policies, policy, label("rolebasedgroup.workloads.x-k8s.io/role")).await;
    answers(entrance, 200, "roles are found again").await;
    accepted("True/Accepted").await;
    patch(&policies, policy, json!({"spec": {"modelServerRuntime": "vllm"}})).await;
    answers(entrance, 500, "an engine that is not known").await;
    patch(&policies, policy, json!({"spec": {"modelServerRuntime": "sglang"}})).await;
    answers(entrance, 200, "the engine is known again").await;
    let refused = policies
        .patch(
            policy,
            &Default::default(),
            &kube::api::Patch::Merge(&json!({"spec": {"profile": {"pd": {"kvTransfer": {
                "bootstrapPort": "many"}}}}})),
        )
        .await;
    assert!(refused.is_err(), "our definition refuses a port that is none");
    let object = take_away(&policies, policy).await;
    eventually("without its policy the pool is not split", SOON, async || {
        (gateway.fleet().await["pools"][0]["profile"] != "pd").then_some(())
    })
    .await;
    policies.create(&create, &object).await.expect("creating the policy again");
    answers(entrance, 200, "the policy is back").await;
}
