//! Inputs of a unit test of a law: the seed corpus of its fuzz target, and mutations of it that are the
//! same in every run. The crates of the workspace share this file.

use std::path::Path;

/// Maximum size of an input in bytes.
const MAX_BYTES: usize = 16 << 10;

/// The seed corpus of a fuzz target.
pub(crate) fn corpus(target: &str) -> Vec<Vec<u8>> {
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let userspace = crate_root.ancestors().find(|folder| folder.join("fuzz").is_dir());
    let folder = userspace.expect("the fuzz targets are part of the project").join("fuzz/corpus");
    let files = std::fs::read_dir(folder.join(target)).expect("each target has seeds");
    let mut paths: Vec<_> = files.map(|file| file.expect("it can be read").path()).collect();
    paths.sort();
    assert!(paths.len() > 2, "{target}: {paths:?}");
    paths.iter().map(|path| std::fs::read(path).expect("it can be read")).collect()
}

/// Tries a law on the seeds of its target and on this number of mutations of them.
pub(crate) fn try_law(target: &str, law: fn(&[u8]), mutations: u32) {
    let corpus = corpus(target);
    corpus.iter().for_each(|bytes| law(bytes));
    let mut numbers = Numbers(7);
    for _ in 0..mutations {
        let input = mutated(&corpus, &mut numbers);
        // A panic of the law does not show the input.
        let shown = ShownOnPanic(&input);
        law(&input);
        std::mem::forget(shown);
    }
}

struct ShownOnPanic<'i>(&'i [u8]);

impl Drop for ShownOnPanic<'_> {
    fn drop(&mut self) {
        eprintln!("the law is violated by b\"{}\"", self.0.escape_ascii());
    }
}

/// The pseudo-random numbers of splitmix64.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ (z >> 31)) * n as u128) >> 64) as usize
    }
}

/// Mutates an input a few times: inserts a part of another, cuts, duplicates, or changes a byte.
fn mutated(corpus: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = corpus[numbers.below(corpus.len())].clone();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(bytes.len() + 1);
        let other = &corpus[numbers.below(corpus.len())];
        let from = numbers.below(other.len() + 1);
        let part = &other[from..(from + numbers.below(24)).min(other.len())];
        match numbers.below(6) {
            0 => drop(bytes.splice(at..at, part.iter().copied())),
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..(at + numbers.below(12)).min(bytes.len()))),
            3 => bytes.extend_from_within(at..(at + numbers.below(24)).min(bytes.len())),
            // Bytes that are significant in JSON, in lines, or in numbers.
            4 if at < bytes.len() => {
                bytes[at] =
                    *b"\"\\{}[]:,0-9e\r\n/.\x00\xff\x7f\x80 ".get(numbers.below(22)).unwrap_or(&0);
            }
            _ if at < bytes.len() => bytes[at] ^= 1 << numbers.below(8),
            _ => {}
        }
    }
    bytes.truncate(MAX_BYTES);
    bytes
}
