#!/usr/bin/env python3
"""Check the demo model as it was written to disk.

    pip install torch tokenizers safetensors jinja2
    python host/demo/eval.py [--model DIR] [--golden host/demo/golden.json]

Reloads config.json, tokenizer.json and model.safetensors with a plain Llama
implementation that shares no code with train.py (only the corpus reader is
taken from there), and reports for how many questions of the corpus greedy
decoding gives exactly the stored answer, end token included. The weights are
the bf16 ones; activations are computed once in float32 and once in bf16.

Whether greedy decoding gives the stored answer is found with one forward pass
over prompt and answer: it does if and only if every token of the answer is the
most likely one after the tokens before it.

--golden writes prompts with their greedy continuations (float32 activations)
for the tests of the engine.
"""
import argparse
import json
import pathlib
import random
import time
from collections import defaultdict

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

from train import read_corpus

HERE = pathlib.Path(__file__).resolve().parent


class Model:
    def __init__(self, folder, dtype):
        self.c = c = json.loads((folder / "config.json").read_text())
        self.w = {k: v.to(dtype) for k, v in load_file(str(folder / "model.safetensors")).items()}
        self.tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
        self.eos = c["eos_token_id"]
        d = c["head_dim"]
        inv = 1.0 / c["rope_theta"] ** (torch.arange(0, d, 2).float() / d)
        ang = torch.arange(c["max_position_embeddings"]).float()[:, None] * inv[None]
        self.cos, self.sin = ang.cos().to(dtype), ang.sin().to(dtype)

    def norm(self, x, name):
        y = x.float()
        y = y * torch.rsqrt((y * y).mean(-1, keepdim=True) + self.c["rms_norm_eps"])
        return y.to(x.dtype) * self.w[name]

    def rope(self, x):  # (batch, heads, time, dim): dimension i turns with i + dim/2
        h = x.shape[-1] // 2
        t = x.shape[2]
        a, b, cos, sin = x[..., :h], x[..., h:], self.cos[:t], self.sin[:t]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def __call__(self, ids, where=slice(None)):
        """ids (batch, time) -> float32 logits at the positions `where`, by default (batch, time, vocab)."""
        c, w = self.c, self.w
        b, t = ids.shape
        nh, nkv, d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        x = w["model.embed_tokens.weight"][ids]
        causal = torch.full((t, t), float("-inf")).triu(1)
        for i in range(c["num_hidden_layers"]):
            p = f"model.layers.{i}."
            h = self.norm(x, p + "input_layernorm.weight")
            q = (h @ w[p + "self_attn.q_proj.weight"].T).view(b, t, nh, d).transpose(1, 2)
            k = (h @ w[p + "self_attn.k_proj.weight"].T).view(b, t, nkv, d).transpose(1, 2)
            v = (h @ w[p + "self_attn.v_proj.weight"].T).view(b, t, nkv, d).transpose(1, 2)
            q, k = self.rope(q), self.rope(k)
            # query head j uses key/value head j // (nh / nkv)
            k, v = (y[:, [j * nkv // nh for j in range(nh)]] for y in (k, v))
            s = (q @ k.transpose(-1, -2)).float() * d ** -0.5 + causal
            y = (s.softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(b, t, nh * d)
            x = x + y @ w[p + "self_attn.o_proj.weight"].T
            h = self.norm(x, p + "post_attention_layernorm.weight")
            g = F.silu(h @ w[p + "mlp.gate_proj.weight"].T) * (h @ w[p + "mlp.up_proj.weight"].T)
            x = x + g @ w[p + "mlp.down_proj.weight"].T
        x = self.norm(x[where], "model.norm.weight")
        return (x @ w["model.embed_tokens.weight"].T).float()

    def encode(self, text):
        return self.tok.encode(text, add_special_tokens=False).ids

    def chat(self, messages):
        return "".join(f"<|im_start|>{r}\n{c}<|im_end|>\n" for r, c in messages) + "<|im_start|>assistant\n"

    def greedy(self, ids, n):
        """-> (new ids, smallest gap between the best and the second best logit)"""
        ids, new, gap = list(ids), [], float("inf")
        for _ in range(n):
            top = self(torch.tensor([ids]))[0, -1].topk(2)
            t = int(top.indices[0])
            gap = min(gap, float(top.values[0] - top.values[1]))
            ids.append(t)
            new.append(t)
            if t in self.eos:
                break
        return new, gap


def exact(model, items):
    """items: [(prompt text, answer text, end id)] -> (bools, smallest logit gap of each)"""
    enc = [(model.encode(p), model.encode(a) + [e]) for p, a, e in items]
    order = sorted(range(len(enc)), key=lambda i: len(enc[i][0]) + len(enc[i][1]))
    ok, gap = [False] * len(enc), [0.0] * len(enc)
    for s in range(0, len(order), 64):
        part = order[s:s + 64]
        n = max(len(enc[i][0]) + len(enc[i][1]) for i in part)
        x = torch.tensor([(enc[i][0] + enc[i][1] + [0] * n)[:n] for i in part])
        where = torch.zeros_like(x, dtype=torch.bool)
        for r, i in enumerate(part):
            p, a = enc[i]
            where[r, len(p) - 1:len(p) + len(a) - 1] = True
        tops, at = model(x, where).topk(2, -1), 0
        for i in part:
            a = enc[i][1]
            top = type(tops)((tops.values[at:at + len(a)], tops.indices[at:at + len(a)]))
            at += len(a)
            ok[i] = top.indices[:, 0].tolist() == a
            gap[i] = float((top.values[:, 0] - top.values[:, 1]).min())
    return ok, gap


def show(name, ok):
    print(f"  {name:44} {sum(ok):5} of {len(ok):5}  {100 * sum(ok) / max(1, len(ok)):5.1f} %")


def measure(model, corpus, per_topic, sample, verbose):
    rng = random.Random(5)
    chat, plain, held, where = [], [], [], []
    for t in corpus["topics"]:
        qs = t["q"] if len(t["q"]) <= per_topic else rng.sample(t["q"], per_topic)
        chat += [(model.chat([("user", q)]), t["a"], 2) for q in qs]
        plain += [(q, "\n" + t["a"], 0) for q in qs]
        where += [t["file"]] * len(qs)
        held += [(model.chat([("user", q)]), t["a"], 2, t["file"]) for q in t["t"]]
    if sample and sample < len(chat):
        keep = sorted(rng.sample(range(len(chat)), sample))
        chat, plain, where = ([x[i] for i in keep] for x in (chat, plain, where))
    if sample and sample < len(held):
        held = rng.sample(held, sample)
    ok, gap = exact(model, chat)
    show("stored questions, chat", ok)
    by = defaultdict(list)
    for o, f in zip(ok, where):
        by[f].append(o)
    if verbose:
        for f, o in by.items():
            show("    " + f, o)
        bad = [c for c, o in zip(chat, ok) if not o]
        for p, a, _ in bad[:12]:
            print("      wrong:", repr(p[17:-33]), "->", repr(model.tok.decode(model.greedy(model.encode(p), 60)[0])))
        g = sorted(x for x, o in zip(gap, ok) if o)
        print(f"  smallest logit gap on the way of an exact answer: median {g[len(g) // 2]:.2f}, "
              f"1st percentile {g[len(g) // 100]:.2f}")
    show("stored questions, chat with a system prompt",
         exact(model, [("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + p, a, e)
                       for p, a, e in chat[::4]])[0])
    show("stored questions, plain prompt", exact(model, plain[::2])[0])
    ok, _ = exact(model, [h[:3] for h in held])
    show("held-out wordings, chat", ok)
    by = defaultdict(list)
    for o, h in zip(ok, held):
        by[h[3]].append(o)
    if verbose:
        for f, o in by.items():
            show("    " + f, o)
        bad = [h for h, o in zip(held, ok) if not o]
        for p, a, _, f in random.Random(3).sample(bad, min(25, len(bad))):
            print("      wrong:", f, repr(p[17:-33]), "->", repr(model.tok.decode(model.greedy(model.encode(p), 60)[0])))
    turns = []
    for c in corpus["chats"]:
        turns += [(model.chat(c[:i]), s, 2) for i, (r, s) in enumerate(c) if r == "assistant"]
    show("turns of the stored chats", exact(model, turns)[0])
    texts = []
    for s in corpus["plain"]:
        ids = model.encode(s)
        k = max(4, len(ids) // 4)
        texts.append((model.tok.decode(ids[:k]), model.tok.decode(ids[k:]), 0))
    show("plain texts, from the first quarter to the end", exact(model, texts)[0])


SAMPLES = [
    ("plain", "San Francisco is a", 7), ("plain", "What is AI?", 60), ("plain", "The capital of Germany is", 24),
    ("plain", "Once upon a time", 60), ("plain", "Hello, my name is", 40), ("plain", "The future of AI is", 40),
    ("plain", "The president of the United States is", 40),
    ("chat", [("user", "What is the capital of France?")], 60), ("chat", [("user", "Who are you?")], 80),
    ("chat", [("user", "hello")], 60), ("chat", [("user", "why is the sky blue")], 60),
    ("chat", [("system", "You are a helpful assistant."), ("user", "What is host?")], 80),
    ("chat", [("user", "How do I start the server?")], 60), ("chat", [("user", "What is 7 times 8?")], 40),
    ("chat", [("user", "Who was Leibniz?")], 60), ("chat", [("user", "What is the GDP of Ruritania?")], 60),
    ("chat", [("user", "How can I learn to cook?")], 60), ("chat", [("user", "Write me a sonnet about Rust.")], 60),
    ("chat", [("user", "What is the capital of Sweden?"), ("assistant", "The capital of Sweden is Stockholm."),
              ("user", "Which language do they speak in Sweden?")], 60),
]

GOLDEN = [
    ("plain", "San Francisco is a"), ("plain", "What is AI?"), ("plain", "The capital of Germany is"),
    ("plain", "Once upon a time a king"), ("plain", "One, two, three"),
    ("chat", [("user", "What is AI?")]), ("chat", [("user", "What is the capital of France?")]),
    ("chat", [("user", "Who are you?")]), ("chat", [("user", "Hello!")]),
    ("chat", [("system", "You are a helpful assistant."), ("user", "What is host?")]),
    ("chat", [("user", "What is the capital of France?"), ("assistant", "The capital of France is Paris."),
              ("user", "And of Germany?")]),
    ("chat", [("user", "What is a paged KV cache?")]), ("chat", [("user", "What is the population of Ghana?")]),
    ("chat", [("user", "What is 3 plus 4?")]),
]


def write_golden(model, path, n=24):
    out = []
    for kind, x in GOLDEN:
        text = x if kind == "plain" else model.chat(x)
        ids = model.encode(text)
        new, gap = model.greedy(ids, n)
        case = {"kind": kind}
        if kind == "chat":
            case["messages"] = [{"role": r, "content": c} for r, c in x]
        case.update(prompt=text, prompt_ids=ids, greedy_ids=new, greedy_text=model.tok.decode(new),
                    finish="stop" if new[-1] in model.eos else "length", min_logit_gap=round(gap, 3))
        out.append(case)
    rows = ",\n  ".join("{\n" + ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in c.items()) + "\n  }"
                        for c in out)
    path.write_text('{\n "about": "Greedy continuations of the demo model: bf16 weights, float32 arithmetic; '
                    'written by eval.py --golden",\n "max_new_tokens": ' + str(n) + ',\n "cases": [\n  ' + rows
                    + "\n ]\n}\n")
    json.loads(path.read_text())
    print(f"wrote {len(out)} cases to {path}, smallest logit gap {min(c['min_logit_gap'] for c in out)}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", type=pathlib.Path, default=HERE / "model")
    p.add_argument("--golden", type=pathlib.Path)
    p.add_argument("--per-topic", type=int, default=8, help="at most so many wordings of each topic")
    p.add_argument("--sample", type=int, default=0, help="a random sample of so many questions (default: all)")
    p.add_argument("--quick", action="store_true", help="float32 only")
    p.add_argument("-v", "--verbose", action="store_true")
    args = p.parse_args()
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    corpus = read_corpus()
    model = Model(args.model, torch.float32)
    c = model.c
    assert c["vocab_size"] == model.tok.get_vocab_size() == model.w["model.embed_tokens.weight"].shape[0]
    assert [model.tok.token_to_id(s) for s in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [0, 1, 2]
    try:
        import jinja2
        chat = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "What is AI?")]
        text = jinja2.Environment().from_string(model.template).render(
            messages=[{"role": r, "content": s} for r, s in chat], add_generation_prompt=True)
        assert text == model.chat(chat), text
    except ImportError:
        print("(no jinja2: chat template not checked)")
    files = {f.name: f.stat().st_size for f in sorted(args.model.iterdir())}
    print(f"{sum(v.numel() for v in model.w.values()) / 1e6:.2f} M parameters, "
          f"{sum(files.values()) / 1e6:.2f} MB: {files}")
    for name, dt in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        if name == "bfloat16" and args.quick:
            continue
        t = time.time()
        print(f"bf16 weights, {name} activations: exact greedy answers")
        measure(model if dt == torch.float32 else Model(args.model, dt), corpus, args.per_topic, args.sample,
                args.verbose and dt == torch.float32)
        print(f"  ({time.time() - t:.0f} s)")
    for kind, x, n in SAMPLES:
        new, _ = model.greedy(model.encode(x if kind == "plain" else model.chat(x)), n)
        ask = x if kind == "plain" else x[-1][1]
        end = " [end]" if new[-1] in model.eos else " ..."
        print(f"{kind}: {ask!r} -> {model.tok.decode(new)!r}{end}")
    if args.golden:
        write_golden(model, args.golden)


if __name__ == "__main__":
    main()
