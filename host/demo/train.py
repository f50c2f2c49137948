#!/usr/bin/env python3
"""Train the built-in demo model of `host` from nothing, on a CPU.

    pip install torch tokenizers safetensors
    python host/demo/train.py                 # 25 minutes, on two CPU cores
    python host/demo/train.py --minutes 2     # a quick, bad model, to try a change
    python host/demo/train.py --init host/demo/model --minutes 10    # train on

The script reads corpus/*.txt, trains a byte-level BPE tokenizer and a small
Llama-architecture model on it, and writes a folder in the Hugging Face layout
(default: model/ next to this file). Then it runs eval.py, which reloads the
written files with an implementation of its own and measures them.

Corpus format (all files under corpus/, UTF-8, `#` starts a comment line, blank
lines separate blocks):

  Questions (files whose blocks hold `Q:` lines)
      Q: What is {AI|artificial intelligence}?      {a|b} gives several wordings
      Q: Explain AI.
      T: Could you explain AI to me?                held out: never trained on
      A: AI is ...                                  the one answer
    A block may be a table. `= a; b` names the columns, each further `= x; y`
    line is a row, and [a], [b] in the other lines stand for its cells.
    `W: 20` makes a block count as 20 topics when samples are drawn.

  Chats (chats.txt): a sequence of `S:` (system), `U:` (user) and `A:` lines.
  Plain text (plain.txt): each paragraph is a text of its own.
  System prompts (system.txt): one per line, mixed into the chats at random.
"""
import argparse
import itertools
import json
import math
import pathlib
import random
import re
import subprocess
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).resolve().parent

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": [0, 2],
    "pad_token_id": 0,
    "use_cache": True,
    "torch_dtype": "bfloat16",
}
END, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


# ------------------------------------------------------------------ corpus

def expand(line):
    """'a {b|c} d' -> ['a b d', 'a c d'] (no nesting)."""
    parts = [p.split("|") for p in re.split(r"[{}]", line)]
    parts = [p if i % 2 else ["|".join(p)] for i, p in enumerate(parts)]
    return [re.sub(r"\s+", " ", "".join(c)).strip() for c in itertools.product(*parts)]


def blocks(path):
    for text in re.split(r"\n\s*\n", path.read_text("utf-8")):
        lines = [l.strip() for l in text.splitlines() if l.strip() and not l.startswith("#")]
        if lines:
            yield lines


def read_corpus(folder=HERE / "corpus"):
    """-> dict(topics, chats, plain, system); a topic is a dict(q, t, a, w)."""
    topics, chats, plain, system = [], [], [], []
    for path in sorted(folder.glob("*.txt")):
        for lines in blocks(path):
            if path.stem == "system":
                system += lines
            elif path.stem == "plain":
                plain.append(" ".join(lines))
            elif path.stem == "chats":
                role = {"S": "system", "U": "user", "A": "assistant"}
                chats.append([(role[l[0]], l[3:]) for l in lines])
            else:
                get = lambda k: [l[2:].strip() for l in lines if l.startswith(k)]
                bad = [l for l in lines if l[:2] not in ("Q:", "T:", "A:", "W:", "= ")]
                assert not bad and get("Q:") and len(get("A:")) == 1, (path, lines)
                rows = [[c.strip() for c in r.split(";")] for r in get("=")]
                head, rows = (rows[0], rows[1:]) if rows else ([], [[]])
                for row in rows:
                    assert len(row) == len(head), (path, row)

                    def fill(s):
                        for k, v in zip(head, row):
                            s = s.replace(f"[{k}]", v)
                        assert "[" not in s, (path, s)
                        s = re.sub(r"\.\.$", ".", s)  # "Washington, D.C.."
                        return s[0].upper() + s[1:]
                    topics.append({
                        "file": path.stem,
                        "lines": [[fill(e) for e in expand(l)] for l in get("Q:")],
                        "t": [fill(e) for l in get("T:") for e in expand(l)],
                        "a": fill(get("A:")[0]),
                        "w": int((get("W:") or ["1"])[0]),
                    })
                    topics[-1]["q"] = [q for line in topics[-1]["lines"] for q in line]
    return {"topics": topics, "chats": chats, "plain": plain, "system": system}


