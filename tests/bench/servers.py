"""Measures one server under load: started, asked by `host bench serve`, stopped. Used by peers.py.

The client and its requests are the same for every server: 64 prompts of 128 random tokens, 16 at once, 128 tokens each.
llama.cpp and OpenVINO have no server of their own on PyPI that batches requests, so they are not asked.
"""

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

SERVERS = ("host", "vllm")
REQUESTS, AT_ONCE, LENGTH = 64, 16, 128


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def command(args, name, port, precision, python):
    model = str(args.work / "model")
    common = ["--port", str(port), "--host", "127.0.0.1", "--served-model-name", "bench", "--max-model-len", "2048"]
    if name == "host":
        flags = [] if precision == "16 bit" else ["--quantization", precision]
        flags += ["--plugins-dir", args.plugins_dir, "--threads", str(args.threads), "--no-enable-prefix-caching"]
        return [args.host, "serve", model, *common, *flags], {}
    threads = {"VLLM_CPU_OMP_THREADS_BIND": f"0-{args.threads - 1}", "VLLM_CPU_KVCACHE_SPACE": "1"}
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    flags = ["--dtype", "bfloat16", "--no-enable-prefix-caching"]
    return [python, "-m", "vllm.entrypoints.cli.main", "serve", model, *common, *flags], {**threads, **quiet}


@contextlib.contextmanager
def running(args, name, precision, python):
    """The server's address, once it answers."""
    port = free_port()
    words, env = command(args, name, port, precision, python)
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(words, env={**os.environ, **env}, stdout=log, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + args.timeout
            while not healthy(port):
                if server.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    last = (log.read().strip().splitlines() or ["no output"])[-1]
                    raise RuntimeError(f"the server did not start: {last}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()


def healthy(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def measure(args, name, precision, python):
    """Output tokens a second, and latencies in milliseconds."""
    with running(args, name, precision, python) as url, tempfile.TemporaryDirectory() as folder:
        load = [args.host, "bench", "serve", "--base-url", url, "--model", "bench", "--seed", "1", "--num-warmups", "16"]
        load += ["--num-prompts", str(REQUESTS), "--max-concurrency", str(AT_ONCE), "--random-input-len", str(LENGTH)]
        load += ["--random-output-len", str(LENGTH), "--percentile-metrics", "ttft,itl", "--metric-percentiles", "50,99"]
        load += ["--disable-tqdm", "--save-result", "--result-dir", folder, "--result-filename", "result.json"]
        subprocess.run(load, check=True, stdout=subprocess.DEVNULL, timeout=args.timeout)
        with open(os.path.join(folder, "result.json")) as file:
            got = json.load(file)
    if got["completed"] != REQUESTS:
        raise RuntimeError(f"{got['completed']} of {REQUESTS} requests were answered")
    return {
        "server": got["output_throughput"],
        "ttft_p50": got["p50_ttft_ms"],
        "ttft_p99": got["p99_ttft_ms"],
        "itl_p99": got["p99_itl_ms"],
    }
