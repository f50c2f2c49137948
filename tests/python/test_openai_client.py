"""Drives a running server with the official openai client.

    pip install -r tests/python/requirements.txt
    HOST_BASE_URL=http://127.0.0.1:8000 python -m pytest tests/python

The assertions hold for any small chat model: structure, limits, determinism, errors. With HOST_DEMO=1 a few more look at
what the built-in demo model says. HOST_API_KEY gives the key if the server wants one.
"""

import json
import os
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

BASE_URL = os.environ.get("HOST_BASE_URL", "").rstrip("/")
API_KEY = os.environ.get("HOST_API_KEY", "none")
DEMO = os.environ.get("HOST_DEMO") == "1"

pytestmark = pytest.mark.skipif(not BASE_URL, reason="HOST_BASE_URL names no server")
demo_only = pytest.mark.skipif(not DEMO, reason="HOST_DEMO=1 is not set")

MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": [{"type": "text", "text": "What is AI?"}]},
]


@pytest.fixture(scope="session")
def client():
    return openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key=API_KEY, max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id


@pytest.fixture(scope="session")
def max_model_len(client):
    return client.models.list().data[0].max_model_len


def get(path):
    request = urllib.request.Request(BASE_URL + path, headers={"Authorization": f"Bearer {API_KEY}"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return response.read().decode()


def post(path, body):
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(BASE_URL + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def refused(error, field):
    """The field at fault is named in the structure and in the words."""
    assert error.value.status_code == error.value.body["code"]
    assert error.value.body["param"].startswith(field)
    assert field in error.value.body["message"]


# --- what the server says about itself


def test_models(client):
    models = client.models.list().data
    assert models
    first = models[0]
    assert first.object == "model" and first.max_model_len > 0
    assert {"plugin", "version", "model_impl", "architecture"} <= set(first.model_dump()["host"])
    assert client.models.retrieve(first.id).id == first.id


def test_health_version_metrics(client, model):
    assert json.loads(get("/health"))["status"] == "ok"
    assert json.loads(get("/version"))["version"]
    client.completions.create(model=model, prompt="Hello", max_tokens=2)
    metrics = get("/metrics")
    for name in [
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:request_success_total",
        "vllm:num_preemptions_total",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_bucket",
        "vllm:e2e_request_latency_seconds_bucket",
        "vllm:request_queue_time_seconds_bucket",
        "vllm:request_prefill_time_seconds_bucket",
        "vllm:request_decode_time_seconds_bucket",
    ]:
        assert f"\n{name}{{" in metrics, name


def test_tokenize_and_back(model, max_model_len):
    text = "Héllo, wörld 🙂"
    answer = post("/tokenize", {"model": model, "prompt": text, "add_special_tokens": False, "return_token_strs": True})
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == max_model_len
    assert post("/detokenize", {"model": model, "tokens": answer["tokens"]})["prompt"].strip() == text


# --- completions


def test_completion(client, model):
    answer = client.completions.create(model=model, prompt="San Francisco is a", max_tokens=7, temperature=0)
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion" and answer.model == model
    [choice] = answer.choices
    assert choice.index == 0 and choice.finish_reason in ("stop", "length")
    assert 1 <= answer.usage.completion_tokens <= 7
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_completion_stream_equals_whole(client, model):
    arguments = dict(model=model, prompt="Once upon a time", max_tokens=24, temperature=0)
    whole = client.completions.create(**arguments)
    chunks = list(client.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].text
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert finishes[-1] == whole.choices[0].finish_reason and not any(finishes[:-1])


def test_prompts_in_all_forms(client, model):
    ids = post("/tokenize", {"prompt": "The sky is"})["tokens"]
    arguments = dict(model=model, max_tokens=5, temperature=0)
    text = client.completions.create(prompt="The sky is", **arguments).choices[0].text
    assert client.completions.create(prompt=ids, **arguments).choices[0].text == text
    both = client.completions.create(prompt=["The sky is", "The sky is"], **arguments)
    assert [(c.index, c.text) for c in both.choices] == [(0, text), (1, text)]
    both = client.completions.create(prompt=[ids, ids], **arguments)
    assert [c.text for c in both.choices] == [text, text]


def test_token_ids_by_extra_body(client, model):
    ids = post("/tokenize", {"prompt": "The sky is"})["tokens"]
    extra = {"prompt": ids, "return_token_ids": True, "ignore_eos": True}
    answer = client.completions.create(model=model, prompt="", max_tokens=4, temperature=0, extra_body=extra)
    choice = answer.choices[0].model_dump()
    assert choice["prompt_token_ids"] == ids and len(choice["token_ids"]) == 4


def test_n_and_seed(client, model):
    arguments = dict(model=model, prompt="Once upon a time", max_tokens=12, temperature=1.5, n=3)
    first = client.completions.create(**arguments, seed=7)
    again = client.completions.create(**arguments, seed=7)
    assert [c.index for c in first.choices] == [0, 1, 2]
    assert [c.text for c in first.choices] == [c.text for c in again.choices]
    other = client.completions.create(**arguments, seed=8)
    texts = {c.text for answer in (first, other) for c in answer.choices}
    assert len(texts) > 1


def test_stop(client, model):
    arguments = dict(model=model, prompt="Once upon a time", max_tokens=24, temperature=0)
    text = client.completions.create(**arguments).choices[0].text
    stop = text[len(text) // 2 :][:3]
    choice = client.completions.create(**arguments, stop=[stop]).choices[0]
    assert choice.text == text[: text.index(stop)]
    assert choice.finish_reason == "stop" and choice.model_dump()["stop_reason"] == stop
    kept = client.completions.create(**arguments, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].text == text[: text.index(stop) + len(stop)]


def test_completion_logprobs(client, model):
    answer = client.completions.create(model=model, prompt="The sky is", max_tokens=4, temperature=0, logprobs=3)
    lists = answer.choices[0].logprobs
    count = answer.usage.completion_tokens
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == len(lists.text_offset) == count
    for logprob, top in zip(lists.token_logprobs, lists.top_logprobs):
        # Greedy: the chosen token is the most likely one.
        assert logprob <= 0 and logprob == max(top.values()) and 1 <= len(top) <= 4


def test_echo_logprobs_as_lm_eval_asks(client, model):
    ids = post("/tokenize", {"prompt": "The sky is blue"})["tokens"]
    answer = client.completions.create(model=model, prompt=ids, max_tokens=0, temperature=0, logprobs=1, echo=True)
    lists = answer.choices[0].logprobs
    assert len(lists.token_logprobs) == len(ids)
    assert lists.token_logprobs[0] is None and all(value <= 0 for value in lists.token_logprobs[1:])
    assert answer.usage.completion_tokens == 0


# --- chat


def test_chat(client, model):
    answer = client.chat.completions.create(model=model, messages=MESSAGES, max_completion_tokens=16, temperature=0)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    [choice] = answer.choices
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert 1 <= answer.usage.completion_tokens <= 16


def test_chat_stream_equals_whole(client, model):
    arguments = dict(model=model, messages=MESSAGES, max_tokens=24, temperature=0)
    whole = client.chat.completions.create(**arguments)
    chunks = list(client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_chat_logprobs(client, model):
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for entry in content:
        assert len(entry.top_logprobs) == 2 and entry.logprob == entry.top_logprobs[0].logprob <= 0
        assert isinstance(entry.bytes, list)


def test_chat_continues_a_final_message(client, model):
    messages = [*MESSAGES[1:], {"role": "assistant", "content": "AI is"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False, "echo": True}
    answer = client.chat.completions.create(
        model=model, messages=messages, max_tokens=4, temperature=0, extra_body=extra
    )
    assert answer.choices[0].message.content.startswith("AI is")


# --- errors


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.completions.create(model="no-such-model", prompt="a")
    refused(error, "model")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -5),
        ("temperature", -1),
        ("temperature", "NaN"),
        ("top_p", 0),
        ("n", 0),
        ("presence_penalty", 3),
        ("logit_bias", {"word": 1}),
        ("min_p", 2),
        ("temprature", 1),
        ("best_of", 3),
        ("suffix", "end"),
        ("response_format", {"type": "json_objekt"}),
        ("stop_token_ids", [-1]),
        ("prompt", [[1], ["a"]]),
        ("prompt", ""),
    ],
)
def test_bad_completion_fields(client, model, field, value):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=model, prompt="a", extra_body={field: value})
    refused(error, field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "funktion", "function": {"name": "f"}}]),
        ("tool_choice", "auto"),
        ("top_logprobs", 3),
        ("max_completion_tokens", 0),
        ("messages", []),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("chat_template", "{{ messages }}"),
    ],
)
def test_bad_chat_fields(client, model, field, value):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=MESSAGES, extra_body={field: value})
    refused(error, field)


