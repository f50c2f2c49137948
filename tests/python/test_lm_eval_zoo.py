"""lm-eval's log-likelihoods over HTTP of models of the zoo, against those of torch (`tests/data/likelihoods`, written by
make_likelihoods.py): continuations of several tokens, and whole texts. lm-eval's own class asks, with prompts of token ids,
echo and logprobs. HOST_BIN names the program, its plugins lie beside it.
"""

import json
import pathlib

import pytest
import zoo
from conftest import serving

pytest.importorskip("lm_eval")

LIKELIHOODS = sorted((pathlib.Path(__file__).parents[1] / "data/likelihoods").glob("*.json"))
# Of the whole continuation, up to 60 tokens long.
TOLERANCE = 1e-3


def instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


@pytest.mark.parametrize("path", LIKELIHOODS, ids=lambda path: path.stem)
def test_log_likelihoods_are_those_of_torch(path, tmp_path, monkeypatch):
    import transformers
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    expected = json.loads(path.read_text())
    folder = zoo.write_checkpoint(path.stem, tmp_path)
    package = str(pathlib.Path(transformers.__file__).parent)
    # Small steps, so that prompts are computed in pieces and beside each other.
    flags = ["--dtype", "float32", "--max-num-batched-tokens", "24", "--transformers-path", package]
    with serving(str(folder), *flags) as address:
        model = LocalCompletionsAPI(
            base_url=f"{address}/v1/completions",
            model=str(folder),
            tokenizer=str(folder),
            tokenizer_backend="huggingface",
            tokenized_requests=True,
            custom_prefix_token_id=expected["prefix"],
            max_length=128,
            batch_size=4,
            num_concurrent=3,
            max_retries=1,
        )
        pairs = expected["pairs"]
        texts = [(zoo.text(pair["context"]), " " + zoo.text(pair["continuation"])) for pair in pairs]
        for found, pair in zip(model.loglikelihood(instances("loglikelihood", texts)), pairs, strict=True):
            assert found == (pytest.approx(pair["log_likelihood"], abs=TOLERANCE, rel=0), pair["greedy"]), pair
        texts = [(zoo.text(text["ids"]),) for text in expected["texts"]]
        rolling = model.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
        for found, text in zip(rolling, expected["texts"], strict=True):
            assert found == pytest.approx(text["log_likelihood"], abs=TOLERANCE, rel=0), text


def test_models_of_every_kind_are_compared():
    kinds = {json.loads((zoo.ZOO / path.stem / "golden.json").read_text())["category"] for path in LIKELIHOODS}
    assert {"dense", "moe", "hybrid"} <= kinds
