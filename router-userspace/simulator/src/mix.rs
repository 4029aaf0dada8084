//! [`SyntheticMix`]: synthetic loads of several kinds, drawn by chance.

use std::str::FromStr;

use crate::chance::Chance;
use crate::trace::{Arrival, BLOCK_TOKENS, Trace};

/// What a synthetic load is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyntheticMix {
    /// Conversations of some thousand tokens, with a long tail.
    Conversations,
    /// Short questions, little of which was asked before.
    Short,
    /// Documents of tens of thousands of tokens, asked about several times.
    Long,
    /// Conversations that come in bursts: ten times as many in a tenth of the time.
    Bursts,
}

impl SyntheticMix {
    pub const ALL: [(&'static str, SyntheticMix); 4] = [
        ("synthetic", SyntheticMix::Conversations),
        ("synthetic-short", SyntheticMix::Short),
        ("synthetic-long", SyntheticMix::Long),
        ("synthetic-bursts", SyntheticMix::Bursts),
    ];

    /// The part of the requests that go on where an earlier one ended.
    fn goes_on(self) -> f64 {
        match self {
            SyntheticMix::Conversations | SyntheticMix::Bursts => 0.6,
            SyntheticMix::Short => 0.2,
            SyntheticMix::Long => 0.5,
        }
    }

    /// Tokens that a request adds to the prompt of the one it continues: median and spread.
    fn adds(self, first: bool) -> (f64, f64) {
        match self {
            SyntheticMix::Conversations | SyntheticMix::Bursts => (2000.0, 1.2),
            SyntheticMix::Short => (250.0, 0.8),
            SyntheticMix::Long if first => (30_000.0, 0.6),
            SyntheticMix::Long => (150.0, 0.8),
        }
    }

    /// Milliseconds to the next arrival; the mean does not matter, loads are scaled.
    fn gap_ms(self, at_ms: f64, chance: &mut Chance) -> f64 {
        let burst = self == SyntheticMix::Bursts && at_ms % 20_000.0 < 2_000.0;
        let mean = match self {
            SyntheticMix::Bursts if burst => 20.0,
            SyntheticMix::Bursts => 200.0,
            _ => 100.0,
        };
        mean * chance.exponential()
    }

    /// Conversations: a new one, or the next turn of an old one; prompts are log-normal with a
    /// long tail, and begin with one of a few system prompts.
    pub fn draw(self, requests: usize, seed: u64) -> Trace {
        let mut chance = Chance::new(seed, 1);
        let mut talks: Vec<(Vec<u64>, u32)> = Vec::new();
        let (mut at_ms, mut fresh) = (0.0, 1000);
        let arrivals = (0..requests).map(|_| {
            at_ms += self.gap_ms(at_ms, &mut chance);
            let (mut blocks, mut input, first) = match talks.len() {
                // The last few hundred conversations go on.
                len @ 1.. if chance.unit() < self.goes_on() => {
                    let (blocks, input) = talks[len - 1 - chance.below(len.min(400))].clone();
                    (blocks, input, false)
                }
                _ => (vec![1 + chance.below(4) as u64; 1], BLOCK_TOKENS, true),
            };
            let (median, spread) = self.adds(first);
            let more = (median * (spread * chance.normal()).exp()) as u32;
            input = (input + more + 20).min(120_000);
            while (blocks.len() as u32) < input / BLOCK_TOKENS {
                fresh += 1;
                blocks.push(fresh);
            }
            let output_tokens = ((250.0 * (0.8 * chance.normal()).exp()) as u32).clamp(2, 2000);
            talks.push((blocks.clone(), input));
            Arrival { at_ms, input_tokens: input, output_tokens, blocks }
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
    fn mixes_differ_in_what_they_are_named_for() {
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
