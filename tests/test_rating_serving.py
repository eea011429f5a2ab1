"""The command itself: begun, killed, gone on with, interrupted; the browser's test in short."""

import re
import signal
import socket
import subprocess
import sys
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest

from alignkit.cli import main
from alignkit.json_lines import append_json_lines, read_json_lines

pytest.importorskip("uvicorn", reason="part of the rate extra")

ask = build_opener(ProxyHandler({})).open


class Server:
    """`alignkit rate` in a process of its own."""

    def __init__(self, folder, *arguments: str):
        command = [sys.executable, "-m", "alignkit", "rate", *arguments, "--output", "ratings", "--port", "0"]
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # a shell that starts this in the background ignores Ctrl-C for all that it starts
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        self.said = ""
        while not (address := re.search(r"http://127\.0\.0\.1:\d+", line := self.process.stdout.readline())):
            assert line, self.process.stderr.read()
            self.said += line
        self.address = address[0]

    def page(self, path: str, fields: dict | None = None) -> str:
        data = None if fields is None else urlencode(fields).encode()
        with ask(self.address + path, data, timeout=20) as answer:
            return answer.read().decode()

    def rate(self, rater: str, value: int) -> None:
        """The next page that is open for the rater."""
        shown = self.page(f"/rate?{urlencode({'rater': rater})}")
        hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', shown))
        fields = dict.fromkeys(re.findall(r'name="(answer-[\d-]+)"', shown), value)
        self.page("/rate", {**hidden, **fields})

    def end(self, signal_number: int) -> int:
        self.process.send_signal(signal_number)
        code = self.process.wait(timeout=20)
        self.said += self.process.stdout.read() + self.process.stderr.read()
        return code


@pytest.fixture
def folder(tmp_path):
    for name in ("plain", "tuned"):
        rows = [{"prompt": f"Hello {n}", "completion": f"{name} {n}", "reference": f"best {n}"} for n in range(3)]
        append_json_lines(tmp_path / f"{name}.jsonl", rows)
    return tmp_path


@pytest.fixture
def serve(folder):
    """Starts servers, and leaves none behind."""
    started = []

    def start(*arguments: str) -> Server:
        started.append(Server(folder, *arguments))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()


def test_a_study_is_begun_killed_gone_on_with_and_interrupted(folder, serve):
    first = serve("plain.jsonl", "other=tuned.jsonl", "--gold", "--count", "2")
    for value in (1, 2):
        first.rate("Ann", value)
        first.rate("Bo", value)
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    assert "2 prompts, 3 systems: 6 responses to rate" in first.said

    again = serve()
    assert '<b id="done">2</b> of 6' in again.page("/rate?rater=Ann")
    assert "Are you the Bo who was here before?" in again.page("/start", {"rater": "Bo"})
    for _ in range(4):
        again.rate("Ann", 3)
    assert "All done. Thank you, Ann!" in again.page("/rate?rater=Ann")
    assert again.end(signal.SIGINT) == 130
    assert "Traceback" not in again.said and "Ann" not in again.said
    rows = read_json_lines(folder / "ratings" / "ratings.jsonl")
    assert len(rows) == 3 * (6 + 2) and {row["system"] for row in rows if row["rater"] == "Ann"} == {
        "plain",
        "other",
        "gold",
    }


def test_a_port_that_is_taken_and_a_folder_in_use_are_said(folder, serve, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["rate", "plain.jsonl", "tuned.jsonl", "--output", "ratings", "--port", port]) == 2
    assert f"nothing can listen on 127.0.0.1, port {port}" in capsys.readouterr().err
    assert not (folder / "ratings").exists()
    serve("plain.jsonl", "tuned.jsonl")
    assert main(["rate", "--output", "ratings", "--port", "0"]) == 2
    assert "is being rated already" in capsys.readouterr().err
