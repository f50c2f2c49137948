"""`lm-eval --model local-completions` against a running server with the demo model, on the tasks in `lm_eval/`; see
test_openai_client.py for how to run it. Nothing is fetched: data and tokenizer are this repository's.
"""

import json
import os
import pathlib
import subprocess
import sys
import urllib.request

import pytest

pytest.importorskip("lm_eval")

BASE_URL = os.environ.get("HOST_BASE_URL", "").rstrip("/")
API_KEY = os.environ.get("HOST_API_KEY", "none")
HERE = pathlib.Path(__file__).parent / "lm_eval"
TOKENIZER = pathlib.Path(__file__).parents[2] / "host/demo/model"

pytestmark = pytest.mark.skipif(
    not BASE_URL or os.environ.get("HOST_DEMO") != "1", reason="HOST_BASE_URL names no server of the demo model"
)


def post(path, body):
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(BASE_URL + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def log_likelihood(context, continuation):
    """By another way than lm-eval's: vLLM's prompt_logprobs, which are an object by token id, of the whole text's tokens."""
    ids = [post("/tokenize", {"prompt": text})["tokens"] for text in (context, context + continuation)]
    answer = post("/v1/completions", {"prompt": ids[1], "max_tokens": 1, "prompt_logprobs": 0})
    entries = answer["choices"][0]["prompt_logprobs"]
    return sum(entries[i][str(ids[1][i])]["logprob"] for i in range(len(ids[0]), len(ids[1])))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm_eval")
    arguments = {
        "model": "host-demo",
        "base_url": f"{BASE_URL}/v1/completions",
        "tokenizer": TOKENIZER,
        "tokenizer_backend": "huggingface",
        "tokenized_requests": True,
        "num_concurrent": 4,
        "max_length": 256,
        "max_retries": 1,
    }
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions"]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
    command += ["--tasks", "host_choice,host_rolling,host_generate", "--include_path", HERE, "--batch_size", "4"]
    command += ["--output_path", folder, "--log_samples"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    environment |= {"OPENAI_API_KEY": API_KEY}
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    [summary] = folder.rglob("results_*.json")
    samples = {}
    for path in folder.rglob("samples_*.jsonl"):
        task = path.name.removeprefix("samples_").rsplit("_", 1)[0]
        samples[task] = [json.loads(line) for line in path.read_text().splitlines()]
    return json.loads(summary.read_text())["results"], samples


def test_choices(results):
    scores, samples = results
    assert 0 <= scores["host_choice"]["acc,none"] <= 1
    for sample in samples["host_choice"]:
        document = sample["doc"]
        for choice, [[found, _greedy]] in zip(document["choices"], sample["resps"], strict=True):
            expected = log_likelihood(document["question"], f" {choice}")
            assert float(found) == pytest.approx(expected, abs=1e-3), (document["question"], choice)


def test_whole_texts(results):
    scores, samples = results
    assert scores["host_rolling"]["word_perplexity,none"] > 1
    assert all(float(sample["resps"][0][0]) < 0 for sample in samples["host_rolling"])


def test_generation(results):
    _, samples = results
    for sample in samples["host_generate"]:
        request = {"prompt": sample["doc"]["question"], "max_tokens": 12, "temperature": 0, "stop": ["."]}
        assert sample["resps"][0][0] == post("/v1/completions", request)["choices"][0]["text"]
