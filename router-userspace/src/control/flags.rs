//! The source that takes engines from the command line, as sglang-router does: no manifests, one
//! listener, one pool.
//!
//! Host names are resolved at the start and every [`RESOLVE_EVERY`] looks. A name keeps its
//! address as long as the resolver still gives it; one that does not resolve is no worker yet
//! and is tried again with every look.

use std::net::{IpAddr, ToSocketAddrs};
use std::num::NonZeroU16;

use gateway_api::gateways::{Gateway, GatewayListeners, GatewaySpec};
use gateway_api::httproutes::{
    HttpRoute, HttpRouteParentRefs, HttpRouteRules, HttpRouteRulesBackendRefs, HttpRouteSpec,
};
use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use router_core::fleet::Problem;

use super::index::{BOOTSTRAP_PORT_ANNOTATION, DEFAULT_ROLE_LABEL, Index, Source};
use super::objects::{
    InferencePool, InferenceTrafficPolicy, Object, POOL_GROUP_V1, PdProfile, PoolRef, PoolSpec,
    TrafficPolicySpec, TrafficProfile,
};

/// The name of everything that is made of flags.
const NAME: &str = "flags";
/// The label that the pool selects its pods by.
const POOL_LABEL: &str = "pd-router/pool";
/// Looks between two resolutions of a name that resolves: some 30 seconds.
pub const RESOLVE_EVERY: u32 = 200;

/// Why a flag's value is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFlag {
    #[error("--{flag} {value:?}: {reason}")]
    Url { flag: &'static str, value: String, reason: &'static str },
    #[error("--prefill: {0:?} is no bootstrap port; give a number or `none`")]
    BootstrapPort(String),
}

/// One engine of the command line.
#[derive(Clone, Debug)]
struct Engine {
    role: &'static str,
    /// The URL's authority, which is also the worker's name.
    authority: String,
    host: String,
    port: NonZeroU16,
    bootstrap_port: Option<NonZeroU16>,
    address: Option<IpAddr>,
}

/// The engines of the command line.
#[derive(Debug)]
pub struct Engines {
    engines: Vec<Engine>,
    listener_port: u16,
    looks: u32,
    begun: bool,
}

impl Engines {
    /// Takes the values of `--prefill URL [BOOTSTRAP_PORT|none]`, `--decode URL` and `--port`.
    /// Without a bootstrap port, or with `none`, SGLang's default 8998 is meant.
    pub fn parse(
        prefill: &[Vec<String>],
        decode: &[String],
        listener_port: u16,
    ) -> Result<Engines, BadFlag> {
        let mut engines = Vec::new();
        for values in prefill {
            let url = values.first().map(String::as_str).unwrap_or_default();
            let mut engine = engine("prefill", url)?;
            engine.bootstrap_port = match values.get(1).map(String::as_str) {
                None | Some("none" | "None") => None,
                Some(text) => {
                    let port = text.parse().map_err(|_| BadFlag::BootstrapPort(text.to_owned()))?;
                    Some(port)
                }
            };
            engines.push(engine);
        }
        for url in decode {
            engines.push(engine("decode", url)?);
        }
        Ok(Engines { engines, listener_port, looks: 0, begun: false })
    }

    /// Resolves host names where it is time, and brings the pods in `index` up to date. Returns
    /// whether something has changed. Blocks on the resolver.
    pub fn poll(&mut self, index: &mut Index) -> bool {
        let due = self.looks.is_multiple_of(RESOLVE_EVERY);
        self.looks = self.looks.wrapping_add(1);
        let first = !std::mem::replace(&mut self.begun, true);
        if first {
            for object in topology(self.listener_port) {
                index.apply(Source::Flags, object);
            }
        }
        let mut changed = first;
        let mut problems = Vec::new();
        for engine in &mut self.engines {
            let before = engine.address;
            let failure = if due || before.is_none() { engine.resolve() } else { None };
            changed |= engine.address != before;
            if let Some(reason) = failure {
                problems.push(unresolved(engine, &reason));
            }
            if first || engine.address != before {
                index.apply(Source::Flags, Object::Pod(Box::new(engine.pod())));
            }
        }
        if due || changed {
            index.report(&Source::Flags.name(), problems);
        }
        changed
    }
}

