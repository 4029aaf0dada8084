//! The examples at the end of each command's `--help`.

pub(super) const GATEWAY_EXAMPLES: &str = "\
Examples:
  Serve the Gateways of the cluster that this pod runs in:
    pd-router gateway --kubernetes

  Serve a directory of manifests, and reload it when a file changes:
    pd-router gateway --manifests ./manifests

  Serve two engines without a cluster, with sglang-router's flags:
    pd-router gateway --pd-disaggregation --prefill http://10.0.0.1:30000 8998 \\
      --decode http://10.0.0.2:30000 --port 8000";

pub(super) const AGENT_EXAMPLES: &str = "\
Examples:
  Measure the pods of this node of a cluster (as the DaemonSet does):
    pd-router agent --kubernetes --node-name \"$NODE_NAME\" --listen 0.0.0.0:9911 \\
      --token-file /etc/pd-router/token

  Measure the pods that a directory of manifests names:
    pd-router agent --manifests ./manifests

  Remove every BPF program and pin of an agent that has stopped:
    pd-router agent --cleanup";

pub(super) const SIMULATE_EXAMPLES: &str = "\
Examples:
  Compare all policies at three loads:
    pd-router simulate

  Compare two policies while worker 0 runs at a third of its speed:
    pd-router simulate --policies predicted,least_load --load 0.6 --fault slow:0:3

  Replay a trace, and write the results as JSON and SVG:
    pd-router simulate --trace trace.jsonl --json results.json --plot results.svg";

pub(super) const CHECK_EXAMPLES: &str = "\
Examples:
  Check manifests before they are applied; the exit code is 1 if there is a problem:
    pd-router check --manifests ./manifests";

pub(super) const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  Complete commands and flags in bash:
    pd-router completions bash > /etc/bash_completion.d/pd-router";

pub(super) const CRDS_EXAMPLES: &str = "\
Examples:
  Install the definitions:
    pd-router crds | kubectl apply -f -";

pub(super) const TOP_EXAMPLES: &str = "\
Examples:
  Watch the gateway of this host:
    pd-router top

  Print one JSON object for a script, from a gateway of a cluster:
    kubectl port-forward -n pd-router-system deployment/pd-router-gateway 9901 &
    pd-router top --once --json --token-file ./token";
