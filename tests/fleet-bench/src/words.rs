//! Prompts: pseudo-random words, as many as a number of tokens needs.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::client::Client;

/// Number of made words.
const MADE_WORDS: usize = 4_000;
/// Words of the text by which tokens are counted.
const SAMPLE_WORDS: usize = 1_000;

/// The words that prompts are made of.
#[derive(Clone, Debug)]
pub(crate) struct Words {
    words: Vec<String>,
    /// Tokens that the engine's tokenizer makes of a word, on average.
    pub(crate) tokens_per_word: f64,
}

impl Words {
    /// Words of a file, one a line, or made ones.
    ///
    /// # Errors
    /// The file cannot be read or has no word.
    pub(crate) fn new(file: Option<&Path>) -> Result<Words> {
        let words = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("--words {}", path.display()))?;
                text.split_whitespace().map(str::to_owned).collect()
            }
            None => made(),
        };
        if words.is_empty() {
            bail!("--words: the file has no word");
        }
        Ok(Words { words, tokens_per_word: 1.0 })
    }

    /// A text of about `tokens` tokens. A seed and a length give one text.
    pub(crate) fn text(&self, seed: u64, tokens: f64) -> String {
        self.count(seed, (tokens / self.tokens_per_word).round().max(1.0) as usize)
    }

    /// Measures `tokens_per_word` by what an endpoint counts in a prompt.
    ///
    /// # Errors
    /// It does not answer, or reports no usage.
    pub(crate) async fn measure(
        &mut self,
        client: &Client,
        url: &str,
        model: &str,
        limit: Duration,
    ) -> Result<()> {
        let sample = self.count(0x5a, SAMPLE_WORDS);
        let tokens = client.prompt_tokens(url, model, &sample, limit).await?;
        self.tokens_per_word = tokens.max(1) as f64 / SAMPLE_WORDS as f64;
        Ok(())
    }

    fn count(&self, seed: u64, count: usize) -> String {
        let mut random = StdRng::seed_from_u64(seed);
        let mut text = String::with_capacity(count * 8);
        for at in 0..count {
            if at > 0 {
                text.push(' ');
            }
            text.push_str(&self.words[random.random_range(0..self.words.len())]);
        }
        text
    }
}

/// Two or three syllables each.
fn made() -> Vec<String> {
    const CONSONANTS: &[u8] = b"bdfgklmnprstvz";
    const VOWELS: &[u8] = b"aeiou";
    let mut random = StdRng::seed_from_u64(17);
    let mut letter = |of: &[u8]| char::from(of[random.random_range(0..of.len())]);
    let mut word = |at: usize| {
        (0..2 + at % 2).flat_map(|_| [letter(CONSONANTS), letter(VOWELS)]).collect::<String>()
    };
    (0..MADE_WORDS).map(&mut word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_the_words_that_its_tokens_need_and_depends_on_the_seed() {
        let mut words = Words::new(None).unwrap();
        words.tokens_per_word = 2.0;
        let text = words.text(1, 100.0);
        assert_eq!(text.split(' ').count(), 50);
        assert_eq!(text, words.text(1, 100.0));
        assert_ne!(text, words.text(2, 100.0));
    }

    #[test]
    fn a_file_without_words_names_the_flag() {
        let error = Words::new(Some(Path::new("/dev/null"))).unwrap_err();
        assert!(error.to_string().contains("--words"), "{error}");
    }
}
