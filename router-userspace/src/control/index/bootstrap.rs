//! The bootstrap ports of prefill engines: what the operator says, else what the engine reports.

use router_core::fleet::{EngineInfo, Member};

use super::Source;
use super::build::{Build, Subject};
use super::pods::PodView;

/// Annotation with the bootstrap port of a pod, which overrides the policy's; of a pod with several
/// target ports, one for each, separated by commas.
pub(in crate::control) const BOOTSTRAP_PORT_ANNOTATION: &str = "sglang.ai/bootstrap-port";
/// SGLang's default of `--disaggregation-bootstrap-port`, for engines that report none.
pub const DEFAULT_BOOTSTRAP_PORT: u16 = 8998;
/// Problem code of a port that differs from the engine's own.
pub(super) const MISMATCH: &str = "BootstrapPortMismatch";
/// Maximum number of engines that one problem of a policy names.
const MAX_NAMED: usize = 3;

/// The bootstrap ports of the engines of one pod, as far as they are configured.
pub(super) struct BootstrapPorts {
    /// One port for each target port, from the annotation.
    annotated: Vec<u16>,
    /// The policy's port.
    of_policy: Option<u16>,
    /// The pod has one target port: a single configured port is its engine's.
    is_alone: bool,
}

/// Engines of a pool whose own bootstrap port is not the policy's: their names and ports.
#[derive(Default)]
pub(super) struct PolicyMismatches(Vec<(String, u16)>);

impl BootstrapPorts {
    /// Reads the configured ports of a pod with `count` target ports, and reports an invalid
    /// annotation.
    pub(super) fn read(
        build: &mut Build<'_>,
        pod: &PodView<'_>,
        count: usize,
        of_policy: Option<u16>,
    ) -> BootstrapPorts {
        let annotated = pod.annotation(BOOTSTRAP_PORT_ANNOTATION).map(|text| {
            let ports = text.split(',').map(|port| port.trim().parse::<std::num::NonZeroU16>());
            let ports: Result<Vec<u16>, _> =
                ports.map(|port| port.map(|port| port.get())).collect();
            let reason = match ports {
                Ok(ports) if ports.len() == count || ports.len() == 1 => return ports,
                Ok(ports) => {
                    format!("{text:?} has {} ports, and the pod has {count} engines", ports.len())
                }
                Err(_) => format!("{text:?} is not a port"),
            };
            let reason = format!("{reason}; it is ignored");
            build.add_problem(
                Subject::of_pod(pod),
                annotation_field(pod.source),
                "Invalid",
                reason,
            );
            Vec::new()
        });
        BootstrapPorts { annotated: annotated.unwrap_or_default(), of_policy, is_alone: count == 1 }
    }

    /// The bootstrap port of the engine at the pod's target port number `at`. `None` while it is neither
    /// configured nor reported. A port that contradicts the engine's own is reported.
    ///
    /// A single port cannot be that of each of several engines: it is used for those that report none.
    pub(super) fn of_engine(
        &self,
        build: &mut Build<'_>,
        pod: &PodView<'_>,
        (at, target_port): (usize, u16),
        info: Option<&EngineInfo>,
        mismatches: &mut PolicyMismatches,
    ) -> Option<u16> {
        let reported = info.and_then(|info| info.disaggregation_bootstrap_port);
        let single = self.annotated.first().copied().or(self.of_policy);
        let is_annotated = !self.annotated.is_empty();
        let configured = match () {
            () if self.annotated.len() > 1 => self.annotated.get(at).copied(),
            () if self.is_alone => single,
            () => None,
        };
        let Some(configured) = configured else {
            let fallback = || single.unwrap_or(DEFAULT_BOOTSTRAP_PORT);
            return info.map(|_| reported.unwrap_or_else(fallback));
        };
        if let Some(reported) = reported.filter(|reported| *reported != configured) {
            let engine = format!("{}, port {target_port}", pod.summary.full_name);
            if is_annotated {
                let reason = format!(
                    "{configured} is used, and the engine of {engine} reports bootstrap port \
                     {reported}; without a configured port the engine's is used"
                );
                build.add_problem(
                    Subject::of_pod(pod),
                    annotation_field(pod.source),
                    MISMATCH,
                    reason,
                );
            } else {
                mismatches.0.push((engine, reported));
            }
        }
        Some(configured)
    }
}

impl PolicyMismatches {
    /// Reports the engines whose own port is not that of the policy.
    pub(super) fn report(self, build: &mut Build<'_>, policy: Subject<'_>, port: u16) {
        if self.0.is_empty() {
            return;
        }
        let named = self.0.iter().take(MAX_NAMED);
        let mut named: Vec<String> =
            named.map(|(engine, reported)| format!("{reported} ({engine})")).collect();
        if self.0.len() > MAX_NAMED {
            named.push(format!("{} more engines report another", self.0.len() - MAX_NAMED));
        }
        let reason = format!(
            "{port} is used, and engines report another bootstrap port: {}; without a configured port \
             the engine's is used",
            named.join(", ")
        );
        build.add_problem(policy, "spec.profile.pd.kvTransfer.bootstrapPort", MISMATCH, reason);
    }
}

/// The field that has the pod's own port; of an engine from flags, the flag.
fn annotation_field(source: &Source) -> String {
    match source {
        Source::Flags => "--prefill".to_owned(),
        _ => format!("metadata.annotations[{BOOTSTRAP_PORT_ANNOTATION:?}]"),
    }
}

/// Reports a pool without a prefill/decode policy whose engines run as prefill or decode.
pub(super) fn report_missing_policy(build: &mut Build<'_>, pool: Subject<'_>, members: &[Member]) {
    let runs_in_pair = |member: &&Member| {
        let mode = |info: &EngineInfo| info.disaggregation_mode.clone();
        let mode = member.engine_info.as_deref().and_then(mode);
        matches!(mode.as_deref(), Some("prefill" | "decode"))
    };
    let engines = members.iter().filter(runs_in_pair).count();
    if engines == 0 {
        return;
    }
    let reason = format!(
        "{engines} engines of this pool run as prefill or decode, and no InferenceTrafficPolicy with \
         profile.pd names the pool: they get no requests"
    );
    build.add_problem(pool, "", "PolicyMissing", reason);
}
