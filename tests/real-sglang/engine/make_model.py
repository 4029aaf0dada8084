"""Makes a small Llama with random weights and its tokenizer: make_model.py FOLDER.

Nothing is downloaded. The weights are drawn wide enough that every token of a prompt changes the
greedy answer: an answer computed from a wrong or missing KV cache then shows.
"""

import itertools
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 1000
SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def corpus():
    """Sentences to learn word pieces from, some in Chinese; every byte is a piece anyway."""
    subjects = ["the quick brown fox", "a router", "one engine", "the cache", "这个网关", "每个请求"]
    verbs = ["sees", "moves", "forgets", "orders", "counts", "选择", "发送", "等待"]
    things = ["the lazy dog", "a stream", "its answer", "every prompt", "一个令牌", "两个引擎"]
    for subject, verb, thing in itertools.product(subjects, verbs, things):
        yield f"{subject} {verb} {thing}."
    # Made-up words, so that there are as many pieces as the vocabulary has places.
    for first, middle, last in itertools.product("bdfgklmnprstvz", "aeiou", "lmnrst"):
        for ending in ("ing", "ed", "er"):
            yield f"{first}{middle}{last}{last}{ending} {last}{middle}{first}{middle}"


def make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(pieces):
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=16384,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
        dtype="float32",
    )
    torch.manual_seed(20260701)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                continue
            width = 1.0 if "embed" in name else weight.shape[1] ** -0.5
            sharper = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            louder = 4.0 if "o_proj" in name else 1.0
            weight.normal_(0.0, width * sharper * louder)
        # What the tokenizer has no piece for is never said.
        model.lm_head.weight[pieces:] = 0.0
    return model


def main(folder):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    make_model(len(tokenizer)).save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
