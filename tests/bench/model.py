"""Makes the model that all engines are measured with: random bf16 weights in the shape of a small Llama, as a Hugging Face
checkpoint and as GGUF files of the same weights (bf16, f16, q8_0, q4_0).

    python model.py DIR      (needs numpy, gguf)

The tokenizer has bytes and unreachable tokens: prompts are token ids.
"""

import json
import pathlib
import struct
import sys

import gguf
import numpy

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 768,
    "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64,
    "intermediate_size": 2048, "vocab_size": 32000, "max_position_embeddings": 8192, "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
LAYER = {
    "self_attn.q_proj": ("attn_q", "q", "h"), "self_attn.k_proj": ("attn_k", "kv", "h"),
    "self_attn.v_proj": ("attn_v", "kv", "h"), "self_attn.o_proj": ("attn_output", "h", "q"),
    "mlp.gate_proj": ("ffn_gate", "i", "h"), "mlp.up_proj": ("ffn_up", "i", "h"),
    "mlp.down_proj": ("ffn_down", "h", "i"), "input_layernorm": ("attn_norm", "h", None),
    "post_attention_layernorm": ("ffn_norm", "h", None),
}  # fmt: skip


def tensors():
    """(Hugging Face's name, GGUF's name, f32 values that bf16 holds exactly)."""
    rng = numpy.random.default_rng(0)
    heads, size = CONFIG["num_attention_heads"], CONFIG["head_dim"]
    sizes = {"h": CONFIG["hidden_size"], "q": heads * size, "kv": CONFIG["num_key_value_heads"] * size}
    sizes["i"] = CONFIG["intermediate_size"]

    def random(rows, columns):
        bits = (rng.standard_normal((rows, columns), numpy.float32) * 0.02).view(numpy.uint32)
        return (bits & 0xFFFF0000).view(numpy.float32)

    yield "model.embed_tokens", "token_embd", random(CONFIG["vocab_size"], sizes["h"])
    for layer in range(CONFIG["num_hidden_layers"]):
        for name, (short, rows, columns) in LAYER.items():
            value = random(sizes[rows], sizes[columns]) if columns else numpy.ones(sizes[rows], numpy.float32)
            yield f"model.layers.{layer}.{name}", f"blk.{layer}.{short}", value
    yield "model.norm", "output_norm", numpy.ones(sizes["h"], numpy.float32)


def checkpoint(folder, weights):
    header, offset, bodies = {}, 0, []
    for name, _, value in weights:
        body = (value.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes()
        header[name + ".weight"] = {
            "dtype": "BF16", "shape": list(value.shape), "data_offsets": [offset, offset + len(body)]
        }  # fmt: skip
        offset += len(body)
        bodies.append(body)
    text = json.dumps(header).encode()
    # As the safetensors library does: what follows is aligned.
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(bodies)
    (folder / "config.json").write_text(json.dumps(CONFIG))


def vocabulary():
    """Bytes as GPT-2 writes them, then fillers."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    odd = [byte for byte in range(256) if byte not in plain]
    letters = [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(odd))]
    letters = ["<|endoftext|>", *letters, "th"]
    return letters + [f"<unused{i}>" for i in range(CONFIG["vocab_size"] - len(letters))]


def tokenizer(folder):
    """The same vocabulary as the GGUF files have, for servers."""
    words = vocabulary()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = {"id": 0, "content": words[0], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    model = {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": [["t", "h"]]}
    parts = {"pre_tokenizer": byte_level, "decoder": byte_level, "normalizer": None, "post_processor": None}
    text = {"version": "1.0", "added_tokens": [{**end, "special": True}], **parts, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(text))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": words[0], "bos_token": words[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def as_gguf(path, weights, kind):
    writer = gguf.GGUFWriter(path, "llama")
    heads, kv_heads = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
    writer.add_name("bench")
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_embedding_length(CONFIG["hidden_size"])
    writer.add_block_count(CONFIG["num_hidden_layers"])
    writer.add_feed_forward_length(CONFIG["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(CONFIG["head_dim"])
    writer.add_value_length(CONFIG["head_dim"])
    writer.add_rope_dimension_count(CONFIG["head_dim"])
    writer.add_rope_freq_base(CONFIG["rope_theta"])
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_vocab_size(CONFIG["vocab_size"])
    writer.add_file_type({"bf16": 32, "f16": 1, "q8_0": 7, "q4_0": 2}[kind])
    words = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([3] + [1] * 257 + [5] * (len(words) - 258))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, short, value in weights:
        if name.endswith(("q_proj", "k_proj")):
            # GGUF's order of a head's rows: pairs of the rotation side by side.
            count = heads if name.endswith("q_proj") else kv_heads
            value = value.reshape(count, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        kept = gguf.GGMLQuantizationType.F32 if value.ndim == 1 else gguf.GGMLQuantizationType[kind.upper()]
        writer.add_tensor(short + ".weight", gguf.quants.quantize(value, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    weights = list(tensors())
    checkpoint(folder, weights)
    tokenizer(folder)
    for kind in ("bf16", "f16", "q8_0", "q4_0"):
        as_gguf(folder / f"{kind}.gguf", weights, kind)


if __name__ == "__main__":
    main()