def chat_text(turns, generate=True):
    """The chat template, in Python. turns: [(role, content)]."""
    s = "".join(f"{IM_START}{r}\n{c}{IM_END}\n" for r, c in turns)
    return s + (f"{IM_START}assistant\n" if generate else "")


# --------------------------------------------------------------- tokenizer

def train_tokenizer(corpus):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    text = list(corpus["plain"]) + list(corpus["system"])
    for t in corpus["topics"]:
        text += [t["a"]] * 2 + rng.sample(t["q"], min(6, len(t["q"])))
        text += ["\n" + q.lower() for q in t["q"][:2]]
    text += ["user\n", "assistant\n", "system\n"] * 50
    text += [c for chat in corpus["chats"] for _, c in chat]
    tok.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], min_frequency=1, special_tokens=[END, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    assert tok.get_vocab_size() == CONFIG["vocab_size"], tok.get_vocab_size()
    return tok


# ------------------------------------------------------------------- model

class Layer(nn.Module):
    def __init__(self, c, drop):
        super().__init__()
        h, d, nh, nkv, m = (c["hidden_size"], c["head_dim"], c["num_attention_heads"],
                            c["num_key_value_heads"], c["intermediate_size"])
        lin = lambda i, o: nn.Linear(i, o, bias=False)
        self.nh, self.nkv, self.d = nh, nkv, d
        self.input_layernorm = nn.RMSNorm(h, eps=c["rms_norm_eps"])
        self.post_attention_layernorm = nn.RMSNorm(h, eps=c["rms_norm_eps"])
        self.self_attn = nn.ModuleDict({"q_proj": lin(h, nh * d), "k_proj": lin(h, nkv * d),
                                        "v_proj": lin(h, nkv * d), "o_proj": lin(nh * d, h)})
        self.mlp = nn.ModuleDict({"gate_proj": lin(h, m), "up_proj": lin(h, m), "down_proj": lin(m, h)})
        self.drop = nn.Dropout(drop)

    def forward(self, x, cos, sin, mask):
        b, t, _ = x.shape
        a, m = self.self_attn, self.mlp
        h = self.input_layernorm(x)
        split = lambda y, n: y.view(b, t, n, self.d).transpose(1, 2)
        q, k, v = split(a["q_proj"](h), self.nh), split(a["k_proj"](h), self.nkv), split(a["v_proj"](h), self.nkv)

        def rope(y):
            y1, y2 = y.chunk(2, -1)
            return y * cos + torch.cat([-y2, y1], -1) * sin
        q, k = rope(q).to(v.dtype), rope(k).to(v.dtype)
        r = self.nh // self.nkv
        k, v = k.repeat_interleave(r, 1), v.repeat_interleave(r, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.drop(a["o_proj"](y.transpose(1, 2).reshape(b, t, -1)))
        h = self.post_attention_layernorm(x)
        return x + self.drop(m["down_proj"](F.silu(m["gate_proj"](h)) * m["up_proj"](h)))


class Llama(nn.Module):
    def __init__(self, c, drop):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c, drop) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"])
        self.drop = nn.Dropout(drop)
        inv = c["rope_theta"] ** -(torch.arange(0, c["head_dim"], 2).float() / c["head_dim"])
        f = torch.outer(torch.arange(c["max_position_embeddings"]).float(), inv)
        f = torch.cat([f, f], -1)
        self.register_buffer("cos", f.cos(), persistent=False)
        self.register_buffer("sin", f.sin(), persistent=False)
        for n, p in self.named_parameters():
            if p.dim() == 2:
                std = c["initializer_range"]
                if n.endswith(("o_proj.weight", "down_proj.weight")):
                    std /= math.sqrt(2 * c["num_hidden_layers"])
                nn.init.normal_(p, std=std)

    def forward(self, ids, mask):
        """Hidden states before the output projection."""
        t = ids.shape[1]
        x = self.drop(self.embed_tokens(ids))
        for layer in self.layers:
            x = layer(x, self.cos[:t], self.sin[:t], mask)
        return self.norm(x)


# ----------------------------------------------------------------- samples

class Sampler:
    """Draws training samples: (token ids, loss weight of each token)."""
    GREET = ["Hi, ", "Hello, ", "Hi! ", "Hello! ", "Hey, ", "OK, ", "Thanks. ", "Good morning! "]
    ASK = ["Please tell me: ", "Tell me, ", "Can you tell me: ", "I want to know: ", "One question: ",
           "Quick question: ", "Please answer: ", "Question: "]
    AFTER = [" Please.", " Thanks!", " Thank you.", " Please answer briefly.", " Answer in one sentence.",
             " Be brief.", " I am curious.", " Explain it simply.", " I want to know it.", " Tell me."]

    def __init__(self, corpus, tok, seed, max_len):
        self.c, self.tok, self.rng, self.max_len = corpus, tok, random.Random(seed), max_len
        self.cache = {}

        key = lambda q: q.lower().strip("?.! ")
        self.key, self.held = key, {key(q) for t in corpus["topics"] for q in t["t"]}

    def enc(self, s):
        if s not in self.cache:
            if len(self.cache) > 200000:
                self.cache.clear()
            self.cache[s] = self.tok.encode(s, add_special_tokens=False).ids
        return self.cache[s]

    INDIRECT = ["Do you know", "Can you tell me", "Could you tell me", "Can you explain", "Could you explain",
                "Explain", "Tell me", "I want to know", "I wonder", "Please explain", "Please tell me"]

    def vary(self, q):
        """A harmless rewording of a question."""
        r = self.rng
        m = re.fullmatch(r"(What|Who|Where) (is|are|was|were) ((?:\S+ ){0,3}\S+)\?", q)
        if m and r.random() < 0.2:  # "What is X?" -> "Can you tell me what X is?"
            ask = r.choice(self.INDIRECT)
            new = f"{ask} {m[1].lower()} {m[3]} {m[2]}" + ("?" if ask[:3] in ("Do ", "Can", "Cou") else ".")
            if self.key(new) not in self.held:
                q = new
        if r.random() < 0.5:
            return q
        x = r.random()
        if x < 0.08 and len(q) > 12:
            pre = r.choice(self.GREET)
            q = pre + (q if pre[-2] != "," or q.startswith("I ") else q[0].lower() + q[1:])
        elif x < 0.16 and len(q) > 12:
            q = r.choice(self.ASK) + q[0].lower() + q[1:]
        elif x < 0.24 and q[-1] in "?.":
            q = q + r.choice(self.AFTER)
        if r.random() < 0.3:
            q = q[0].lower() + q[1:]
        if r.random() < 0.12:
            q = q.lower()
        if r.random() < 0.35 and q[-1] in "?.!":
            q = q[:-1]
        elif r.random() < 0.08 and q[-1] == "?":
            q = q[:-1] + r.choice([" ?", ".", "??", "!"])
        if r.random() < 0.08 and len(q) > 15:  # a slip of the finger
            i = r.randrange(3, len(q) - 1)
            q = r.choice([q[:i] + q[i + 1:], q[:i] + q[i + 1] + q[i] + q[i + 2:], q[:i] + q[i] + q[i:]])
        return q

    def chat(self, turns, loss_from=0):
        ids, w = [], []
        for i, (role, text) in enumerate(turns):
            head = self.enc(f"{IM_START}{role}\n")
            body = self.enc(text) + [2]
            on = 1.0 if role == "assistant" and i >= loss_from else 0.0
            tail = self.enc("\n")
            ids += head + body + tail
            w += [0.0] * len(head) + [on] * len(body) + [0.0] * len(tail)
        return ids[:-1], w[:-1]

    def plain(self, prompt, text):
        a, b = self.enc(prompt), self.enc(text)
        ids, w = a + b + [0], [0.15] * len(a) + [1.0] * (len(b) + 1)
        if self.rng.random() < 0.15:
            ids, w = [0] + ids, [0.0] + w
        return ids, w

    def pick(self, t):
        line, = self.rng.choices(t["lines"], [math.sqrt(len(l)) for l in t["lines"]])
        return self.vary(self.rng.choice(line)), t["a"]

    def topic(self, t):
        r = self.rng
        q, a = self.pick(t)
        if r.random() < 0.27:
            return self.plain(q, "\n" + a)
        turns = []
        if r.random() < 0.25:
            turns.append(("system", r.choice(self.c["system"])))
        if r.random() < 0.12:  # earlier turns about something else
            for _ in range(r.choice([1, 1, 1, 2, 3])):
                q0, a0 = self.pick(r.choice(self.c["topics"]))
                turns += [("user", q0), ("assistant", a0)]
        return self.chat(turns + [("user", q), ("assistant", a)])

    def epoch(self, n_topic=2):
        c, out = self.c, []
        for t in c["topics"]:
            out += [self.topic(t) for _ in range(n_topic * t["w"])]
        for _ in range(n_topic):
            for text in c["plain"]:
                out.append(self.plain("", text))
            for chat in c["chats"]:
                chat = [(k, self.vary(s) if k == "user" else s) for k, s in chat]
                if chat[0][0] != "system" and self.rng.random() < 0.25:
                    chat = [("system", self.rng.choice(c["system"]))] + chat
                out.append(self.chat(chat))
        return [(i[:self.max_len], w[:self.max_len]) for i, w in out]

    def batches(self, rows, width):
        """One epoch, packed into batches of constant shape. Every sample sees only itself:
        positions do not matter otherwise, as rotary positions are relative."""
        s = self.epoch()
        self.rng.shuffle(s)
        open_rows, full = [], []
        for ids, w in s:
            for row in open_rows:
                if row[0] + len(ids) <= width:
                    break
            else:
                row = [0, []]
                open_rows.append(row)
            row[0] += len(ids)
            row[1].append((ids, w))
            if row[0] > width - 16:
                open_rows.remove(row)
                full.append(row[1])
            if len(open_rows) > 24:
                full.append(open_rows.pop(0)[1])
        full += [r[1] for r in open_rows]
        self.rng.shuffle(full)
        for i in range(0, len(full) - rows + 1, rows):
            x = torch.zeros(rows, width, dtype=torch.long)
            y, w, doc = torch.zeros_like(x), torch.zeros(rows, width), torch.zeros_like(x)
            for r, row in enumerate(full[i:i + rows]):
                at = 0
                for d, (ids, ws) in enumerate(row):
                    n = len(ids)
                    x[r, at:at + n] = torch.tensor(ids)
                    y[r, at:at + n - 1] = torch.tensor(ids[1:])
                    w[r, at:at + n - 1] = torch.tensor(ws[1:])
                    doc[r, at:at + n] = d + 1
                    at += n
            mask = (doc[:, :, None] == doc[:, None, :]) & torch.ones(width, width).tril().bool()
            yield x, mask[:, None], y, w


# ---------------------------------------------------------------- training

def write_model(out, tok, model):
    out.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{k}": v.detach().to(torch.bfloat16).contiguous()
               for k, v in model.state_dict().items()}
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    tok.save(str(out / "tokenizer.json"), pretty=False)
    dump = lambda name, d: (out / name).write_text(json.dumps(d, indent=2) + "\n")
    dump("config.json", CONFIG)
    dump("generation_config.json", {"bos_token_id": 0, "eos_token_id": [0, 2], "pad_token_id": 0,
                                    "do_sample": False, "max_new_tokens": 128})
    special = lambda s: {"content": s, "lstrip": False, "normalized": False, "rstrip": False,
                         "single_word": False, "special": True}
    dump("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "add_eos_token": False,
        "add_prefix_space": False, "clean_up_tokenization_spaces": False,
        "bos_token": END, "eos_token": END, "pad_token": END,
        "additional_special_tokens": [IM_START, IM_END],
        "added_tokens_decoder": {str(i): special(s) for i, s in enumerate([END, IM_START, IM_END])},
        "model_max_length": CONFIG["max_position_embeddings"], "chat_template": CHAT_TEMPLATE})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=pathlib.Path, default=HERE / "model")
    p.add_argument("--minutes", type=float, default=25, help="the learning rate falls to zero over this time")
    p.add_argument("--epochs", type=float, default=0, help="stop by epochs instead of by time (repeatable)")
    p.add_argument("--init", type=pathlib.Path, help="start from the weights in this folder (same tokenizer)")
    p.add_argument("--lr", type=float, default=1.5e-3)
    p.add_argument("--rows", type=int, default=8, help="rows per batch")
    p.add_argument("--width", type=int, default=320, help="tokens per row")
    p.add_argument("--no-compile", action="store_true", help="without torch.compile (no C++ compiler)")
    p.add_argument("--dropout", type=float, default=0.05)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seed", type=int, default=1)
    args = p.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    corpus = read_corpus()
    tok = train_tokenizer(corpus)
    print(f"{len(corpus['topics'])} topics, {sum(len(t['q']) for t in corpus['topics'])} wordings, "
          f"{sum(len(t['t']) for t in corpus['topics'])} held out, {len(corpus['plain'])} plain texts, "
          f"{len(corpus['chats'])} chats, {len(corpus['system'])} system prompts")
    model = Llama(CONFIG, args.dropout)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    if args.init:
        model.load_state_dict({k.removeprefix("model."): v.float() for k, v in
                               load_file(str(args.init / "model.safetensors")).items()})
        tok = Tokenizer.from_file(str(args.init / "tokenizer.json"))
    decay = [p for p in model.parameters() if p.dim() == 2]
    other = [p for p in model.parameters() if p.dim() != 2]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": other, "weight_decay": 0.0}],
                            lr=args.lr, betas=(0.9, 0.98), fused=True)
    sampler = Sampler(corpus, tok, args.seed, args.width)
    trunk = model if args.no_compile else torch.compile(model, dynamic=False)
    start, step, epoch, seen, done = time.time(), 0, 0, 0, 0.0
    while done < 1.0:
        losses, n = 0.0, 0
        batches = list(sampler.batches(args.rows, args.width))
        for k, (x, mask, y, w) in enumerate(batches):
            if step == 3:  # do not count the compiler
                start, seen = time.time(), 0
            done = ((epoch + k / len(batches)) / args.epochs if args.epochs
                    else (time.time() - start) / 60 / args.minutes)
            if done >= 1.0:
                break
            lr = args.lr * min(1.0, (step + 1) / 150) * 0.5 * (1 + math.cos(math.pi * done))
            for g in opt.param_groups:
                g["lr"] = lr
            where = w > 0
            with torch.autocast("cpu", torch.bfloat16):
                h = trunk(x, mask)
                logits = F.linear(h[where], model.embed_tokens.weight)
            ce = F.cross_entropy(logits.float(), y[where], reduction="none")
            ww = w[where]
            loss = (ce * ww).sum() / ww.sum()
            opt.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            step += 1
            seen += x.numel()
            losses += ce[ww == 1].mean().item()
            n += 1
        epoch += 1
        if n:
            el = time.time() - start
            print(f"epoch {epoch:3d} step {step:5d} loss {losses / n:.4f} lr {lr:.2e} "
                  f"{el:6.0f} s {seen / el:6.0f} tok/s", flush=True)
        if epoch % 20 == 0:
            write_model(args.out, tok, model)
    write_model(args.out, tok, model)
    print(f"trained in {(time.time() - start) / 60:.1f} minutes, {seen / 1e6:.1f} M tokens; wrote {args.out}")
    subprocess.run([sys.executable, str(HERE / "eval.py"), "--model", str(args.out)], check=True)


if __name__ == "__main__":
    main()
