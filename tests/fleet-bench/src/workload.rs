//! What is asked, and when: documents that many share, or a trace. A seed gives one list of requests,
//! which every router gets.

use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use router_simulator::Trace;

use crate::words::Words;

/// Number of shared documents, and the exponent of the Zipf law by which they are asked about.
const DOCUMENTS: usize = 40;
const ZIPF: f64 = 0.8;
const DOCUMENT_TOKENS: std::ops::Range<f64> = 2_000.0..14_000.0;
const QUESTION_TOKENS: std::ops::Range<f64> = 100.0..800.0;
const ANSWER_TOKENS: std::ops::Range<f64> = 16.0..160.0;
/// Tokens per block of a trace, and requests by which rounds are apart in it.
const BLOCK_TOKENS: f64 = 512.0;
const ROUND_APART: usize = 300;
const MIN_OUTPUT: f64 = 8.0;

/// How long prompts and responses are.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Workload")]
pub(crate) struct WorkFlags {
    /// File of JSON lines with timestamp, input_length, output_length and hash_ids (Mooncake's format),
    /// for the workload `trace`.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Longest prompt taken from the trace, in tokens. Requests with longer prompts are left out.
    #[arg(long, value_name = "TOKENS", default_value_t = 32_000)]
    max_prompt: u32,
    /// Longest response, in tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 160)]
    max_output: u32,
    /// Factor on the trace's response lengths.
    #[arg(long, value_name = "FACTOR", default_value_t = 0.25)]
    output_scale: f64,
    /// Factor on the lengths of all prompts.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    prompt_scale: f64,
    /// File with the words that prompts are made of. Without it words are made up, of which most
    /// tokenizers make two to three tokens each. Lengths are in tokens in either case: the first
    /// request measures how many tokens a word has.
    #[arg(long, value_name = "FILE")]
    pub(crate) words: Option<PathBuf>,
}

/// A workload and its rate in requests per second.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cell {
    pub(crate) work: Work,
    pub(crate) rate: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Questions about shared documents; Poisson arrivals.
    Docs,
    /// Requests of a trace, at the mean rate asked for.
    Trace,
}

impl FromStr for Cell {
    type Err = String;

    fn from_str(text: &str) -> Result<Cell, String> {
        let wanted = || format!("`{text}` is not WORKLOAD:RATE, as in docs:9 or trace:4");
        let (work, rate) = text.split_once(':').ok_or_else(wanted)?;
        let work = match work {
            "docs" => Work::Docs,
            "trace" => Work::Trace,
            _ => return Err(wanted()),
        };
        let rate: f64 = rate.parse().map_err(|_| wanted())?;
        if !rate.is_finite() || rate <= 0.0 {
            return Err(wanted());
        }
        Ok(Cell { work, rate })
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let work = match self.work {
            Work::Docs => "docs",
            Work::Trace => "trace",
        };
        write!(f, "{work}:{}", self.rate)
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) at: Duration,
    pub(crate) prompt: String,
    pub(crate) prompt_tokens: u32,
    pub(crate) output_tokens: u32,
    /// Chooses the gateway.
    pub(crate) draw: usize,
}

/// Makes the requests of cells.
#[derive(Debug)]
pub(crate) struct Workloads {
    flags: WorkFlags,
    pub(crate) words: Words,
    trace: Option<Trace>,
}

impl Workloads {
    /// # Errors
    /// A file cannot be read, or `cells` has a trace and the flags none.
    pub(crate) fn new(flags: &WorkFlags, cells: &[Cell]) -> Result<Workloads> {
        let words = Words::new(flags.words.as_deref())?;
        let mut trace = None;
        if cells.iter().any(|cell| cell.work == Work::Trace) {
            let path = flags.trace.as_ref().context("the workload trace needs --trace FILE")?;
            let named = || format!("--trace {}", path.display());
            let text = std::fs::read_to_string(path).with_context(named)?;
            let mut all = Trace::parse(&text).with_context(named)?;
            all.arrivals.retain(|request| request.input_tokens <= flags.max_prompt);
            if all.arrivals.is_empty() {
                bail!("--trace {}: no prompt of at most {}", path.display(), flags.max_prompt);
            }
            trace = Some(all);
        }
        Ok(Workloads { flags: flags.clone(), words, trace })
    }

