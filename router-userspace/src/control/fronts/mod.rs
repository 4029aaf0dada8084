//! Makes, keeps and sweeps the Service in front of each Gateway, while this replica leads.

pub mod plan;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams, Preconditions};
use serde_json::Value;

use self::plan::{Shape, Step};
use super::index::{CONTROLLER_NAME, Front, GATEWAY_UID_LABEL, gateway_uid};
use super::kube::resource;
use super::objects::Kind;

/// Writes the Services of all Gateways.
pub(super) struct Fronts {
    client: Client,
    shape: Shape,
    /// What could not be done the last time, by Service: said once.
    failed: BTreeMap<String, String>,
}

impl Fronts {
    pub(super) fn new(client: Client, shape: Shape) -> Fronts {
        Fronts { client, shape, failed: BTreeMap::new() }
    }

    /// Brings the Services to what `wanted` needs. `known` is what watches have told of them:
    /// where that is as it should be, the API server is not asked.
    pub(super) async fn settle(&mut self, wanted: &[Front], known: &[Service]) {
        if plan::plan(wanted, known, &self.shape).is_empty() {
            self.failed.clear();
            return;
        }
        let services: Api<Service> = Api::namespaced(self.client.clone(), &self.shape.namespace);
        let ours = ListParams::default().labels(GATEWAY_UID_LABEL);
        let existing = match services.list(&ours).await {
            Ok(list) => list.items,
            Err(error) => return self.say("all", &error),
        };
        let mut failed = std::mem::take(&mut self.failed);
        for step in plan::plan(wanted, &existing, &self.shape) {
            let name = name_of(&step);
            match self.take(&services, step).await {
                Ok(()) => _ = failed.remove(&name),
                Err(error) => {
                    self.failed = failed;
                    self.say(&name, &error);
                    failed = std::mem::take(&mut self.failed);
                }
            }
        }
        self.failed = failed;
    }

    async fn take(&self, services: &Api<Service>, step: Step) -> Result<(), kube::Error> {
        let name = name_of(&step);
        let done = match step {
            Step::Create(service) => {
                services.create(&PostParams::default(), &service).await.map(|_| "made")
            }
            Step::Replace(service) => {
                services.replace(&name, &PostParams::default(), &service).await.map(|_| "changed")
            }
            Step::Delete(service) => {
                if !self.is_orphan(&service).await? {
                    return Ok(());
                }
                let uid = service.metadata.uid.clone();
                let params = DeleteParams {
                    preconditions: Some(Preconditions { uid, ..Preconditions::default() }),
                    ..DeleteParams::default()
                };
                services.delete(&name, &params).await.map(|_| "removed")
            }
        };
        match done {
            Ok(done) => {
                tracing::info!(service = name, "Service of a Gateway {done}");
                Ok(())
            }
            // Somebody was quicker: the next look sees what they did.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the API server itself says that a Service's Gateway is gone or another's. A watch
    /// that has told nothing, as while an API server starts, must not cost anybody an address.
    async fn is_orphan(&self, service: &Service) -> Result<bool, kube::Error> {
        let uid = gateway_uid(service).unwrap_or_default();
        let annotations = service.metadata.annotations.as_ref();
        let named = annotations.and_then(|all| all.get(plan::GATEWAY_ANNOTATION));
        let Some((namespace, name)) = named.and_then(|named| named.split_once('/')) else {
            // Not as we make them: whoever changed it shall remove it.
            return Ok(false);
        };
        let gateways: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource(Kind::Gateway));
        let gateway = match gateways.get(name).await {
            Ok(gateway) => gateway,
            Err(error) => return if is_gone(&error, name) { Ok(true) } else { Err(error) },
        };
        if gateway.metadata.uid.as_deref() != Some(uid) {
            return Ok(true);
        }
        let class = gateway.data.pointer("/spec/gatewayClassName").and_then(Value::as_str);
        let Some(class) = class else { return Ok(false) };
        let classes: Api<DynamicObject> =
            Api::all_with(self.client.clone(), &resource(Kind::GatewayClass));
        match classes.get(class).await {
            Ok(found) => {
                let controller = found.data.pointer("/spec/controllerName").and_then(Value::as_str);
                Ok(controller != Some(CONTROLLER_NAME))
            }
            Err(error) => {
                if is_gone(&error, class) {
                    Ok(true)
                } else {
                    Err(error)
                }
            }
        }
    }

    /// Says once what does not work.
    fn say(&mut self, service: &str, error: &kube::Error) {
        let error = error.to_string();
        if self.failed.get(service) != Some(&error) {
            tracing::warn!(service, error, "the Service of a Gateway cannot be written");
            self.failed.insert(service.to_owned(), error);
        }
    }
}

/// Whether the object is not there, rather than its kind: an API server that starts says the latter
/// of kinds that it has.
fn is_gone(error: &kube::Error, name: &str) -> bool {
    let kube::Error::Api(status) = error else { return false };
    status.code == 404 && status.details.as_ref().is_some_and(|details| details.name == name)
}

fn name_of(step: &Step) -> String {
    let (Step::Create(service) | Step::Replace(service) | Step::Delete(service)) = step;
    service.metadata.name.clone().unwrap_or_default()
}