def test_prompt_over_the_context(client, model, max_model_len):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=model, prompt=[1] * (max_model_len + 1))
    assert str(max_model_len) in error.value.body["message"]
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=model, prompt=[1], max_tokens=max_model_len)
    refused(error, "max_tokens")


# --- many at once


def test_concurrency_16_equals_concurrency_1(client, model):
    words = "sea sky sun moon rain snow wind fire tree road town song book door lamp time".split()
    greedy = [dict(prompt=f"The {word} is", max_tokens=16, temperature=0) for word in words]
    seeded = [dict(prompt=f"A {word}", max_tokens=16, temperature=1.0, seed=i) for i, word in enumerate(words)]

    def run(arguments):
        return client.completions.create(model=model, **arguments).choices[0].text

    requests = greedy + seeded
    alone = [run(arguments) for arguments in requests]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(run, requests))
    assert together == alone


def test_leaving_in_mid_stream(client, model):
    for _ in range(8):
        stream = client.completions.create(
            model=model, prompt="Once upon a time", max_tokens=64, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
    assert client.completions.create(model=model, prompt="Hello", max_tokens=2).choices


# --- what the demo model says


@demo_only
def test_demo_completes_san_francisco(client, model):
    answer = client.completions.create(model=model, prompt="San Francisco is a", max_tokens=7, temperature=0)
    assert len(answer.choices[0].text.split()) >= 3


@demo_only
def test_demo_knows_ai(client, model):
    sensible = ("intelligence", "machine", "computer", "learn", "program", "software")
    text = client.completions.create(model=model, prompt="What is AI?", max_tokens=60, temperature=0).choices[0].text
    assert any(word in text.lower() for word in sensible), text
    messages = [{"role": "user", "content": "What is AI?"}]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=60, temperature=0)
    text = answer.choices[0].message.content
    assert any(word in text.lower() for word in sensible), text
