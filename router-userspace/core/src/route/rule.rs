//! [`Rule`]: one rule of an HTTPRoute with its weighted backends, and the [`Target`] of a backend.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use super::{Filters, Mirror, Redirect};
use crate::fleet::{ObjectName, Pool, ServiceBackend};

/// The target of a backend.
#[derive(Clone, Debug)]
pub enum Target {
    /// The pool's profile decides whether a request uses a pair or one worker.
    Pool(Arc<Pool>),
    Service(Arc<ServiceBackend>),
    Redirect(Redirect),
    /// An unresolved reference: its share of the requests gets 500.
    Broken {
        reason: Arc<str>,
    },
}

/// The timeouts of a request. `None` is "not set", zero is "no limit" (GEP-1742).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request head to the end of the response.
    pub request: Option<Duration>,
    /// For one attempt at a backend.
    pub backend_request: Option<Duration>,
}

impl Timeouts {
    /// These timeouts, with unset ones taken from `other`.
    pub fn or(self, other: Timeouts) -> Timeouts {
        Timeouts {
            request: self.request.or(other.request),
            backend_request: self.backend_request.or(other.backend_request),
        }
    }
}

/// One backend of a rule.
#[derive(Clone, Debug)]
pub struct Backend {
    pub weight: u32,
    pub target: Target,
    /// The rule's filters, followed by this backend's own.
    pub filters: Filters,
    /// The rule's mirrors, followed by this backend's own.
    pub mirrors: Vec<Mirror>,
}

impl Backend {
    /// A backend without mirrors.
    pub fn new(weight: u32, target: Target, filters: Filters) -> Backend {
        Backend { weight, target, filters, mirrors: Vec::new() }
    }
}

/// One rule of an HTTPRoute.
#[derive(Clone, Debug)]
pub struct Rule {
    pub route: ObjectName,
    /// The position among the route's rules.
    pub index: usize,
    /// Seconds since 1970. `None` sorts last.
    pub created: Option<i64>,
    pub timeouts: Timeouts,
    backends: Vec<Backend>,
    total: u64,
}

impl Rule {
    /// Creates a rule. If it has no backend, or all weights are 0, every request gets 500.
    pub fn new(
        route: ObjectName,
        index: usize,
        created: Option<i64>,
        timeouts: Timeouts,
        mut backends: Vec<Backend>,
    ) -> Rule {
        if backends.iter().all(|backend| backend.weight == 0) {
            let reason = match backends.len() {
                0 => "the rule has no backendRefs",
                _ => "every backendRef of the rule has weight 0",
            };
            let target = Target::Broken { reason: reason.into() };
            backends.push(Backend::new(1, target, Filters::default()));
        }
        let total = backends.iter().map(|backend| u64::from(backend.weight)).sum();
        Rule { route, index, created, timeouts, backends, total }
    }

    /// The backends in document order.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// Selects a backend by weight. `draw` is any random number.
    pub(super) fn draw(&self, draw: u64) -> &Backend {
        let mut left = draw % self.total;
        let mut last = &self.backends[0];
        for backend in &self.backends {
            last = backend;
            match left.checked_sub(u64::from(backend.weight)) {
                Some(rest) => left = rest,
                None => break,
            }
        }
        last
    }

    /// The precedence of equally specific matches: the older route, then the name, then the earlier
    /// rule.
    pub(super) fn seniority(&self) -> impl Ord + '_ {
        (self.created.is_none(), self.created, &self.route, self.index)
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Target::Pool(pool) => serializer.collect_str(&format_args!("pool {}", pool.name)),
            Target::Service(service) => {
                serializer.collect_str(&format_args!("service {}:{}", service.name, service.port))
            }
            Target::Redirect(redirect) => redirect.serialize(serializer),
            Target::Broken { reason } => serializer.collect_str(&format_args!("500: {reason}")),
        }
    }
}

impl Serialize for Backend {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Backend", 4)?;
        fields.serialize_field("target", &self.target)?;
        fields.serialize_field("weight", &self.weight)?;
        if !self.filters.is_empty() {
            fields.serialize_field("filters", &self.filters)?;
        }
        if !self.mirrors.is_empty() {
            fields.serialize_field("mirrors", &self.mirrors)?;
        }
        fields.end()
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ms = |limit: Option<Duration>| limit.map(|limit| limit.as_millis());
        let mut fields = serializer.serialize_struct("Rule", 5)?;
        fields.serialize_field("route", &self.route)?;
        fields.serialize_field("rule", &self.index)?;
        if let Some(limit) = ms(self.timeouts.request) {
            fields.serialize_field("request_timeout_ms", &limit)?;
        }
        if let Some(limit) = ms(self.timeouts.backend_request) {
            fields.serialize_field("backend_request_timeout_ms", &limit)?;
        }
        fields.serialize_field("backends", &self.backends)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(weights: &[u32]) -> Rule {
        let backend = |(index, &weight): (usize, &u32)| {
            let target = Target::Broken { reason: index.to_string().into() };
            Backend::new(weight, target, Filters::default())
        };
        let route = ObjectName { namespace: "default".into(), name: "route".into() };
        let backends = weights.iter().enumerate().map(backend).collect();
        Rule::new(route, 0, None, Timeouts::default(), backends)
    }

    fn reason(backend: &Backend) -> String {
        match &backend.target {
            Target::Broken { reason } => reason.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn backends_are_drawn_by_weight_and_weight_0_is_never_drawn() {
        let rule = rule(&[7, 0, 3]);
        let drawn: String = (0..10).map(|draw| reason(rule.draw(draw))).collect();
        assert_eq!(drawn, "0000000222");
    }

    #[test]
    fn a_rule_without_a_weighted_backend_is_broken() {
        assert_eq!(reason(rule(&[]).draw(5)), "the rule has no backendRefs");
        assert_eq!(reason(rule(&[0, 0]).draw(5)), "every backendRef of the rule has weight 0");
    }
}
