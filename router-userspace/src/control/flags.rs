//! The flags source: engines from the command line, as with sglang-router. They form one pool behind
//! one listener.
//!
//! Host names are resolved at the start and every [`RESOLVE_EVERY`] polls. An engine keeps its
//! address as long as the resolver still returns it. A name that does not resolve is retried every
//! [`RETRY_EVERY`] polls; until then, the engine is not a worker.

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

/// The name of all objects that are made from flags.
const NAME: &str = "flags";
/// The label by which the pool selects its pods.
const POOL_LABEL: &str = "pd-router/pool";
/// Polls between two resolutions of a host name: about 30 s.
pub const RESOLVE_EVERY: u32 = 200;
/// Polls between two attempts for a name that does not resolve: about 1 s.
pub const RETRY_EVERY: u32 = 7;

/// An invalid value of a flag.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFlag {
    #[error("--{flag} {value:?}: {reason}")]
    Url { flag: &'static str, value: String, reason: &'static str },
    #[error("--prefill: bootstrap port {0:?} must be a port from 1 to 65535, or `none`")]
    BootstrapPort(String),
}

/// One engine of the command line.
#[derive(Clone, Debug)]
struct EngineFlag {
    role: &'static str,
    /// The URL's authority, `host:port`. It is also the worker's name.
    authority: String,
    host: String,
    port: NonZeroU16,
    bootstrap_port: Option<NonZeroU16>,
    address: Option<IpAddr>,
}

/// The engines of the command line.
#[derive(Debug)]
pub struct Engines {
    engines: Vec<EngineFlag>,
    listener_port: u16,
    polls: u32,
    started: bool,
}

impl Engines {
    /// Parses the values of `--prefill URL [BOOTSTRAP_PORT|none]`, `--decode URL` and `--port`. Without
    /// a bootstrap port, the one that the engine reports is used.
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
        let mut names = std::collections::BTreeSet::new();
        if let Some(twice) = engines.iter().find(|engine| !names.insert(&engine.authority)) {
            let reason = "is given twice";
            let value = format!("http://{}", twice.authority);
            return Err(BadFlag::Url { flag: twice.role, value, reason });
        }
        Ok(Engines { engines, listener_port, polls: 0, started: false })
    }

    /// Resolves host names that are due, and updates the pods in `index`. Returns whether the index
    /// has changed. Blocks on the resolver.
    pub fn poll(&mut self, index: &mut Index) -> bool {
        let due = self.polls.is_multiple_of(RESOLVE_EVERY);
        let retry = self.polls.is_multiple_of(RETRY_EVERY);
        self.polls = self.polls.wrapping_add(1);
        let first = !std::mem::replace(&mut self.started, true);
        if first {
            for object in topology(self.listener_port) {
                index.apply(Source::Flags, object);
            }
        }
        let mut changed = first;
        let mut problems = Vec::new();
        for engine in &mut self.engines {
            let before = engine.address;
            let failure = if due || (retry && before.is_none()) { engine.resolve() } else { None };
            changed |= engine.address != before;
            if let Some(reason) = failure {
                problems.push(unresolved(engine, &reason));
            }
            if first || engine.address != before {
                index.apply(Source::Flags, Object::Pod(Box::new(engine.pod())));
            }
        }
        if due || retry {
            index.report(&Source::Flags.name(), problems);
        }
        changed
    }
}

impl EngineFlag {
    /// Resolves the host. Returns the resolver's error; the last address then stays in use.
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

fn engine(flag: &'static str, url: &str) -> Result<EngineFlag, BadFlag> {
    let bad = |reason| BadFlag::Url { flag, value: url.to_owned(), reason };
    let uri: http::Uri = url.parse().map_err(|_| bad("is not a URL"))?;
    if uri.scheme_str() != Some("http") {
        return Err(bad("must begin with http://"));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(bad("must have no path or query"));
    }
    let port = NonZeroU16::new(uri.port_u16().unwrap_or(80)).ok_or_else(|| bad("has port 0"))?;
    let host = uri.host().ok_or_else(|| bad("has no host"))?.to_owned();
    let authority = format!("{host}:{port}");
    Ok(EngineFlag { role: flag, authority, host, port, bootstrap_port: None, address: None })
}

fn unresolved(engine: &EngineFlag, reason: &str) -> Problem {
    let kept = if engine.address.is_some() { "; its last address stays in use" } else { "" };
    Problem {
        source: Source::Flags.name(),
        document: None,
        object: Some(engine.authority.as_str().into()),
        field: Some(format!("--{}", engine.role).into()),
        code: "Unresolved",
        reason: format!("cannot resolve the host name: {reason}{kept}").into(),
    }
}

fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

/// The objects around the engines: a Gateway with one listener, a route for all paths, a pool and
/// its policy.
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
        profile: Some(TrafficProfile { pd: Some(PdProfile::default()), single: None }),
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

#[cfg(test)]
mod tests {
    use router_core::fleet::{Fleet, ListenPort, Profile, Role};
    use router_core::route::{Head, Target, find};

