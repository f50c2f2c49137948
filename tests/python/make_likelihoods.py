"""Writes `tests/data/likelihoods/NAME.json`: what torch and transformers say about texts of several tokens, for
test_lm_eval_zoo.py. Logits are float32, of one forward pass over context and continuation; their softmax is computed
in float64. The logits are compared with those of the zoo's golden.json first.

    pip install torch transformers==5.23.0 && python tests/python/make_likelihoods.py llama gpt2 mixtral jamba qwen3_next
"""

import json
import pathlib
import random
import sys
import tempfile

import torch
import transformers
import zoo

# Lengths of context and continuation.
LENGTHS = [(1, 2), (3, 5), (7, 1), (17, 16), (40, 8)]
# As lm-eval gives it to the whole text.
PREFIX = 1
# A token is the most likely one, or is not, by more than any rounding.
MARGIN = 5e-3
OUT = pathlib.Path(__file__).parents[1] / "data/likelihoods"


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].double()


class NearTie(Exception):
    """Rounding decides which token is the most likely one: other texts are to be taken."""


def score(model, context, continuation):
    """The log-likelihood of the continuation, and whether each of its tokens is the most likely one."""
    rows = logits(model, context + continuation)[len(context) - 1 : -1]
    wanted = torch.tensor(continuation)
    best, second = rows.topk(2).values.T
    own = rows.gather(1, wanted[:, None])[:, 0]
    if not all((best - own > MARGIN) | (best == own) & (best - second > MARGIN)):
        raise NearTie
    total = rows.log_softmax(1).gather(1, wanted[:, None]).sum()
    return {"log_likelihood": round(total.item(), 6), "greedy": bool((best == own).all())}


def most_likely(model, context, length):
    ids = list(context)
    for _ in range(length):
        ids.append(logits(model, ids)[-1].argmax().item())
    return ids[len(context) :]


def scores(model, numbers):
    def ids(length):
        return [numbers.randrange(zoo.VOCABULARY) for _ in range(length)]

    pairs = []
    for before, after in LENGTHS:
        context = ids(before)
        for continuation in (ids(after), ids(after), most_likely(model, context, after)):
            pairs.append({"context": context, "continuation": continuation, **score(model, context, continuation)})
    whole = [ids(length) for length in (1, 12, 60)]
    return pairs, [{"ids": text, "log_likelihood": score(model, [PREFIX], text)["log_likelihood"]} for text in whole]


def make(name):
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = zoo.write_checkpoint(name, pathlib.Path(folder))
        settings = {"dtype": torch.float32, "attn_implementation": "eager"}
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, **settings).eval()
    golden = json.loads((zoo.ZOO / name / "golden.json").read_text())
    for prompt in golden["prompts"]:
        difference = logits(model, prompt["prompt_ids"])[-1] - torch.tensor(prompt["last_logits"])
        assert difference.abs().max() < golden["atol"], f"{name}: not the model of golden.json"
    for seed in range(100):
        try:
            pairs, texts = scores(model, random.Random(f"{name} {seed}"))
            break
        except NearTie:
            continue
    result = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "prefix": PREFIX}
    lines = [json.dumps(result)[:-1], ' "pairs": [']
    lines += [f"  {json.dumps(pair)}," for pair in pairs]
    lines[-1] = lines[-1][:-1] + "],"
    lines += [' "texts": ['] + [f"  {json.dumps(text)}," for text in texts]
    lines[-1] = lines[-1][:-1] + "]}"
    lines[0] += ","
    (OUT / f"{name}.json").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        make(name)
        print(name)
