"""Fixtures of all client tests. HOST_BIN names the program, for the tests that need a server of another kind than the one
at HOST_BASE_URL; without it they are skipped.
"""

import contextlib
import os
import re
import subprocess
import threading

import pytest


@contextlib.contextmanager
def serving(*flags):
    """A server with these flags; its address, without a path."""
    program = os.environ.get("HOST_BIN")
    if not program:
        pytest.skip("HOST_BIN names no program")
    command = [program, "serve", "--port", "0", "--disable-access-log", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        log = []
        for line in server.stderr:
            log.append(line)
            if address := re.search(r"serving .* on (http:\S+)/v1", line):
                break
        else:
            pytest.fail(f"the server ended:\n{''.join(log)}")
        # Read on: a full pipe would make the server wait for us.
        threading.Thread(target=server.stderr.read, daemon=True).start()
        try:
            yield address[1]
        finally:  # a test that failed too must end
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                raise


@pytest.fixture(scope="session")
def pooling_url():
    """The base URL, with /v1, of a server for embeddings."""
    with serving("--runner", "pooling") as address:
        yield f"{address}/v1"
