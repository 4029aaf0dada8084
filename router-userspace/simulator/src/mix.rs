//! [`SyntheticMix`]: synthetic traces of several kinds, generated at random.

use std::str::FromStr;

use crate::random::Random;
use crate::trace::{BLOCK_TOKENS, Trace, TraceRequest};

/// A kind of synthetic trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyntheticMix {
    /// Conversations of some thousand tokens, with a long tail.
    Conversations,
    /// Short prompts with few common prefixes.
    Short,
    /// Documents of tens of thousands of tokens, each with several questions.
    Long,
    /// Conversations in bursts: ten times the rate for a tenth of the time.
    Bursts,
}

impl SyntheticMix {
    pub const ALL: [(&'static str, SyntheticMix); 4] = [
        ("synthetic", SyntheticMix::Conversations),
        ("synthetic-short", SyntheticMix::Short),
        ("synthetic-long", SyntheticMix::Long),
        ("synthetic-bursts", SyntheticMix::Bursts),
    ];

    /// Share of the requests that continue an earlier conversation.
    fn continuing_share(self) -> f64 {
        match self {
            SyntheticMix::Conversations | SyntheticMix::Bursts => 0.6,
            SyntheticMix::Short => 0.2,
            SyntheticMix::Long => 0.5,
        }
    }

    /// Tokens that a request adds to the prompt that it continues: median and log-normal deviation.
    fn added_tokens(self, first: bool) -> (f64, f64) {
        match self {
            SyntheticMix::Conversations | SyntheticMix::Bursts => (2000.0, 1.2),
            SyntheticMix::Short => (250.0, 0.8),
            SyntheticMix::Long if first => (30_000.0, 0.6),
            SyntheticMix::Long => (150.0, 0.8),
        }
    }

    /// Milliseconds until the next request. The mean does not matter, since loads are scaled.
    fn gap_ms(self, at_ms: f64, random: &mut Random) -> f64 {
        let burst = self == SyntheticMix::Bursts && at_ms % 20_000.0 < 2_000.0;
        let mean = match self {
            SyntheticMix::Bursts if burst => 20.0,
            SyntheticMix::Bursts => 200.0,
            _ => 100.0,
        };
        mean * random.exponential()
    }

    /// Generates a trace. Each request starts a conversation or continues an earlier one. Prompt
    /// lengths are log-normal, and every prompt starts with one of a few system prompts.
    pub fn draw(self, requests: usize, seed: u64) -> Trace {
        let mut random = Random::new(seed, 1);
        let mut conversations: Vec<(Vec<u64>, u32)> = Vec::new();
        let (mut at_ms, mut fresh) = (0.0, 1000);
        let arrivals = (0..requests).map(|_| {
            at_ms += self.gap_ms(at_ms, &mut random);
            let (mut blocks, mut input, first) = match conversations.len() {
                // Only the last few hundred conversations continue.
                len @ 1.. if random.unit() < self.continuing_share() => {
                    let (blocks, input) =
                        conversations[len - 1 - random.below(len.min(400))].clone();
                    (blocks, input, false)
                }
                _ => (vec![1 + random.below(4) as u64; 1], BLOCK_TOKENS, true),
            };
            let (median, spread) = self.added_tokens(first);
            let more = (median * (spread * random.normal()).exp()) as u32;
            input = (input + more + 20).min(120_000);
            while (blocks.len() as u32) < input / BLOCK_TOKENS {
                fresh += 1;
                blocks.push(fresh);
            }
            let output_tokens = ((250.0 * (0.8 * random.normal()).exp()) as u32).clamp(2, 2000);
            conversations.push((blocks.clone(), input));
            TraceRequest { at_ms, input_tokens: input, output_tokens, blocks }
        });
        Trace { arrivals: arrivals.collect() }
    }
}

impl FromStr for SyntheticMix {
    type Err = ();

    fn from_str(text: &str) -> Result<SyntheticMix, ()> {
        SyntheticMix::ALL.into_iter().find(|(name, _)| *name == text).map(|(_, mix)| mix).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_have_the_properties_they_are_named_for() {
        let mean = |mix: SyntheticMix| mix.draw(2000, 1).mean(|a| f64::from(a.input_tokens));
        assert!(mean(SyntheticMix::Short) < 2000.0 && mean(SyntheticMix::Long) > 20_000.0);
        assert!((2000.0..20_000.0).contains(&mean(SyntheticMix::Conversations)));
        let spread = |mix: SyntheticMix| {
            let arrivals = mix.draw(4000, 1).arrivals;
            let gaps: Vec<f64> =
                arrivals.windows(2).map(|two| two[1].at_ms - two[0].at_ms).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>()
                / gaps.len() as f64
                / mean
                / mean
        };
        assert!(spread(SyntheticMix::Conversations) < 1.3, "a Poisson process has 1");
        assert!(spread(SyntheticMix::Bursts) > 1.8, "{}", spread(SyntheticMix::Bursts));
    }
}
