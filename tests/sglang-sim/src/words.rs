//! What the model "says": words drawn from a hash of the prompt, the first by prefill, the others
//! from what came through the KV transfer.

use crate::token::WORDS;

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

const FACES: [&str; 4] = ["🙂", "🚀", "🌱", "🎉"];

/// A word of the vocabulary by its place.
pub(crate) fn word(place: usize) -> &'static str {
    ENGLISH
        .get(place)
        .or_else(|| CHINESE.get(place.wrapping_sub(ENGLISH.len())))
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

/// What a prompt comes down to: a hash of all its ids, with the language in the lowest bit.
pub(crate) fn thought(prompt: &[u32]) -> u64 {
    let mut hash = prompt.len() as u64;
    let mut chinese = false;
    for id in prompt {
        hash = mix(hash ^ u64::from(*id));
        // Three-byte characters that start with E4 to E9 are the common Chinese ones.
        chinese |= (0xE4_0000..=0xE9_FFFF).contains(id);
    }
    hash & !1 | u64::from(chinese)
}

/// The token at a place of the answer.
pub(crate) fn token(thought: u64, sample: u64, place: usize) -> u32 {
    let own = thought ^ sample.wrapping_mul(0x5851_F42D_4C95_7F2D) & !1;
    if thought & 1 == 0 {
        let draw = mix(own ^ mix(place as u64 + 1));
        let limit = if place == 0 { ENGLISH.len() - 2 } else { ENGLISH.len() };
        return WORDS + (draw % limit as u64) as u32;
    }
    // A face takes two tokens of two bytes, so that streams meet characters in halves.
    let even = place & !1;
    let pair = mix(own ^ mix(even as u64 + 0x00FA_CE00));
    if even > 0 && pair.is_multiple_of(6) {
        let face = FACES[(pair >> 32) as usize % FACES.len()].as_bytes();
        let half = if place == even { [face[0], face[1]] } else { [face[2], face[3]] };
        return u32::from(half[0]) << 8 | u32::from(half[1]);
    }
    let draw = mix(own ^ mix(place as u64 + 1)) % CHINESE.len() as u64;
    WORDS + ENGLISH.len() as u32 + draw as u32
}

/// Tokens after which the answer ends by itself: `least`, and up to as many again.
pub(crate) fn length(thought: u64, least: usize) -> usize {
    // An even length never ends inside a face.
    (least + (mix(thought ^ 0x0E0D) as usize % least.max(1))).next_multiple_of(2)
}

/// A log probability that depends on the token and its place only.
pub(crate) fn logprob(id: u32, place: usize) -> f64 {
    -((mix(u64::from(id) ^ (place as u64) << 32) % 4096) as f64) / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{Detokenizer, encode};

    fn say(prompt: &str, count: usize) -> String {
        let thought = thought(&encode(prompt));
        let mut detokenizer = Detokenizer::default();
        (0..count).map(|place| detokenizer.push(token(thought, 0, place))).collect()
    }

    #[test]
    fn the_answer_depends_on_the_whole_prompt() {
        let long = "word ".repeat(200);
        assert_ne!(say(&format!("a{long}"), 8), say(&format!("b{long}"), 8));
        assert_ne!(say(&format!("{long}a"), 8), say(&format!("{long}b"), 8));
        assert_eq!(say(&long, 8), say(&long, 8));
    }

    #[test]
    fn a_chinese_prompt_gets_a_chinese_answer_of_whole_characters() {
        for prompt in ["你好", "今天天气怎么样", "请介绍一下自己", "写一首诗"] {
            let answer = say(prompt, 40);
            assert!(!answer.contains('\u{FFFD}'), "{answer}");
            assert!(answer.chars().any(|c| ('\u{4E00}'..='\u{9FFF}').contains(&c)), "{answer}");
        }
    }
}
