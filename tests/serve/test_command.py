"""`inlay serve` as a process: one line with its address, answers, an end when it is asked to; what is refused before it listens."""

import json
import os
import re
import socket
import subprocess

import httpx
import pytest

from tests.support import forks, servers
from tests.support.command import run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return servers.made(tmp_path_factory.mktemp("command"))


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGTERM to hear")
def test_a_server_says_where_it_is_answers_and_ends_when_it_is_asked_to(made):
    directory, adapters = made
    command = ["serve", directory, "--adapters", f"mine={adapters / 'red'}", "--adapter-dir", adapters, "--port", "0"]
    process = forks.Process(forks.INLAY, *command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    said = []
    while not said or not said[-1].startswith("serves"):
        said.append(process.stderr.readline())
        assert said[-1], said
    address = re.search(r"http://127\.0\.0\.1:\d+/v1", said[-1])[0]
    assert "<title>Inlay</title>" in httpx.get(re.search(r"a page for a browser: (\S+)", said[-1])[1]).text
    listed = httpx.get(f"{address}/models").json()["data"]
    assert {"tiny", "mine", "red", "green", "blue"} <= {model["id"] for model in listed}
    body = {"model": "mine", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, "ignore_eos": True}
    with httpx.stream("POST", f"{address}/chat/completions", json=body | {"stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        process.terminate()
        rest = list(lines)
    assert rest[-2:] == ["data: [DONE]", ""]
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    logged = [json.loads(line) for line in err.splitlines()]
    asked = ["/", "/v1/models", "/v1/chat/completions"]
    assert [(one["path"], one["status"]) for one in logged] == [(path, 200) for path in asked]
    assert (logged[2]["adapter"], logged[2]["completion_tokens"]) == ("mine", 50)


def _refused(capsys, *arguments, says):
    status, out, err = run(capsys, "serve", *arguments)
    assert (status in (1, 2), out) == (True, "")
    assert says in err
    assert "Traceback" not in err


def test_what_can_not_be_served_is_refused(capsys, made, tmp_path, monkeypatch):
    directory, adapters = made
    _refused(capsys, directory, "--adapters", f"a={adapters / 'nowhere'}", says="is gone")
    _refused(capsys, directory, "--adapters", adapters / "red", f"red={adapters / 'blue'}", says="can't have one name")
    _refused(capsys, directory, "--adapters", f"a b={adapters / 'red'}", says="can't be called so")
    _refused(capsys, directory, "--max-rows", "0", says="--max-rows 0")
    monkeypatch.setattr("inlay.cli.serve.Serve.load", lambda *given: pytest.fail("a model was read"))
    _refused(capsys, directory, "--host", "0.0.0.0", says="everybody who can connect")
    _refused(capsys, directory, "--api-keys", tmp_path / "none.json", says="can't be read")
    _refused(capsys, directory, "--adapter-memory", "much", says="no size")


def test_an_address_that_is_taken_is_said(capsys, made):

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        _refused(capsys, made[0], "--port", taken.getsockname()[1], says="this address can't be listened on")
