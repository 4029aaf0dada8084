//! [`ServiceReconciler`]: creates, updates and deletes the Service in front of each Gateway, while
//! this replica is the leader.

pub mod plan;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams, Preconditions};
use serde_json::Value;

use self::plan::{ServiceAction, ServiceTemplate};
use super::api_resource::api_resource;
use super::index::{CONTROLLER_NAME, GATEWAY_UID_LABEL, GatewayService, gateway_uid};
use super::leader_election::in_time;
use super::objects::Kind;
use super::write_report::WriteReport;

/// Reconciles the Services of all Gateways.
pub(super) struct ServiceReconciler {
    client: Client,
    template: ServiceTemplate,
}

impl ServiceReconciler {
    pub(super) fn new(client: Client, template: ServiceTemplate) -> ServiceReconciler {
        ServiceReconciler { client, template }
    }

    /// Creates, updates and deletes Services so that they match `wanted`. `known` are the Services
    /// from the watch: while they match, no request is sent to the API server.
    pub(super) async fn reconcile(
        &self,
        wanted: &[GatewayService],
        known: &[Service],
        report: &WriteReport,
    ) {
        if plan::plan(wanted, known, &self.template).is_empty() {
            report.retain_services(|_| false);
            return;
        }
        let namespace = &self.template.namespace;
        let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        let ours = ListParams::default().labels(GATEWAY_UID_LABEL);
        let all = format!("the Services of namespace {namespace}");
        let existing = match in_time(services.list(&ours)).await {
            Ok(list) => list.items,
            Err(error) => return report.service_failed(&all, &error),
        };
        let subject = |action: &ServiceAction| format!("Service {namespace}/{}", name_of(action));
        let actions = plan::plan(wanted, &existing, &self.template);
        let due: BTreeSet<String> = actions.iter().map(subject).collect();
        report.retain_services(|service| due.contains(service));
        for action in actions {
            let service = subject(&action);
            match in_time(self.apply(&services, action)).await {
                Ok(()) => report.succeeded(&service),
                Err(error) => report.service_failed(&service, &error),
            }
        }
    }

    async fn apply(
        &self,
        services: &Api<Service>,
        action: ServiceAction,
    ) -> Result<(), kube::Error> {
        let name = name_of(&action);
        let done = match action {
            ServiceAction::Create(service) => {
                services.create(&PostParams::default(), &service).await.map(|_| "created")
            }
            ServiceAction::Replace(service) => {
                services.replace(&name, &PostParams::default(), &service).await.map(|_| "replaced")
            }
            ServiceAction::Delete(service) => {
                if !self.is_orphan(&service).await? {
                    return Ok(());
                }
                let uid = service.metadata.uid.clone();
                let params = DeleteParams {
                    preconditions: Some(Preconditions { uid, ..Preconditions::default() }),
                    ..DeleteParams::default()
                };
                services.delete(&name, &params).await.map(|_| "deleted")
            }
        };
        match done {
            Ok(done) => {
                tracing::info!(service = name, action = done, "gateway service written");
                Ok(())
            }
            // Another replica was faster. The next run sees its change.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the Gateway of a Service has been deleted or belongs to another controller. Asks the
    /// API server instead of the watch cache, because an incomplete cache, as while an API server
    /// starts, must not delete a Service and its address.
    async fn is_orphan(&self, service: &Service) -> Result<bool, kube::Error> {
        let uid = gateway_uid(service).unwrap_or_default();
        let annotations = service.metadata.annotations.as_ref();
        let named = annotations.and_then(|all| all.get(plan::GATEWAY_ANNOTATION));
        let Some((namespace, name)) = named.and_then(|named| named.split_once('/')) else {
            // Somebody has removed the annotation, and has to delete the Service too.
            return Ok(false);
        };
        let gateways: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &api_resource(Kind::Gateway));
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
            Api::all_with(self.client.clone(), &api_resource(Kind::GatewayClass));
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
}

/// Whether a 404 is about the object and not about its kind. An API server that is starting answers
/// 404 for kinds that it does have.
fn is_gone(error: &kube::Error, name: &str) -> bool {
    let kube::Error::Api(status) = error else { return false };
    status.code == 404 && status.details.as_ref().is_some_and(|details| details.name == name)
}

fn name_of(action: &ServiceAction) -> String {
    let (ServiceAction::Create(service)
    | ServiceAction::Replace(service)
    | ServiceAction::Delete(service)) = action;
    service.metadata.name.clone().unwrap_or_default()
}
