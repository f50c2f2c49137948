"""The files in `deploy/` and the examples in `docs/deployment.md`, with the tools that read them: systemd-analyze, a running nginx,
Kubernetes' schemas, promtool. Tools that are not there leave their test out, unless HOST_TEST_DEPLOYMENT is set. HOST_BIN names
the program. The Dockerfile is not built (that takes a registry of images): its lines are held against what the program needs.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request

import pytest
from conftest import serving

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs/deployment.md").read_text()
PROGRAM = os.environ.get("HOST_BIN", "")


def tool(name):
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if not found and not os.environ.get("HOST_TEST_DEPLOYMENT"):
        pytest.skip(f"{name} is not there")
    assert found, f"{name} is not there"
    return found


def run(*command, **settings):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **settings)
    return done.returncode, done.stdout + done.stderr


def example(language, word):
    """The example of the page in this language that has this word."""
    [text] = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.S) if word in text]
    return text


def test_systemd_takes_the_unit(tmp_path):
    if not PROGRAM:
        pytest.skip("HOST_BIN names no program")
    unit = (ROOT / "deploy/host.service").read_text()
    place = "/usr/local/bin/host"
    assert place in unit
    copy = tmp_path / "host.service"
    copy.write_text(unit.replace(place, str(pathlib.Path(PROGRAM).resolve())))
    status, said = run(tool("systemd-analyze"), "verify", "--man=no", str(copy))
    assert status == 0 and not said.strip(), said
    # The check can fail.
    copy.write_text(copy.read_text().replace("NoNewPrivileges=yes", "NoNewPrivilege=yes"))
    assert "NoNewPrivilege" in run(tool("systemd-analyze"), "verify", "--man=no", str(copy))[1]


def test_the_units_command_line_is_one(tmp_path):
    [line] = re.findall(r"^ExecStart=(.*)$", (ROOT / "deploy/host.service").read_text(), re.M)
    (tmp_path / "host.toml").write_text("[serve]\nport = 0\n")
    (tmp_path / "keys").write_text("secret\n")
    flags = line.replace("/etc/host", str(tmp_path)).split()[2:]
    with serving(*flags) as address:
        assert json.load(urllib.request.urlopen(f"{address}/health", timeout=30))["status"] == "ok"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/v1/models", timeout=30)
        assert refused.value.code == 401


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_kubernetes_takes_the_manifests(version):
    validate = pytest.importorskip("kubernetes_validate")
    yaml = pytest.importorskip("yaml")
    resources = list(yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text()))
    assert [resource["kind"] for resource in resources] == ["Deployment", "Service"]
    for resource in resources:
        validate.validate(resource, version, strict=True)
    [container] = resources[0]["spec"]["template"]["spec"]["containers"]
    container["livenessProbe"]["httpGet"]["paths"] = "/"
    with pytest.raises(validate.ValidationError):
        validate.validate(resources[0], version, strict=True)


def test_prometheus_takes_dashboard_alerts_scrapes_and_metrics(tmp_path):
    promtool = tool("promtool")
    dashboard = json.loads((ROOT / "docs/grafana.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    found += re.findall(r"`((?:rate\()?vllm:[^`]*)`", PAGE.split("Worth an alert")[1])
    assert len(found) > 30
    plain = [text.replace("$__rate_interval", "5m").replace("$model_name", ".*") for text in found]
    assert not any("$" in text for text in plain)
    rules = [{"record": f"rule:{i}", "expr": text} for i, text in enumerate(plain)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "host", "rules": rules}]}))
    status, said = run(promtool, "check", "rules", str(file))
    assert status == 0 and f"{len(rules)} rules found" in said, said
    key = tmp_path / "key"
    key.write_text("secret")
    file.write_text(example("yaml", "scrape_configs").replace("/etc/prometheus/host-key", str(key)))
    status, said = run(promtool, "check", "config", str(file))
    assert status == 0, said
    with serving() as address:
        metrics = urllib.request.urlopen(f"{address}/metrics", timeout=30).read().decode()
    status, said = run(promtool, "check", "metrics", input=metrics)
    # vLLM's names are not as Prometheus would have them (a colon); anything but such advice is an error.
    assert status in (0, 3), said
    assert "error" not in said.lower(), said


@contextlib.contextmanager
def nginx(folder, upstream):
    """nginx as the page has it, in front of this address; its own address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    certificates = ROOT / "host/src/server/testdata"
    server = example("nginx", "proxy_pass")
    for old, new in [
        ("127.0.0.1:8000", upstream.removeprefix("http://")),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/llm.pem", str(certificates / "localhost.pem")),
        ("/etc/ssl/llm.key", str(certificates / "localhost.key")),
    ]:
        assert old in server
        server = server.replace(old, new)
    places = "".join(f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;\n" if os.geteuid() == 0 else ""
    head = f"{user}daemon off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\n"
    (folder / "nginx.conf").write_text(f"{head}http {{\naccess_log off;\n{places}{server}\n}}\n")
    command = [tool("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(command, stderr=(folder / "log").open("w")) as process:
        try:
            for _ in range(300):
                assert process.poll() is None, (folder / "log").read_text()
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            yield f"https://localhost:{port}"
        finally:
            process.terminate()
            process.wait(30)


def running(address):
    metrics = urllib.request.urlopen(f"{address}/metrics", timeout=30).read().decode()
    return float(re.search(r"^vllm:num_requests_running\{.*\} (\S+)$", metrics, re.M)[1])


def test_a_stream_passes_through_nginx_as_it_is_made(tmp_path):
    tool("nginx")
    trust = ssl.create_default_context(cafile=ROOT / "host/src/server/testdata/ca.pem")
    body = {"prompt": "Once upon a time", "max_tokens": 200, "ignore_eos": True, "stream": True}
    with serving() as address, nginx(tmp_path, address) as proxy:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{proxy}/v1/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60, context=trust) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])  # nginx's
            first = answer.readline()
            # Here already, and the rest is not made yet.
            assert first.startswith(b"data: {") and running(address) == 1
            rest = answer.read().decode()
        assert rest.endswith("data: [DONE]\n\n") and rest.count("data: {") > 100
        # Who leaves in the middle is gone for the server too.
        answer = urllib.request.urlopen(request, timeout=60, context=trust)
        answer.readline()
        answer.close()
        for _ in range(300):
            if running(address) == 0:
                break
            time.sleep(0.1)
        assert running(address) == 0