    /// # Errors
    /// The trace has fewer requests than `cell` sends within `seconds`.
    pub(crate) fn check(&self, cell: &Cell, seconds: f64) -> Result<()> {
        let has = self.trace.as_ref().map_or(0, |trace| trace.arrivals.len());
        let needed = of_trace(cell.rate, seconds);
        if cell.work == Work::Trace && has < needed {
            bail!(
                "--trace: {has} requests of at most --max-prompt tokens, of which {cell} needs {needed}"
            );
        }
        Ok(())
    }

    /// The requests of a cell that are due within `seconds`, which [`Workloads::check`] allows. Rounds
    /// differ.
    pub(crate) fn requests(&self, cell: &Cell, round: u32, seconds: f64) -> Vec<Request> {
        match cell.work {
            Work::Docs => self.documents(cell.rate, round, seconds),
            Work::Trace => self.traced(cell.rate, round, seconds),
        }
    }

    fn documents(&self, rate: f64, round: u32, seconds: f64) -> Vec<Request> {
        let scale = self.flags.prompt_scale;
        let mut fixed = StdRng::seed_from_u64(3);
        let lengths: Vec<f64> =
            (0..DOCUMENTS).map(|_| fixed.random_range(DOCUMENT_TOKENS) * scale).collect();
        let texts: Vec<String> = (0u64..)
            .zip(&lengths)
            .map(|(at, length)| self.words.text(1_000 + at, *length))
            .collect();
        let weights: Vec<f64> = (1..=DOCUMENTS).map(|at| (at as f64).powf(-ZIPF)).collect();
        let mut random = StdRng::seed_from_u64(u64::from(round) + 1);
        let mut requests = Vec::new();
        let mut at = 0.0;
        while at < seconds {
            let document = weighted(&weights, random.random());
            let question = random.random_range(QUESTION_TOKENS) * scale;
            let own = (u64::from(round) << 32) + requests.len() as u64 + (1 << 60);
            requests.push(Request {
                at: Duration::from_secs_f64(at),
                prompt: format!("{} {}", texts[document], self.words.text(own, question)),
                prompt_tokens: (lengths[document] + question) as u32,
                output_tokens: self.output(random.random_range(ANSWER_TOKENS)),
                draw: random.random_range(0..usize::from(u16::MAX)),
            });
            at -= (1.0 - random.random::<f64>()).ln() / rate;
        }
        requests
    }

    fn traced(&self, rate: f64, round: u32, seconds: f64) -> Vec<Request> {
        let all = self.trace.as_ref().map_or(&[][..], |trace| &trace.arrivals);
        let count = of_trace(rate, seconds).min(all.len());
        let skipped = ROUND_APART * round as usize % (all.len() - count + 1);
        let part = Trace { arrivals: all[skipped..skipped + count].to_vec() };
        let mut random = StdRng::seed_from_u64(u64::from(round) + 1);
        let scale = self.flags.prompt_scale;
        let mut blocks = HashMap::new();
        let timed = part.at_rate(rate / 1e3, u64::from(round) + 1);
        let requests = timed.arrivals.into_iter().map(|request| {
            let tokens = f64::from(request.input_tokens) * scale;
            Request {
                at: Duration::from_secs_f64(request.at_ms / 1e3),
                prompt: self.of_blocks(&mut blocks, &request.blocks, tokens),
                prompt_tokens: tokens as u32,
                output_tokens: self
                    .output(f64::from(request.output_tokens) * self.flags.output_scale),
                draw: random.random_range(0..usize::from(u16::MAX)),
            }
        });
        requests.filter(|request| request.at.as_secs_f64() < seconds).collect()
    }

    /// The text of a prompt of blocks: equal blocks have equal texts.
    fn of_blocks(&self, texts: &mut HashMap<u64, String>, blocks: &[u64], tokens: f64) -> String {
        let block_tokens = BLOCK_TOKENS * self.flags.prompt_scale;
        let mut prompt = String::new();
        let mut left = tokens;
        // A trace without blocks shares nothing: the text is drawn from the length alone.
        let own = [(1 << 61) + tokens.to_bits() % (1 << 40)];
        let blocks = if blocks.is_empty() { &own[..] } else { blocks };
        for (at, block) in blocks.iter().enumerate() {
            let is_last = at + 1 == blocks.len();
            let length = if is_last { left } else { block_tokens.min(left) };
            if length <= 0.0 {
                break;
            }
            if at > 0 {
                prompt.push(' ');
            }
            if length == block_tokens {
                let text = || self.words.text(1 << 50 | *block, block_tokens);
                prompt.push_str(texts.entry(*block).or_insert_with(text));
            } else {
                // The beginning of the block: a text depends on its seed word by word.
                prompt.push_str(&self.words.text(1 << 50 | *block, length));
            }
            left -= length;
        }
        prompt
    }

