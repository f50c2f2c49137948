"""`host chat` in a terminal, against a server that says what the tests want and nothing more."""

import http.server
import json
import os
import pty
import select
import threading
import time

import pytest

PATIENCE = 60


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with one word and then waits until the client has left; to `silent` it says nothing at all."""

    def do_GET(self):
        body = json.dumps({"object": "list", "data": [{"id": "slow"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][-1]["content"]
        if asked != "silent":
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            chunk = {"choices": [{"index": 0, "delta": {"content": "Word"}}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.flush()
            if asked == "short":
                self.wfile.write(b"data: [DONE]\n\n")
                self.close_connection = True
                return
        self.server.asked.set()
        self.connection.settimeout(PATIENCE)
        if not self.connection.recv(1):  # the end, when the client leaves
            self.server.left.set()
        self.close_connection = True

    def log_message(self, *_):
        pass


class Terminal:
    """A program in a terminal."""

    def __init__(self, *command):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(command[0], command)
        self.shown = ""
        self.at = 0

    def see(self, words):
        """Waits until these words are shown behind the last ones."""
        end = time.monotonic() + PATIENCE
        while words not in self.shown[self.at :]:
            assert time.monotonic() < end, f"no {words!r} in {self.shown[self.at:]!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.shown += os.read(self.fd, 4096).decode()
        self.at = self.shown.index(words, self.at) + len(words)

    def press(self, keys):
        os.write(self.fd, keys.encode())

    def end(self):
        """The exit code, once it has ended."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, 9)
        pytest.fail(f"it did not end: {self.shown!r}")


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads = True
        server.asked, server.left = threading.Event(), threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def chat(server):
    program = os.environ.get("HOST_BIN")
    if not program:
        pytest.skip("HOST_BIN names no program")
    terminal = Terminal(program, "chat", "--url", f"http://127.0.0.1:{server.server_port}")
    terminal.see("> ")
    return terminal


@pytest.mark.parametrize("question", ["hello", "silent"])
def test_ctrl_c_stops_an_answer_before_and_after_its_first_word(server, chat, question):
    chat.press(f"{question}\n")
    if question == "hello":
        chat.see("Word")
    assert server.asked.wait(PATIENCE)
    chat.press("\x03")
    chat.see("stopped]")
    chat.see("> ")
    assert server.left.wait(PATIENCE), "the request goes on"
    chat.press("short\n")
    chat.see("Word")
    chat.see("> ")
    chat.press("\x04")
    assert chat.end() == 0


def test_ctrl_c_between_answers_ends_the_program(chat):
    chat.press("short\n")
    chat.see("Word")
    chat.see("> ")
    chat.press("\x03")
    assert chat.end() == 130


def test_help_and_exit(chat):
    chat.press("/help\n")
    chat.see("Ctrl-C stops an answer")
    chat.see("> ")
    chat.press("/exit\n")
    assert chat.end() == 0
