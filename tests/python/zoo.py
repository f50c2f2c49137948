"""Checkpoints of the zoo for tests in Python: `tests/data/zoo/README.md` is the format, `tests/zoo` the same in Rust. Only
float32 recipes are followed; what is made is compared with the recipe's checksum.
"""

import base64
import json
import pathlib
import struct
import zlib

import numpy

ZOO = pathlib.Path(__file__).parents[1] / "data/zoo"
VOCABULARY = 256


def uniform(seed_text, shape, mean, scale):
    """Counter-based splitmix64, rounded to float32 twice."""
    seed = 0xCBF29CE484222325
    for byte in seed_text.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    count = int(numpy.prod(shape))
    with numpy.errstate(over="ignore"):
        z = numpy.uint64(seed) + numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        z = z ^ (z >> numpy.uint64(31))
    one = numpy.float32(8388608)
    unit = ((z >> numpy.uint64(40)).astype(numpy.float32) - one) / one
    return (unit * numpy.float32(scale) + numpy.float32(mean)).astype("<f4").tobytes()


def tensor_bytes(recipe, tensor):
    fill = tensor["fill"]
    if fill["kind"] == "raw":
        return base64.b64decode(fill["base64"])
    assert tensor["dtype"] == "F32", f"{tensor['name']}: only float32 recipes are followed here, not {tensor['dtype']}"
    if fill["kind"] == "const":
        return numpy.full(tensor["shape"], fill["value"], "<f4").tobytes()
    name = f"{recipe['model']}/{tensor['name']}{recipe.get('salt', '')}"
    return uniform(name, tensor["shape"], fill["mean"], fill["scale"])


def write_weights(recipe, folder):
    [(file, tensors)] = recipe["files"].items()
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for tensor in tensors:
        data = tensor_bytes(recipe, tensor)
        place = {"dtype": tensor["dtype"], "shape": tensor["shape"], "data_offsets": [len(body), len(body) + len(data)]}
        header[tensor["name"]] = place
        body += data
    assert f"{zlib.crc32(body):08x}" == recipe["crc32"][file], f"{file} is not what the recipe promises"
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    (folder / file).write_bytes(struct.pack("<Q", len(head)) + head + body)


def write_tokenizer(folder):
    """The zoo has no tokenizers. In this one the id 7 is the word `t7`."""
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {f"t{id}": id for id in range(VOCABULARY)}, "unk_token": "t0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def write_checkpoint(name, parent):
    """The checkpoint of this entry, in a folder of its name; the folder."""
    folder = parent / name
    folder.mkdir()
    (folder / "config.json").write_bytes((ZOO / name / "config.json").read_bytes())
    write_weights(json.loads((ZOO / name / "weights.json").read_text()), folder)
    write_tokenizer(folder)
    return folder


def text(ids):
    """What the tokenizer makes these ids of."""
    return " ".join(f"t{id}" for id in ids)
