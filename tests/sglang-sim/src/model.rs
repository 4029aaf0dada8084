//! A toy model: its words are drawn from a hash of the prompt. Prefill computes the first, decode
//! the others from what the KV transfer brought.

use crate::tokenizer::FIRST_WORD_ID;

const ENGLISH: &[&str] = &[
    " the",
    " a",
    " one",
    " each",
    " this",
    " that",
    " river",
    " stone",
    " light",
    " paper",
    " engine",
    " window",
    " garden",
    " number",
    " signal",
    " packet",
    " queue",
    " bridge",
    " letter",
    " answer",
    " table",
    " cloud",
    " morning",
    " winter",
    " summer",
    " teacher",
    " friend",
    " market",
    " street",
    " house",
    " ocean",
    " forest",
    " mountain",
    " valley",
    " reads",
    " writes",
    " carries",
    " opens",
    " closes",
    " follows",
    " finds",
    " keeps",
    " sends",
    " holds",
    " moves",
    " turns",
    " waits",
    " begins",
    " returns",
    " becomes",
    " quietly",
    " slowly",
    " often",
    " never",
    " always",
    " again",
    " together",
    " almost",
    " small",
    " large",
    " old",
    " new",
    " green",
    " blue",
    " bright",
    " narrow",
    " gentle",
    " under",
    " over",
    " between",
    " toward",
    " without",
    " beside",
    " across",
    " within",
    " and",
    " or",
    " but",
    " because",
    " while",
    " until",
    " after",
    " before",
    ",",
    ".",
];

const CHINESE: &[&str] = &[
    "我", "们", "今天", "明天", "天气", "很", "好", "的", "是", "在", "有", "一个", "这里", "那里",
    "学习", "工作", "时间", "问题", "回答", "模型", "网络", "请求", "服务", "用户", "数据", "快",
    "慢", "山", "水", "风", "月", "星", "书", "路", "桥", "城市", "朋友", "老师", "学生", "孩子",
    "可以", "应该", "需要", "因为", "所以", "但是", "如果", "已经", "正在", "再见", "，", "。",
];

const EMOJI: [&str; 4] = ["🙂", "🚀", "🌱", "🎉"];

/// A word of the vocabulary by its index.
pub(crate) fn word(position: usize) -> &'static str {
    ENGLISH
        .get(position)
        .or_else(|| CHINESE.get(position.wrapping_sub(ENGLISH.len())))
        .copied()
        .unwrap_or("\u{FFFD}")
}

/// One round of splitmix64: every bit of the input changes half of the output.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A hash of all token ids of a prompt, with the language in the lowest bit.
pub(crate) fn hash_prompt(prompt: &[u32]) -> u64 {
    let mut hash = prompt.len() as u64;
    let mut chinese = false;
    for id in prompt {
        hash = mix(hash ^ u64::from(*id));
        // Three-byte characters that start with E4 to E9 are the common Chinese ones.
        chinese |= (0xE4_0000..=0xE9_FFFF).contains(id);
    }
    hash & !1 | u64::from(chinese)
}

/// The token at a position of the answer.
pub(crate) fn token(prompt_hash: u64, sample: u64, position: usize) -> u32 {
    let own = prompt_hash ^ sample.wrapping_mul(0x5851_F42D_4C95_7F2D) & !1;
    if prompt_hash & 1 == 0 {
        let draw = mix(own ^ mix(position as u64 + 1));
        let limit = if position == 0 { ENGLISH.len() - 2 } else { ENGLISH.len() };
        return FIRST_WORD_ID + (draw % limit as u64) as u32;
    }
    // An emoji takes two tokens of two bytes each, so that streams contain halves of characters.
    let even = position & !1;
    let pair = mix(own ^ mix(even as u64 + 0x00FA_CE00));
    if even > 0 && pair.is_multiple_of(6) {
        let emoji = EMOJI[(pair >> 32) as usize % EMOJI.len()].as_bytes();
        let half = if position == even { [emoji[0], emoji[1]] } else { [emoji[2], emoji[3]] };
        return u32::from(half[0]) << 8 | u32::from(half[1]);
    }
    let draw = mix(own ^ mix(position as u64 + 1)) % CHINESE.len() as u64;
    FIRST_WORD_ID + ENGLISH.len() as u32 + draw as u32
}

/// The number of tokens after which the answer ends by itself: from `least` to twice as many.
pub(crate) fn length(prompt_hash: u64, least: usize) -> usize {
    // An even length never ends inside an emoji.
    (least + (mix(prompt_hash ^ 0x0E0D) as usize % least.max(1))).next_multiple_of(2)
}

/// A log probability that depends only on the token and its position.
pub(crate) fn logprob(id: u32, position: usize) -> f64 {
    -((mix(u64::from(id) ^ (position as u64) << 32) % 4096) as f64) / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{Detokenizer, encode};

    fn answer(prompt: &str, count: usize) -> String {
        let prompt_hash = hash_prompt(&encode(prompt));
        let mut detokenizer = Detokenizer::default();
        (0..count).map(|position| detokenizer.push(token(prompt_hash, 0, position))).collect()
    }

    #[test]
    fn the_answer_depends_on_the_whole_prompt() {
        let long = "word ".repeat(200);
        assert_ne!(answer(&format!("a{long}"), 8), answer(&format!("b{long}"), 8));
        assert_ne!(answer(&format!("{long}a"), 8), answer(&format!("{long}b"), 8));
        assert_eq!(answer(&long, 8), answer(&long, 8));
    }

    #[test]
    fn a_chinese_prompt_gets_a_chinese_answer_of_whole_characters() {
        for prompt in ["你好", "今天天气怎么样", "请介绍一下自己", "写一首诗"] {
            let answer = answer(prompt, 40);
            assert!(!answer.contains('\u{FFFD}'), "{answer}");
            assert!(answer.chars().any(|c| ('\u{4E00}'..='\u{9FFF}').contains(&c)), "{answer}");
        }
    }
}
