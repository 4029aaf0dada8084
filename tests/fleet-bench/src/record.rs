//! One run as a line of the output file: a router under one load in one round, request by request.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One run. Runs of one cell and round have the same requests at the same times.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Run {
    pub(crate) round: u32,
    /// The workload and its rate in requests per second, as in `docs:9`.
    pub(crate) cell: String,
    pub(crate) router: String,
    /// Its number among the routers that are compared; 0 is the reference.
    pub(crate) position: usize,
    pub(crate) gateways: usize,
    /// Requests that are due before this time are not counted.
    pub(crate) warm_up_s: f64,
    /// From the first request that is due to the end of the last response.
    pub(crate) wall_s: f64,
    /// The longest time between the moment at which a request was due and its sending.
    pub(crate) late_ms: f64,
    /// CPU time of all gateways for one request; unknown for gateways that are not ours.
    pub(crate) gateway_cpu_ms: Option<f64>,
    /// The largest resident memory of a gateway.
    pub(crate) gateway_peak_mib: Option<u64>,
    /// What the prefills say they were sent, and what of it they had cached.
    pub(crate) prompt_tokens: Option<f64>,
    pub(crate) cached_tokens: Option<f64>,
    pub(crate) requests: Vec<Sample>,
}

/// One request.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Sample {
    /// When it was due, from the beginning of the run.
    pub(crate) at_s: f64,
    /// As the workload wants it; the engine's tokenizer may differ by a few percent.
    pub(crate) prompt_tokens: u32,
    /// Requested tokens of output.
    pub(crate) output_tokens: u32,
    /// From sending the request to the first event that carries a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ttft_ms: Option<f64>,
    /// Mean time between two tokens; none for a response of one token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) itl_ms: Option<f64>,
    /// The longest time between two events that carry a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gap_ms: Option<f64>,
    /// What pd-router says of its choice with --explain-headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) predicted_ttft_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prefill: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) decode: Option<String>,
    /// Why there is no complete response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl Run {
    /// The requests after the warm-up, each with its number.
    pub(crate) fn counted(&self) -> impl Iterator<Item = (usize, &Sample)> {
        self.requests.iter().enumerate().filter(|(_, sample)| sample.at_s >= self.warm_up_s)
    }

    /// The number of failed requests by reason, the warm-up's included.
    pub(crate) fn errors(&self) -> BTreeMap<&str, usize> {
        let mut errors = BTreeMap::new();
        for error in self.requests.iter().filter_map(|sample| sample.error.as_deref()) {
            *errors.entry(error).or_default() += 1;
        }
        errors
    }

    /// Adds it to a file of such lines.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn append_to(&self, path: &Path) -> Result<()> {
        let line = serde_json::to_string(self).context("a run as JSON")?;
        let open = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let written = open.and_then(|mut file| writeln!(file, "{line}"));
        written.with_context(|| format!("writing {}", path.display()))
    }
}

/// The runs in a file; a file that does not exist has none.
///
/// # Errors
/// The file cannot be read, or a line is no run.
pub(crate) fn read(path: &Path) -> Result<Vec<Run>> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("reading {}", path.display()))?,
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let runs = lines.map(|(at, line)| {
        let parsed = serde_json::from_str(line);
        parsed.with_context(|| format!("{}, line {}: not a run", path.display(), at + 1))
    });
    runs.collect()
}
