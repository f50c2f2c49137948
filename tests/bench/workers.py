"""One peer, one model, one precision: times prefill, decode and a batch in the peer's own Python API, and prints JSON.

    python workers.py llama.cpp|openvino|vllm MODEL_DIR PRECISION THREADS

Called by peers.py, in the peer's own environment. Prompts are token ids, new ones each time, so that no prefix cache
helps; all answers have their full length.
"""

import json
import os
import random
import sys
import time

REPEATS = 3


class LlamaCpp:
    FILES = {"16 bit": ["bf16.gguf", "f16.gguf"], "int8": ["q8_0.gguf"], "int4": ["q4_0.gguf"]}

    def __init__(self, path, threads):
        import llama_cpp
        import numpy

        self.api, self.numpy = llama_cpp, numpy
        # Kept: C calls it as long as the model lives.
        self.silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.silent, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = 16 * 512, 16
        params.n_batch, params.n_ubatch = 2048, 512
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.batch = llama_cpp.llama_batch_init(2048, 0, 1)

    def decode(self, tokens):
        """Runs (token, position, sequence, wanted) and returns the likeliest token of each that is wanted."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        assert self.api.llama_decode(self.context, batch) == 0
        found = {}
        for i, (_, _, sequence, wanted) in enumerate(tokens):
            if wanted:
                row = self.api.llama_get_logits_ith(self.context, i)
                found[sequence] = int(self.numpy.argmax(self.numpy.ctypeslib.as_array(row, (self.vocab,))))
        return found

    def generate(self, prompts, count):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        tokens = [(t, p, s, p + 1 == len(ids)) for s, ids in enumerate(prompts) for p, t in enumerate(ids)]
        last = {}
        for start in range(0, len(tokens), 2048):
            last.update(self.decode(tokens[start : start + 2048]))
        for step in range(count - 1):
            last = self.decode([(token, len(prompts[s]) + step, s, True) for s, token in last.items()])


class OpenVino:
    # Its reader of GGUF files knows no bf16.
    FILES = {"16 bit": ["f16.gguf"], "int8": ["q8_0.gguf"], "int4": ["q4_0.gguf"]}

    def __init__(self, path, threads):
        import openvino
        import openvino_genai

        self.ov, self.genai = openvino, openvino_genai
        self.pipe = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
        self.vocab = 30000

    def generate(self, prompts, count):
        import numpy

        ids = numpy.array(prompts, numpy.int64)
        inputs = self.genai.TokenizedInputs(self.ov.Tensor(ids), self.ov.Tensor(numpy.ones_like(ids)))
        config = self.genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
        answers = self.pipe.generate(inputs, config).tokens
        assert all(len(answer) == count for answer in answers), [len(answer) for answer in answers]


class Vllm:
    FILES = {"16 bit": [""]}

    def __init__(self, path, threads):
        os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}", "VLLM_CPU_KVCACHE_SPACE": "1"}
        os.environ |= {
            "VLLM_LOGGING_LEVEL": "ERROR",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
        from vllm import LLM, SamplingParams

        self.params, self.vocab = SamplingParams, 30000
        options = {"skip_tokenizer_init": True, "enable_prefix_caching": False, "max_model_len": 2048}
        self.llm = LLM(model=path, dtype="bfloat16", **options)

    def generate(self, prompts, count):
        params = self.params(max_tokens=count, min_tokens=0, ignore_eos=True, temperature=0, detokenize=False)
        answers = self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        assert all(len(answer.outputs[0].token_ids) == count for answer in answers)


def median(values):
    return sorted(values)[len(values) // 2]


def measure(engine):
    rng = random.Random(0)

    def seconds(rows, length, count):
        def one():
            prompts = [[rng.randrange(1, engine.vocab) for _ in range(length)] for _ in range(rows)]
            start = time.perf_counter()
            engine.generate(prompts, count)
            return time.perf_counter() - start

        one()
        return median([one() for _ in range(REPEATS)])

    return {
        "prefill": 512 / seconds(1, 512, 1),
        "decode": 128 / (seconds(1, 8, 129) - seconds(1, 8, 1)),
        "batch": 16 * 128 / seconds(16, 128, 128),
    }


if __name__ == "__main__":
    kind, model, precision, threads = sys.argv[1:]
    peer = {"llama.cpp": LlamaCpp, "openvino": OpenVino, "vllm": Vllm}[kind]
    best = {}
    for file in peer.FILES[precision]:
        found = measure(peer(os.path.join(model, file) if file else model, int(threads)))
        # Of several files of one precision, each measure is the better file's.
        best = {key: max(value, best.get(key, 0)) for key, value in found.items()}
    print("RESULT " + json.dumps(best))
