"""`docs/guides/serve.md` as it stands there: its commands are the command's, and its files do what it says.

The block for nginx is run, in front of a server with keys; the unit is verified by systemd; of the container file what can be
known without a daemon: that its entry point is a command, and its extra one of the package.
"""

import dataclasses
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
import types
from pathlib import Path

import httpx
import openai
import pytest

import inlay
from inlay import cli
from inlay.cli import serve
from inlay.http import access
from tests.support import forks, servers

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest brings tomli
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "serve.md").read_text("utf-8")
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SYSTEMD = shutil.which("systemd-analyze")

PAUSE = 0.03
SLOW = f"""
import sys, time
from inlay.cli import main
from inlay.generation.engine import Engine
own = Engine.step
Engine.step = lambda self: (time.sleep({PAUSE}), own(self))[1]
sys.exit(main())
"""
"""The command, with a pause before every token, so that it shows when each of them comes."""

CONFIG = """
{user}
daemon off;
worker_processes 1;
pid {place}/pid;
error_log {place}/errors;
events {{}}
http {{
    access_log off;
    client_body_temp_path {place}/bodies;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    server {{
        listen 127.0.0.1:{port};
        {block}
    }}
}}
"""


def block(language, number=0):
    """A block of the guide."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)[number]


def commands():
    """Every `inlay serve` of the guide, as arguments: of transcripts, the unit, the container file."""
    found = [shlex.split(line) for line in re.findall(r"^\$ inlay serve (.*)$", GUIDE, re.MULTILINE)]
    found.append(shlex.split(re.search(r"^ExecStart=\S+/inlay serve (.*)$", block("ini"), re.MULTILINE)[1]))
    command, name, *arguments = json.loads(re.search(r"^ENTRYPOINT (.*)$", block("dockerfile"), re.MULTILINE)[1])
    assert (command, name) == ("inlay", "serve")
    return [*found, arguments]


def flags(text):
    """The flags of the command that a text names."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


KNOWN = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(serve.Command)}


def test_every_command_of_the_guide_is_one():
    assert len(commands()) >= 5
    for arguments in commands():
        parsed = cli.read("serve", arguments)
        assert parsed.model
        listens_elsewhere = parsed.host != "127.0.0.1"
        assert not listens_elsewhere or parsed.api_keys
    with pytest.raises(inlay.UsageError):
        cli.read("serve", ["base", "--adapter-dirs", "x"])