    fn output(&self, tokens: f64) -> u32 {
        tokens.clamp(MIN_OUTPUT, f64::from(self.flags.max_output).max(MIN_OUTPUT)) as u32
    }
}

/// The position at which the weights add up to a share of their sum.
fn weighted(weights: &[f64], share: f64) -> usize {
    let mut left = share * weights.iter().sum::<f64>();
    for (at, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return at;
        }
    }
    weights.len() - 1
}

/// Requests of a trace that are due within `seconds`.
fn of_trace(rate: f64, seconds: f64) -> usize {
    (rate * seconds).ceil() as usize + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workloads(prompt_scale: f64) -> Workloads {
        let flags = WorkFlags {
            trace: None,
            max_prompt: 32_000,
            max_output: 160,
            output_scale: 0.25,
            prompt_scale,
            words: None,
        };
        let mut workloads = Workloads::new(&flags, &[]).unwrap();
        let line = |at: usize| {
            let last = 5_000 + at;
            format!(
                r#"{{"timestamp":{},"input_length":1000,"output_length":80,"hash_ids":[7,{last}]}}"#,
                at / 4 * 3000
            )
        };
        let lines: Vec<String> = (0..1_000).map(line).collect();
        workloads.trace = Some(Trace::parse(&lines.join("\n")).unwrap());
        workloads
    }

    #[test]
    fn a_round_repeats_and_rounds_differ() {
        let workloads = workloads(0.01);
        for cell in ["docs:9", "trace:9"] {
            let cell: Cell = cell.parse().unwrap();
            let first = workloads.requests(&cell, 0, 20.0);
            assert_eq!(first, workloads.requests(&cell, 0, 20.0));
            assert_ne!(first, workloads.requests(&cell, 1, 20.0));
            assert!((120..=240).contains(&first.len()), "{}", first.len());
            assert!(first.iter().all(|request| request.at.as_secs_f64() < 20.0));
            assert!(first.is_sorted_by_key(|request| request.at));
        }
    }

    #[test]
    fn a_trace_that_is_too_short_is_refused() {
        let workloads = workloads(0.01);
        let check = |cell: &str| workloads.check(&cell.parse().unwrap(), 20.0);
        assert!(check("trace:49").is_ok());
        assert!(check("trace:50").unwrap_err().to_string().contains("1000 requests"));
        assert!(check("docs:500").is_ok());
    }

    #[test]
    fn documents_are_shared_by_zipf_and_questions_are_not() {
        let requests = workloads(0.1).requests(&"docs:50".parse().unwrap(), 0, 20.0);
        let mut by_beginning: HashMap<&str, usize> = HashMap::new();
        for request in &requests {
            *by_beginning.entry(&request.prompt[..200]).or_default() += 1;
        }
        assert!(by_beginning.len() <= DOCUMENTS, "{}", by_beginning.len());
        let most = *by_beginning.values().max().unwrap() as f64 / requests.len() as f64;
        // The first of 40 has 1 / sum(k^-0.8) = 0.14 of the questions.
        assert!((0.10..0.19).contains(&most), "{most}");
        let mut prompts: Vec<&String> = requests.iter().map(|request| &request.prompt).collect();
        prompts.sort();
        prompts.dedup();
        assert_eq!(prompts.len(), requests.len());
    }

    #[test]
    fn prompts_of_a_trace_share_the_text_of_shared_blocks() {
        let requests = workloads(1.0).requests(&"trace:9".parse().unwrap(), 0, 5.0);
        let words = |at: usize| requests[at].prompt.split(' ').collect::<Vec<_>>();
        assert_eq!(words(0).len(), 1_000);
        assert_eq!(words(0)[..512], words(1)[..512]);
        assert_ne!(words(0)[512..], words(1)[512..]);
    }

    #[test]
    fn a_cell_is_a_workload_and_a_rate() {
        assert_eq!("docs:2.5".parse::<Cell>().unwrap().to_string(), "docs:2.5");
        for wrong in ["docs", "docs:0", "docs:x", "chat:3"] {
            assert!(wrong.parse::<Cell>().unwrap_err().contains("WORKLOAD:RATE"), "{wrong}");
        }
    }

    #[test]
    fn a_trace_is_named_by_its_flag() {
        let flags = WorkFlags { trace: None, ..workloads(1.0).flags };
        let error = Workloads::new(&flags, &["trace:1".parse().unwrap()]).unwrap_err();
        assert!(error.to_string().contains("--trace"), "{error}");
    }
}
