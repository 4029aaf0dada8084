//! [`Trace`]: requests and their times, parsed from a file or generated.

use serde::Deserialize;

use crate::random::Random;

/// Tokens per block of a trace.
pub(crate) const BLOCK_TOKENS: u32 = 512;

/// One request of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceRequest {
    pub at_ms: f64,
    pub input_tokens: u32,
    pub output_tokens: u32,
    /// Blocks of the prompt. Equal numbers mean equal blocks after equal prefixes.
    pub blocks: Vec<u64>,
}

/// Requests ordered by time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    pub arrivals: Vec<TraceRequest>,
}

/// A line of the file format that Mooncake (FAST'25) publishes its traces in.
#[derive(Deserialize)]
struct TraceLine {
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

/// A trace that cannot be parsed.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct BadTrace {
    pub line: usize,
    pub reason: String,
}

impl Trace {
    /// Parses lines of `{"timestamp":ms,"input_length":..,"output_length":..,"hash_ids":[..]}`.
    ///
    /// # Errors
    /// Names the first line that is not such an object or whose timestamp goes back.
    pub fn parse(text: &str) -> Result<Trace, BadTrace> {
        let mut arrivals: Vec<TraceRequest> = Vec::new();
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        for (at, line) in lines {
            let bad = |reason: String| BadTrace { line: at + 1, reason };
            let line: TraceLine =
                serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
            let back = arrivals.last().is_some_and(|last| line.timestamp < last.at_ms);
            if back || !line.timestamp.is_finite() {
                return Err(bad("the timestamp goes back in time".to_owned()));
            }
            arrivals.push(TraceRequest {
                at_ms: line.timestamp,
                input_tokens: line.input_length.max(1),
                output_tokens: line.output_length.max(1),
                // The prefix index does not accept block 0.
                blocks: line.hash_ids.into_iter().map(|id| id.wrapping_add(1)).collect(),
            });
        }
        Ok(Trace { arrivals })
    }

    /// Returns the requests scaled to `per_ms` requests per millisecond on average.
    ///
    /// Recorders quantise times (to three seconds in the published traces). Requests with the same time
    /// are spread over the step at random; otherwise each step would be a burst.
    pub fn at_rate(&self, per_ms: f64, seed: u64) -> Trace {
        let mut random = Random::new(seed, 2);
        let mut arrivals = self.arrivals.clone();
        let times: Vec<f64> = arrivals.iter().map(|arrival| arrival.at_ms).collect();
        let mut gap = 0.0;
        for (at, arrival) in arrivals.iter_mut().enumerate().rev() {
            if let Some(next) = times[at..].iter().find(|&&time| time > times[at]) {
                gap = next - times[at];
            }
            arrival.at_ms += gap * random.unit();
        }
        arrivals.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
        let first = arrivals.first().map_or(0.0, |arrival| arrival.at_ms);
        let span = arrivals.last().map_or(0.0, |arrival| arrival.at_ms) - first;
        let scale = if span > 0.0 { arrivals.len() as f64 / per_ms / span } else { 0.0 };
        for arrival in &mut arrivals {
            arrival.at_ms = (arrival.at_ms - first) * scale;
        }
        Trace { arrivals }
    }

    /// Returns the mean of a quantity over the requests.
    pub fn mean(&self, of: impl Fn(&TraceRequest) -> f64) -> f64 {
        self.arrivals.iter().map(of).sum::<f64>() / self.arrivals.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_line() {
        let good = r#"{"timestamp": 5, "input_length": 10, "output_length": 3, "hash_ids": [0]}"#;
        assert_eq!(Trace::parse(good).unwrap().arrivals[0].blocks, [1]);
        let wrong = format!("{good}\n\n{{\"timestamp\": 1}}");
        assert_eq!(Trace::parse(&wrong).unwrap_err().line, 3);
        let back = format!("{good}\n{}", good.replace('5', "4"));
        assert!(Trace::parse(&back).unwrap_err().reason.contains("back"));
    }
}
