"""OpenAI's own client against a gateway: openai_client.py BASE_URL PART."""

import os
import sys

import openai

MODEL = os.environ.get("MODEL", "/models/Qwen3-32B")
# As many tokens as asked for, whatever the model would rather say.
UNTIL_FULL = {"ignore_eos": True}
MESSAGES = [{"role": "user", "content": "Hello, this is a test"}]


def chat(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=20, extra_body=UNTIL_FULL
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 20
    assert [model.id for model in client.models.list()] == [MODEL]
    text = client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=4)
    assert [choice.index for choice in text.choices] == [0, 1]


def stream(client):
    whole = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=20, temperature=0, extra_body=UNTIL_FULL
    )
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=20,
            temperature=0,
            extra_body=UNTIL_FULL,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 20


def samples(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=8, n=2, extra_body=UNTIL_FULL
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.message.content for choice in answer.choices)
    assert answer.usage.completion_tokens == 16
    parts = {0: "", 1: ""}
    ids = set()
    for chunk in client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=8, n=2, stream=True
    ):
        ids.add(chunk.id)
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
    assert len(ids) == 1
    assert all(parts.values()), parts


def errors(client):
    raised = None
    try:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8)
    except openai.InternalServerError as error:
        raised = error
    assert raised is not None and "prefill" in str(raised), raised
    try:
        client.embeddings.create(model=MODEL, input="hi")
    except openai.APIStatusError as error:
        raised = error
    assert raised.status_code == 501, raised


def models(client):
    names = ["/models/a", "/models/b"]
    assert sorted(model.id for model in client.models.list()) == names
    for name in names:
        answer = client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=4)
        assert answer.model == name
    raised = None
    try:
        client.chat.completions.create(model="no-such-model", messages=MESSAGES)
    except openai.NotFoundError as error:
        raised = error
    assert raised is not None and raised.param == "model", raised


def broken_stream(client):
    content = []
    raised = None
    try:
        for chunk in client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=50, stream=True
        ):
            content.append(chunk)
    except openai.APIError as error:
        raised = error
    assert content, "what came before the break is kept"
    assert raised is not None and "decode" in str(raised), raised


PARTS = {
    "chat": chat,
    "stream": stream,
    "samples": samples,
    "errors": errors,
    "models": models,
    "broken-stream": broken_stream,
}

if __name__ == "__main__":
    base_url, part = sys.argv[1:]
    PARTS[part](openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=20))