def test_every_flag_that_the_guide_speaks_of_is_one():
    said = re.sub(r"^```.*?^```$", "", GUIDE, flags=re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`]+)`", said)
    named = flags(" ".join(span for span in spans if span.startswith(("--", "inlay serve"))))
    assert len(named) > 10
    assert named <= KNOWN


def test_the_keys_of_the_guide_are_keys(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text(block("json").replace("…", "x" * 16), "utf-8")
    read = access.read(path)
    shop = read.caller("Bearer 8Qm0" + "x" * 16)
    assert (shop.sees("support"), shop.sees("other"), shop.sees(None), shop.manages) == (True, False, False, False)
    me = read.caller("Bearer v3Kx" + "x" * 16)
    assert (me.sees("other"), me.manages) == (True, True)


@pytest.mark.skipif(SYSTEMD is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize(
    "spoil",
    [("", "", ""), ("ProtectHome=yes", "ProtectHome=maybe", "protect home value"), ("Restart=", "Restrat=", "Restrat")],
)
def test_the_unit_is_one(tmp_path, spoil):
    program = tmp_path / "inlay"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    before, after, says = spoil
    unit = re.sub(r"(?<==)\S+/inlay(?= serve)", str(program), block("ini")).replace(before, after, 1 if before else 0)
    (tmp_path / "inlay.service").write_text(unit)
    done = subprocess.run(
        [SYSTEMD, "verify", "--man=no", tmp_path / "inlay.service"], capture_output=True, text=True, check=False
    )
    own = [line for line in done.stderr.splitlines() if "inlay" in line]
    assert says in done.stderr if says else (done.returncode, own) == (0, []), done.stderr


def test_a_service_that_ends_has_the_time_that_it_takes():
    drain = {field.name: field.default for field in dataclasses.fields(serve.Command)}["drain_seconds"]
    assert int(re.search(r"TimeoutStopSec=(\d+)", block("ini"))[1]) > drain
    (run,) = re.findall(r"^docker run (.*)$", GUIDE, re.MULTILINE)
    assert int(re.search(r"--stop-timeout (\d+)", run)[1]) > drain, "docker kills after ten seconds"


CONTAINER = (ROOT / "Containerfile").read_text("utf-8")
INSTRUCTIONS = {
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "ONBUILD", "RUN", "SHELL",
    "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip
"""All that a container file has."""


def instructions(text):
    """(name, the rest) of each."""
    whole = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "")
    return [tuple(line.split(None, 1)) for line in whole.splitlines() if line.strip()]


def mistakes(text):
    """What is wrong with a container file: what it copies is looked for in the repository."""
    found, users = [], []
    for name, rest in instructions(text):
        if name not in INSTRUCTIONS:
            found.append(f"{name} is no instruction")
        if name in ("COPY", "ADD"):
            sources = [word for word in shlex.split(rest)[:-1] if not word.startswith("--")]
            found += [f"{source} is not there" for source in sources if not [*ROOT.glob(source)]]
        for command in re.split("&&|;", rest) if name == "RUN" else ():
            found += ["a cache is left"] * ("pip install" in command and "--no-cache-dir" not in command)
            found += ["lists are left"] * ("apt-get update" in command and "rm -rf /var/lib/apt/lists" not in rest)
        users += [rest] if name == "USER" else []
    found += ["it does not begin with FROM"] * (instructions(text)[0][0] not in ("FROM", "ARG"))
    return [*found, *["it runs as root"] * (users[-1:] in ([], ["root"], ["0"]))]


def test_the_container_file_is_the_one_of_the_guide():
    assert block("dockerfile") == CONTAINER
    assert mistakes(CONTAINER) == []


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("EXPOSE", "EXPOES", "EXPOES is no instruction"),
        ("USER inlay\n", "", "it runs as root"),
        ("USER inlay\n", "USER inlay\nUSER root\n", "it runs as root"),
        ("--no-cache-dir ", "", "a cache is left"),
        ("USER", "COPY --chown=inlay src gone.txt /\nUSER", "gone.txt is not there"),
        ("RUN user", "RUN apt-get update && user", "lists are left"),
        ("FROM python:3.12-slim\n", "", "it does not begin with FROM"),
    ],
)
def test_a_mistake_in_a_container_file_is_found(before, after, says):
    assert mistakes(CONTAINER.replace(before, after, 1)) == [says]


def test_the_container_file_holds_what_its_entry_point_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    torch, package = next(rest for name, rest in instructions(CONTAINER) if name == "RUN").split("&&")
    assert "torch --index-url https://download.pytorch.org/whl/cpu" in torch, "without gigabytes of CUDA"
    (extra,) = re.findall(r'"inlay\[(\w+)\]"', package)
    assert extra in project["optional-dependencies"]
    python = re.search(r"FROM python:3\.(\d+)", CONTAINER)[1]
    assert int(python) >= int(re.search(r"3\.(\d+)", project["requires-python"])[1])
    (arguments,) = commands()[-1:]
    (build,) = re.findall(r"^docker build -t (\S+) - < (\S+)$", GUIDE, re.MULTILINE)
    (run,) = re.findall(r"^docker run (.*)$", GUIDE, re.MULTILINE)
    assert build == (run.split()[-1], "Containerfile")
    mounted = set(re.findall(r"-v \S+?:(/\w[\w.]*):ro", run))
    assert mounted == {text for text in arguments if text.startswith("/")}
    (port,) = re.findall(r"EXPOSE (\d+)", CONTAINER)
    assert re.search(r"-p 127\.0\.0\.1:\d+:(\d+)", run)[1] == port
    assert serve.Command(model="x").port == int(port)


def _free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


KEYS = {"shop": "8Qm0" + "x" * 16, "me": "v3Kx" + "x" * 16}


@pytest.fixture(scope="module")
def behind(tmp_path_factory):
    """A slow server with keys, and nginx in front of it with the block of the guide."""
    place = tmp_path_factory.mktemp("behind")
    directory, adapters = servers.made(place, ["red", "green"])
    keys = block("json").replace("…", "x" * 16).replace('"support", "tone"', '"red"')
    (place / "keys.json").write_text(keys, "utf-8")
    command = [
        "serve",
        directory,
        "--adapter-dir",
        adapters,
        "--api-keys",
        place / "keys.json",
        "--port",
        "0",
        "--json",
    ]
    with (place / "log").open("w") as log:
        process = forks.Process(SLOW, *command, stderr=log, stdout=subprocess.PIPE)
    try:
        own, port = json.loads(process.stdout.readline())["port"], _free_port()
        text = block("nginx")
        assert text.count("127.0.0.1:8000") == 1
        user = "user root;" if os.geteuid() == 0 else ""
        config = CONFIG.format(
            user=user, place=place, port=port, block=text.replace("127.0.0.1:8000", f"127.0.0.1:{own}")
        )
        (place / "nginx.conf").write_text(config)
        proxy = subprocess.Popen([NGINX, "-p", place, "-c", place / "nginx.conf"], stderr=subprocess.DEVNULL)
        try:
            address = f"http://127.0.0.1:{port}"
            _await(lambda: _answers(address), "nginx listens")
            yield types.SimpleNamespace(address=address, own=f"http://127.0.0.1:{own}", log=place / "log", place=place)
        finally:
            proxy.terminate()
            proxy.wait(10)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def _answers(address):
    try:
        return httpx.get(f"{address}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _await(holds, what):
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def _logged(behind):
    """What the server has noted of chats."""
    lines = [json.loads(line) for line in behind.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("path") == "/v1/chat/completions"]


def _metrics(behind):
    return httpx.get(f"{behind.own}/metrics", headers={"authorization": f"Bearer {KEYS['me']}"}).text


nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
ASKED = {
    "model": "red",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 40,
    "extra_body": {"ignore_eos": True},
}


def _client(behind, who="shop"):
    return openai.OpenAI(base_url=f"{behind.address}/v1", api_key=KEYS.get(who, who * 9), max_retries=0)


@nginx
def test_a_stream_comes_through_the_proxy_as_it_is_made(behind):
    with _client(behind) as client:
        begun, times = time.monotonic(), []
        for _ in client.chat.completions.create(**ASKED, stream=True):
            times.append(time.monotonic() - begun)
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert sum(gap > PAUSE / 2 for gap in gaps) > 30, "each token comes when it is made"


@nginx
def test_who_hangs_up_before_the_proxy_ends_the_answer_behind_it(behind):
    for stream in (True, False):
        before = len(_logged(behind))
        with _client(behind) as client:
            if stream:
                with client.chat.completions.create(**ASKED, stream=True) as answer:
                    next(iter(answer))
            else:
                with pytest.raises(openai.APITimeoutError):
                    client.chat.completions.create(**ASKED, timeout=8 * PAUSE)
        _await(lambda before=before: len(_logged(behind)) > before, "the request is noted")
        assert _logged(behind)[before].get("completion_tokens", 0) < 30
        _await(lambda: "inlay_sequences_running 0.0" in _metrics(behind), "nothing is computed any more")


@nginx
def test_keys_and_faults_come_through_the_proxy_as_they_are(behind):
    with _client(behind, "nobody") as client, pytest.raises(openai.AuthenticationError, match="key is not known"):
        client.chat.completions.create(**ASKED)
    with _client(behind) as client:
        with pytest.raises(openai.NotFoundError, match="no model of that name"):
            client.chat.completions.create(**ASKED | {"model": "green"})
        with pytest.raises(openai.BadRequestError, match="too long"):
            client.chat.completions.create(**ASKED | {"max_tokens": 4000})
        raw = client.chat.completions.with_raw_response.create(**ASKED | {"max_tokens": 2})
        assert raw.headers["inlay-adapter-digest"]
        assert raw.headers["x-request-id"]


@nginx
@pytest.mark.parametrize("num_bytes", [7_999_900, 8_000_100, 8_300_000, 12_000_000, 31_000_000, 60_000_000])
def test_a_body_that_is_too_large_is_refused_as_such(behind, num_bytes):
    body = json.dumps({"model": "red", "prompt": "x"})
    padded = body[:-2] + "x" * (num_bytes - len(body)) + body[-2:]
    headers = {"authorization": f"Bearer {KEYS['shop']}", "content-type": "application/json"}
    answer = httpx.post(f"{behind.address}/v1/completions", content=padded, headers=headers, timeout=60)
    if num_bytes <= 8_000_000:  # it is read, and refused for what it says
        assert answer.status_code == 400
    else:
        assert answer.status_code == 413
    if (
        8_000_000 < num_bytes < 31_457_280
    ):  # what is larger than the proxy takes is refused by the proxy, in words of its own
        assert "too large" in answer.json()["error"]["message"]


@nginx
def test_a_key_that_is_not_known_is_refused_whatever_the_body(behind):
    """Nobody reads the body for its sake, but the proxy has to get rid of it before it hears the answer."""
    headers = {"authorization": "Bearer nobody", "content-type": "application/json"}
    for num_bytes in (100, 1_000_000, 8_300_000, 20_000_000):
        answer = httpx.post(f"{behind.address}/v1/completions", content="x" * num_bytes, headers=headers, timeout=60)
        assert (answer.status_code, "key is not known" in answer.text) == (401, True)
