//! Cost of the prefix index for a prompt of 128k tokens: hashing, lookup and insertion.
#![expect(unsafe_code, reason = "counting allocations takes a global allocator")]

mod measure;

use std::hint::black_box;

use router_core::schedule::{BlockHasher, IndexCapacity, PrefixIndex};

/// Bytes of a prompt of 128k tokens.
const PROMPT: usize = 128 * 1024 * 4;

fn main() {
    println!("{:<52} {:>9} {:>7}", "operation", "us/op", "allocs");
    let prompt: Vec<u8> = (0..PROMPT).map(|i| ((i * i) >> 7) as u8).collect();
    let mut blocks = Vec::with_capacity(PROMPT);
    measure("prefix: hash 128k tokens", |_| {
        blocks.clear();
        BlockHasher::new(0).write(black_box(&prompt), &mut blocks);
    });
    // Sized as in a gateway, with a thousand workers and 200,000 blocks of other prompts.
    let size = IndexCapacity { blocks: 1 << 18, caches: 4096, cache_bytes: 1 << 40 };
    let mut index = PrefixIndex::new(size);
    for worker in 0..1000u64 {
        let other: Vec<u64> = (0..200).map(|i: u64| (worker * 1000 + i) << 13 | 0x1fff).collect();
        index.insert(worker + 1, &other);
    }
    for worker in [5, 50, 500] {
        index.insert(worker, &blocks);
    }
    let other: Vec<u64> = blocks.iter().map(|hash| hash ^ 1).collect();
    measure("prefix: look up 128k tokens, held by 3", |_| {
        black_box(index.lookup(black_box(&blocks)));
    });
    measure("prefix: look up 128k tokens, in no cache", |_| {
        black_box(index.lookup(black_box(&other)));
    });
    measure("prefix: insert 128k tokens", |_| index.insert(5, black_box(&blocks)));
}

fn measure(name: &str, operation: impl FnMut(u64)) {
    let measure::Cost { ns, allocations } = measure::cost(operation);
    println!("{name:<52} {:>9.2} {allocations:>7.2}", ns / 1000.0);
}