impl Engine {
    /// Looks the host up; what the resolver said where that failed. The last address stays.
    fn resolve(&mut self) -> Option<String> {
        let host = self.host.trim_matches(['[', ']']);
        match (host, self.port.get()).to_socket_addrs() {
            Ok(found) => {
                let found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
                if self.address.is_none_or(|known| !found.contains(&known)) {
                    self.address = found.first().copied();
                }
                None
            }
            Err(error) => Some(error.to_string()),
        }
    }

    fn pod(&self) -> Pod {
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let labels = [label(POOL_LABEL, NAME), label(DEFAULT_ROLE_LABEL, self.role)];
        let annotation =
            |port: NonZeroU16| (BOOTSTRAP_PORT_ANNOTATION.to_owned(), port.to_string());
        let ready = PodCondition {
            type_: "Ready".to_owned(),
            status: "True".to_owned(),
            ..PodCondition::default()
        };
        let port = ContainerPort {
            container_port: i32::from(self.port.get()),
            ..ContainerPort::default()
        };
        let container = Container { ports: Some(vec![port]), ..Container::default() };
        Pod {
            metadata: ObjectMeta {
                labels: Some(labels.into()),
                annotations: self.bootstrap_port.map(|port| [annotation(port)].into()),
                ..metadata(&self.authority)
            },
            spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }),
            status: Some(PodStatus {
                pod_ip: self.address.map(|address| address.to_string()),
                conditions: Some(vec![ready]),
                ..PodStatus::default()
            }),
        }
    }
}

fn engine(flag: &'static str, url: &str) -> Result<Engine, BadFlag> {
    let bad = |reason| BadFlag::Url { flag, value: url.to_owned(), reason };
    let uri: http::Uri = url.parse().map_err(|_| bad("is no URL"))?;
    if uri.scheme_str() != Some("http") {
        return Err(bad("must begin with http://"));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(bad("must end after the port"));
    }
    let port = NonZeroU16::new(uri.port_u16().unwrap_or(80)).ok_or_else(|| bad("has port 0"))?;
    let host = uri.host().ok_or_else(|| bad("has no host"))?.to_owned();
    let authority = format!("{host}:{port}");
    Ok(Engine { role: flag, authority, host, port, bootstrap_port: None, address: None })
}

fn unresolved(engine: &Engine, reason: &str) -> Problem {
    let kept = if engine.address.is_some() { "; its last address is kept" } else { "" };
    Problem {
        source: Source::Flags.name(),
        document: None,
        object: Some(engine.authority.as_str().into()),
        field: Some(format!("--{}", engine.role).into()),
        code: "Unresolved",
        reason: format!("the host name does not resolve: {reason}{kept}").into(),
    }
}

fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

/// The objects around the engines: one listener, a route for every path, a pool, its policy.
fn topology(port: u16) -> [Object; 4] {
    let listener = GatewayListeners {
        name: "http".to_owned(),
        protocol: "HTTP".to_owned(),
        port: i32::from(port),
        ..GatewayListeners::default()
    };
    let gateway = GatewaySpec { listeners: vec![listener], ..GatewaySpec::default() };
    let parent = HttpRouteParentRefs { name: NAME.to_owned(), ..HttpRouteParentRefs::default() };
    let backend = HttpRouteRulesBackendRefs {
        group: Some(POOL_GROUP_V1.to_owned()),
        kind: Some("InferencePool".to_owned()),
        name: NAME.to_owned(),
        ..HttpRouteRulesBackendRefs::default()
    };
    let rule = HttpRouteRules { backend_refs: Some(vec![backend]), ..HttpRouteRules::default() };
    let route = HttpRouteSpec {
        parent_refs: Some(vec![parent]),
        rules: Some(vec![rule]),
        ..HttpRouteSpec::default()
    };
    let selector = [(POOL_LABEL.to_owned(), NAME.to_owned())].into();
    let policy = TrafficPolicySpec {
        pool_ref: PoolRef { group: None, kind: None, name: NAME.to_owned() },
        model_server_runtime: None,
        profile: TrafficProfile { pd: Some(PdProfile::default()), single: None },
    };
    [
        Object::Gateway(Gateway { metadata: metadata(NAME), spec: gateway, status: None }),
        Object::HttpRoute(HttpRoute { metadata: metadata(NAME), spec: route, status: None }),
        Object::InferencePool(InferencePool {
            metadata: metadata(NAME),
            spec: PoolSpec::OfEngines { selector },
        }),
        Object::InferenceTrafficPolicy(InferenceTrafficPolicy {
            metadata: metadata(NAME),
            spec: policy,
            status: None,
        }),
    ]
}