def test_the_image_has_what_the_program_needs(tmp_path):
    """Not a build: what the Dockerfile says, held against what was built here."""
    if not PROGRAM:
        pytest.skip("HOST_BIN names no program")
    text = (ROOT / "deploy/Dockerfile").read_text()
    [toolchain] = re.findall(r'channel = "([\d.]+)"', (ROOT / "rust-toolchain.toml").read_text())
    assert f"FROM rust:{'.'.join(toolchain.split('.')[:2])}-slim AS build" in text
    built = pathlib.Path(PROGRAM).resolve().parent
    assert "cp target/release/host target/release/libhost_plugin_*.so /out/" in text
    files = [built / "host", *built.glob("libhost_plugin_*.so")]
    assert len(files) == 5
    # Libraries of the image debian:*-slim: those of its essential packages and of apt.
    there = {"linux-vdso", "ld-linux-x86-64", "ld-linux-aarch64", "libc", "libm", "libgcc_s", "libpthread", "libdl", "librt", "libstdc++"}
    for file in files:
        needed = {re.split(r"[.]so|-x86-64[.]so", line.split()[0].split("/")[-1])[0] for line in run("ldd", str(file))[1].splitlines()}
        needed = {name.replace("ld-linux", "ld-linux-x86-64") if name == "ld-linux" else name for name in needed}
        assert needed <= there, f"{file.name}: {needed - there}"
        shutil.copy(file, tmp_path)
    [variables] = re.findall(r"^ENV (.*)$", text, re.M)
    [command] = re.findall(r'^CMD \["(.*)"\]$', text, re.M)
    # As in the image: program and plugins side by side, and this environment.
    environment = dict(pair.split("=") for pair in variables.split()) | {"HOST_PORT": "0", "PATH": "/usr/bin:/bin"}
    assert environment["HOST_HOST"] == "0.0.0.0" and environment["HOST_LOG_FORMAT"] == "json"
    os.chmod(tmp_path, 0o755)
    with subprocess.Popen([tmp_path / "host", command], env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            for line in server.stderr:
                if found := re.search(r"serving .* on http://0\.0\.0\.0:(\d+)/v1", json.loads(line)["fields"]["message"]):
                    break
            else:
                pytest.fail("the server ended")
            answer = urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/health/ready", timeout=30)
            assert answer.status == 200
            server.terminate()  # STOPSIGNAL
            assert "STOPSIGNAL SIGTERM" in text and server.wait(60) == 0
        finally:
            server.kill()