    use super::*;

    fn engines(prefill: &[&[&str]], decode: &[&str]) -> Result<Engines, BadFlag> {
        let prefill: Vec<Vec<String>> =
            prefill.iter().map(|values| values.iter().map(|v| (*v).to_owned()).collect()).collect();
        let decode: Vec<String> = decode.iter().map(|url| (*url).to_owned()).collect();
        Engines::parse(&prefill, &decode, 30000)
    }

    #[test]
    fn the_flags_of_sglang_router_make_a_pool_without_any_manifest() {
        let prefill: [&[&str]; 3] = [
            &["http://127.0.0.11:30001", "34000"],
            &["http://127.0.0.11:30002", "none"],
            &["http://[::1]:30003/"],
        ];
        let decode = ["http://127.0.0.21:30004", "http://127.0.0.22"];
        let mut engines = engines(&prefill, &decode).unwrap();
        let mut index = Index::default();
        assert!(engines.poll(&mut index));
        assert!(!engines.poll(&mut index), "addresses stay");
        let fleet = index.build(&Fleet::default());
        assert_eq!(fleet.problems, []);
        assert_eq!(fleet.ports(), [ListenPort { number: 30000, secure: false }]);
        let pool = &fleet.pools[0];
        assert_eq!(pool.profile, Profile::Pd);
        let seen: Vec<(Role, String, Option<String>)> = pool
            .members
            .iter()
            .map(|member| {
                let bootstrap = member.bootstrap.map(|address| address.to_string());
                (member.role, member.worker.address().to_string(), bootstrap)
            })
            .collect();
        let prefill = |address: &str, bootstrap: Option<&str>| {
            (Role::Prefill, address.to_owned(), bootstrap.map(str::to_owned))
        };
        assert_eq!(
            seen,
            [
                prefill("127.0.0.11:30001", Some("127.0.0.11:34000")),
                prefill("127.0.0.11:30002", None),
                (Role::Decode, "127.0.0.21:30004".to_owned(), None),
                (Role::Decode, "127.0.0.22:80".to_owned(), None),
                prefill("[::1]:30003", None),
            ]
        );
        let headers = http::HeaderMap::new();
        let method = http::Method::POST;
        let path = "/generate";
        let head = Head { method: &method, host: None, path, query: None, headers: &headers };
        let found = find(&fleet, 30000, &head, 0).unwrap();
        assert!(matches!(found.target, Target::Pool(_)), "{:?}", found.target);
    }

    #[test]
    fn an_invalid_flag_is_named_with_the_reason() {
        let decode = "http://127.0.0.1:1";
        let prefill: [&[&str]; 1] = [&["http://127.0.0.1:1"]];
        for (flags, expected) in [
            (engines(&[&["127.0.0.1:1"]], &[decode]), "--prefill \"127.0.0.1:1\": must begin with"),
            (engines(&prefill, &["https://a:1"]), "--decode \"https://a:1\": must begin with http"),
            (engines(&prefill, &["http://a:1/v1"]), "must have no path or query"),
            (engines(&prefill, &["http://a:0"]), "has port 0"),
            (
                engines(&prefill, &["http://127.0.0.1:1"]),
                "--decode \"http://127.0.0.1:1\": is given twice",
            ),
            (engines(&prefill, &["no url"]), "is not a URL"),
            (engines(&[&["http://a:1", "x"]], &[decode]), "bootstrap port \"x\" must be"),
            (engines(&[&["http://a:1", "0"]], &[decode]), "bootstrap port \"0\" must be"),
        ] {
            let error = flags.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_host_name_that_does_not_resolve_is_reported_and_has_no_worker() {
        // RFC 6761 keeps `invalid` from ever resolving.
        let mut engines =
            engines(&[&["http://prefill.invalid:1"]], &["http://localhost:2"]).unwrap();
        let mut index = Index::default();
        assert!(engines.poll(&mut index));
        let fleet = index.build(&Fleet::default());
        let pool = &fleet.pools[0];
        assert!(pool.members.iter().all(|member| member.role == Role::Decode));
        assert_eq!(pool.members.len(), 1);
        let unfit = |name: &str| pool.excluded.iter().any(|unfit| &*unfit.worker == name);
        assert!(unfit("default/prefill.invalid:1"), "{:?}", pool.excluded);
        let problem = fleet.problems[0].to_string();
        assert!(problem.contains("prefill.invalid:1, --prefill: cannot resolve the host name"));
    }
}
