"""What clients send that is wrong, who may ask what, and what is said about a server."""

import contextlib
import json
import re
import shutil
import socket
import threading
import time

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from inlay.base.load import load
from inlay.errors import ConfigError, FormatError, UnknownNameError
from inlay.http import access
from inlay.http.server import Setup, check_host, serving
from inlay.http.service import Bounds
from inlay.serve.registry import Registry
from tests.support import bases, servers

CHAT = {"model": "red", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 4}
SHOP, ADMIN = "shop-key-0123456789", "admin-key-0123456789"


@pytest.fixture
def http(served):
    with httpx.Client(base_url=served.address) as made:
        yield made


def _error(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    return error["message"]


def _answers(http, model="red"):
    response = http.post("/v1/chat/completions", json=CHAT | {"model": model})
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


BODIES = {
    "no JSON": (b"{", "JSON"),
    "no object": (b"[1]", "the body|dictionary|object"),
    "nothing": (b"", "required|body"),
    "no text": (b'{"model": "\xff"}', "parsing|JSON|utf"),
    "deep": (b"[" * 100_000, "JSON|parsing|recursion"),
    "not a number": (json.dumps(CHAT).replace('"temperature": 0', '"temperature": NaN').encode(), "temperature"),
    "infinite": (json.dumps(CHAT).replace('"temperature": 0', '"temperature": 1e999').encode(), "temperature"),
    "huge number": (json.dumps(CHAT).replace('"max_tokens": 4', '"max_tokens": ' + "9" * 5000).encode(), "."),
    "half a character": (json.dumps(CHAT).replace("hi", "\\ud800").encode(), "half a character"),
    "a name of half a character": (json.dumps(CHAT).replace("red", "\\ud800").encode(), "unicode string"),
    "a key of half a character": (json.dumps(CHAT).replace("max_tokens", "\\ud800").encode(), "unicode string"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_none_are_refused(http, name):
    body, says = BODIES[name]
    response = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    message = _error(response, 400)
    assert re.search(says, message, re.IGNORECASE), message
    assert _answers(http)


@pytest.mark.parametrize("says_length", [True, False])
def test_a_body_of_a_hundred_megabytes_is_not_read(served, says_length):
    host, port = served.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        length = "content-length: 100000000" if says_length else "transfer-encoding: chunked"
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{length}\r\n\r\n"
        connection.sendall(head.encode())
        sent = 0
        answer = b""
        with contextlib.suppress(OSError):  # it hangs up
            while not says_length and sent < 100_000_000:
                connection.sendall(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
                sent += 0x100000
        with contextlib.suppress(ConnectionResetError):
            answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413") or (sent and not answer), answer
    assert sent < 50_000_000


def test_a_body_that_never_ends_is_not_waited_for(served, monkeypatch):
    monkeypatch.setattr("inlay.http.gate.BODY_SECONDS", 0.2)
    host, port = served.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_paths_and_methods_that_there_are_not(http):
    _error(http.get("/v1/nowhere"), 404)
    assert http.delete("/v1/models").headers["allow"] == "GET"
    _error(http.delete("/v1/models"), 405)


def test_a_page_in_a_browser_can_not_ask_by_a_name_of_its_own(http):
    assert "asked by another name" in _error(http.get("/v1/models", headers={"host": "evil.example"}), 403)
    for host in ("localhost", "127.0.0.1:1", "[::1]:80"):
        assert http.get("/v1/models", headers={"host": host}).status_code == 200
    for host in ("", "[", "[evil]:1", "localhost.evil"):
        assert http.get("/v1/models", headers={"host": host}).status_code in (400, 403)


def test_tokens_of_a_text_and_of_a_conversation(http, served):
    tokenizer = served.base.tokenizer
    said = http.post("/tokenize", json={"model": "red", "prompt": "ab c"}).json()
    assert said["tokens"] == tokenizer("ab c")["input_ids"]
    assert (said["count"], said["token_strs"], said["max_model_len"]) == (4, ["a", "b", "Ġ", "c"], 64)
    said = http.post("/tokenize", json={"model": "red", "messages": CHAT["messages"]}).json()
    assert tokenizer.decode(said["tokens"]) == "u: hi;a: "
    _error(http.post("/tokenize", json={"model": "red"}), 400)


def test_figures_are_told_by_adapter(http):
    before = http.get("/metrics").text
    _answers(http)
    after = http.get("/metrics").text

    def value(text, name):
        found = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[0]) if found else 0

    grown = {
        'inlay_prompt_tokens_total{adapter="red"}': 9,
        'inlay_answer_tokens_total{adapter="red"}': 4,
        'inlay_requests_total{adapter="red",path="/v1/chat/completions",status="200"}': 1,
        "inlay_first_token_seconds_count": 1,
    }
    assert {name: value(after, name) - value(before, name) for name in grown} == grown
    assert value(after, "inlay_adapters_registered") == 3
    assert value(after, "inlay_cache_blocks") == 128
    assert value(after, "inlay_cache_blocks_used") == value(after, "inlay_sequences_running") == 0
    assert (http.get("/health").json()["status"], http.get("/ready").json()["status"]) == ("ok", "ready")


@pytest.fixture
def own(tiny, tmp_path):
    """A server whose adapters may be changed: (service, client, folder)."""
    shutil.copytree(tiny.adapters, tmp_path / "adapters")
    callers = {
        SHOP: access.Caller("shop", frozenset({"red", "new"})),
        ADMIN: access.Caller("admin", None, manages=True),
    }
    kept = Registry(tmp_path / "kept.json")
    setup = Setup(
        adapters={"red": tmp_path / "adapters" / "red"},
        directories=(tmp_path / "later",),
        access=access.Access(callers),
        registry=kept,
        bounds=Bounds(max_open=2, max_new_tokens=30),
    )
    (tmp_path / "later").mkdir()
    base = load(tiny.directory, dtype="float32")
    with servers.running(base, setup) as (service, address):
        headers = {"authorization": f"Bearer {ADMIN}"}
        with httpx.Client(base_url=address, headers=headers, timeout=30) as client:
            yield service, client, tmp_path


def _load(client, path, name="new", **more):
    return client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path), **more})


def test_an_adapter_is_loaded_replaced_and_unloaded_while_others_answer(own, tiny):
    _, client, place = own
    expected = {
        name: servers.alone(tiny.base, tiny.adapters / name, CHAT["messages"], max_new_tokens=4)
        for name in servers.NAMES
    }
    path = place / "later" / "x"
    shutil.copytree(tiny.adapters / "green", path)
    assert _answers(client, "red") == expected["red"]
    _error(client.post("/v1/chat/completions", json=CHAT | {"model": "new"}), 404)
    response = _load(client, path)
    assert (response.status_code, response.text) == (200, "Success: LoRA adapter 'new' added successfully.")
    assert _answers(client, "new") == expected["green"]
    assert "loaded already" in _error(_load(client, path), 400)
    shutil.rmtree(path)
    shutil.copytree(tiny.adapters / "blue", path)
    assert _load(client, path, load_inplace=True).status_code == 200
    assert _answers(client, "new") == expected["blue"]
    assert json.loads((place / "kept.json").read_text()) == {"new": {"directory": str(path), "pinned": False}}
    again = Setup(directories=(place / "later",), registry=Registry(place / "kept.json"))  # as after SIGKILL
    with serving(load(tiny.directory, dtype="float32"), again) as other:
        assert other.slots.names() == ["new", "x"]
    response = client.post("/v1/unload_lora_adapter", json={"lora_name": "new"})
    assert (response.status_code, response.text) == (200, "Success: LoRA adapter 'new' removed successfully.")
    _error(client.post("/v1/chat/completions", json=CHAT | {"model": "new"}), 404)
    _error(client.post("/v1/unload_lora_adapter", json={"lora_name": "new"}), 404)
    assert json.loads((place / "kept.json").read_text()) == {}
    assert _answers(client, "red") == expected["red"]


def test_adapters_that_can_not_be_loaded_are_refused_by_their_fault(own, tiny, tmp_path):
    _, client, place = own
    later = place / "later"
    assert "can't be loaded from there" in _error(_load(client, tiny.adapters / "green"), 400)
    assert "gone" in _error(_load(client, later / "nowhere"), 400)
    (later / "empty").mkdir()
    assert "not an adapter" in _error(_load(client, later / "empty"), 400)
    other = load(bases.directory(tmp_path / "other", seed=8), dtype="float32")
    assert "another base" in _error(_load(client, servers.save(other, later / "foreign", 1)), 400)
    shutil.copytree(tiny.adapters / "green", later / "nan")
    tensors = load_file(later / "nan" / "adapter_model.safetensors")
    broken = {name: tensor * torch.nan for name, tensor in tensors.items()}
    save_file(broken, later / "nan" / "adapter_model.safetensors", metadata={"format": "pt"})
    assert re.search("NaN|finite|not a number", _error(_load(client, later / "nan"), 400))
    (later / "pickle").mkdir()
    (later / "pickle" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (later / "pickle" / "adapter_model.bin").write_bytes(b"\x80\x04.")
    _error(_load(client, later / "pickle"), 400)
    _error(_load(client, "\0"), 400)
    assert _answers(client)


def test_files_that_change_under_a_server_are_an_error_of_its_own(own, tiny):
    service, client, place = own
    path = place / "later" / "x"
    shutil.copytree(tiny.adapters / "green", path)
    service.slots.register("new", path.resolve())
    (path / "inlay.json").write_text("{}")
    message = _error(client.post("/v1/chat/completions", json=CHAT | {"model": "new"}), 500)
    assert "were changed" in message
    assert str(path) in message  # who manages is told which
    shop = {"authorization": f"Bearer {SHOP}"}
    message = _error(client.post("/v1/chat/completions", json=CHAT | {"model": "new"}, headers=shop), 500)
    assert str(place) not in message
    assert _answers(client)


def test_what_nobody_foresaw_is_said_in_one_form_and_its_words_stay_in_the_log(http, monkeypatch, caplog):
    with monkeypatch.context() as broken:
        broken.setattr("inlay.text.template.prompt_ids", lambda *given, **how: 1 / 0)
        with caplog.at_level("INFO", "inlay.http"):
            message = _error(http.post("/v1/chat/completions", json=CHAT), 500)
            end = time.monotonic() + 10
            while not caplog.records:  # it is noted once the answer has gone
                assert time.monotonic() < end
                time.sleep(0.01)
    assert "the server failed" in message
    assert "zero" not in message
    assert "ZeroDivisionError" in caplog.records[-1].facts["error"]
    assert _answers(http)


def test_only_the_engines_thread_runs_the_model(tiny, tmp_path):
    (tmp_path / "adapters").mkdir()
    base, threads = load(tiny.directory, dtype="float32"), set()
    with servers.running(base, Setup(directories=(tmp_path / "adapters",))) as (_, address):
        base.model.register_forward_hook(lambda *given: threads.add(threading.current_thread().name))
        base.model.lm_head.register_forward_hook(lambda *given: threads.add(threading.current_thread().name))
        shutil.copytree(tiny.adapters / "green", tmp_path / "adapters" / "green")
        load_green = {"lora_name": "new", "lora_path": str(tmp_path / "adapters" / "green")}
        assert httpx.post(f"{address}/v1/load_lora_adapter", json=load_green).status_code == 200
        for model in ("new", "tiny"):
            response = httpx.post(f"{address}/v1/chat/completions", json=CHAT | {"model": model})
            assert response.status_code == 200
    assert threads == {"inlay-engine"}


def test_a_base_that_changes_under_a_server_answers_no_more(tiny, tmp_path):
    shutil.copytree(tiny.directory, tmp_path / "tiny")
    with servers.running(load(tmp_path / "tiny", dtype="float32")) as (_, address):
        with httpx.Client(base_url=address) as http:
            assert _answers(http, "tiny")
            (file,) = (tmp_path / "tiny").glob("*.safetensors")
            with file.open("r+b") as opened:
                opened.seek(-4, 2)
                opened.write(b"\x00\x00\x80\x3f")
            message = _error(http.post("/v1/chat/completions", json=CHAT | {"model": "tiny"}), 500)
            assert "files of the base changed" in message


@pytest.mark.slow  # a template has two seconds of the processor
def test_a_template_that_loops_costs_its_own_request(tmp_path):
    loops = "{% if messages[0].content == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
    directory, adapters = servers.made(tmp_path, ["red"], template=loops + servers.TEMPLATE)
    with servers.running(load(directory, dtype="float32"), Setup(directories=(adapters,))) as (_, address):
        with httpx.Client(base_url=address, timeout=60) as http:
            said = [{"role": "user", "content": "loop"}]
            assert _error(http.post("/v1/chat/completions", json=CHAT | {"messages": said}), 500)
            assert _answers(http)


def test_a_key_sees_its_adapters_and_no_others(own):
    _, client, _ = own
    shop = {"authorization": f"Bearer {SHOP}"}
    assert [model["id"] for model in client.get("/v1/models", headers=shop).json()["data"]] == ["red", "tiny:red"]
    assert client.post("/v1/chat/completions", json=CHAT, headers=shop).status_code == 200
    unseen = client.post("/v1/chat/completions", json=CHAT | {"model": "tiny"}, headers=shop)
    unknown = client.post("/v1/chat/completions", json=CHAT | {"model": "tinx"}, headers=shop)
    assert _error(unseen, 404) == _error(unknown, 404).replace("tinx", "tiny")
    for path in ("load", "unload"):
        body = {"lora_name": "red", **({"lora_path": "/"} if path == "load" else {})}
        _error(client.post(f"/v1/{path}_lora_adapter", json=body, headers=shop), 403)
    for wrong in ("", "Bearer", "Bearer x", f"Basic {SHOP}", f"Bearer {SHOP}x", "Bearer é"):
        response = client.get("/v1/models", headers={"authorization": wrong.encode()})
        assert "key is not known" in _error(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
    assert client.get("/health", headers={"authorization": ""}).status_code == 200
    _error(client.get("/metrics", headers={"authorization": ""}), 401)
    assert client.get("/v1/models", headers={"host": "api.example"}).status_code == 200  # a key is enough


def test_a_server_that_is_full_says_so(own, monkeypatch):
    service, client, _ = own
    assert "too many answers" in _error(client.post("/v1/chat/completions", json=CHAT | {"n": 3}), 400)
    step = service.worker.engine.step
    monkeypatch.setattr(service.worker.engine, "step", lambda: (time.sleep(0.02), step())[1])
    long = CHAT | {"n": 2, "stream": True, "max_tokens": 30, "ignore_eos": True}
    with client.stream("POST", "/v1/chat/completions", json=long) as stream:
        lines = stream.iter_lines()
        next(lines)
        response = client.post("/v1/chat/completions", json=CHAT)
        assert "busy" in _error(response, 503)
        assert response.headers["retry-after"] == "1"
    deadline = time.monotonic() + 20
    while service.worker.num_open and time.monotonic() < deadline:
        time.sleep(0.01)
    _error(client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 31}), 400)
    assert _answers(client)


KEYS = [
    {"name": "shop", "key": SHOP, "adapters": ["red"]},
    {"name": "me", "key": ADMIN, "adapters": "all", "manage": True},
]


def test_keys_are_read_from_a_file(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(KEYS))
    found = access.read(path)
    shop, me = found.caller(f"bearer {SHOP}"), found.caller(f"Bearer {ADMIN}")
    assert (shop.name, shop.sees("red"), shop.sees("blue"), shop.sees(None), shop.manages) == (
        "shop",
        True,
        False,
        False,
        False,
    )
    assert (me.sees("blue"), me.sees(None), me.manages) == (True, True, True)
    assert found.caller(None) is found.caller("Bearer ") is None
    assert access.Access().caller(None).manages


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"name": "x", "key": "short", "adapters": []},
        {"name": "x", "key": SHOP},
        {"name": "x", "key": SHOP, "adapters": "some"},
        {"name": "x", "key": SHOP, "adapters": [1]},
        {"name": 1, "key": SHOP, "adapters": []},
        {"name": "x", "key": SHOP, "adapters": [], "manage": "yes"},
        {"name": "x", "key": SHOP, "adapters": [], "admin": True},
        {"name": "x", "key": f"{SHOP} {SHOP}", "adapters": []},
        KEYS[1],
    ],
)
def test_keys_that_are_none_are_refused_and_not_shown(tmp_path, entry):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([KEYS[1], entry]))
    with pytest.raises(FormatError, match="entry 1") as error:
        access.read(path)
    assert SHOP not in str(error.value)
    for text in ("{", "[]", "{}", "3"):
        path.write_text(text)
        with pytest.raises(FormatError):
            access.read(path)
    with pytest.raises(UnknownNameError):
        access.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("192.168.0.7", False),
        ("::", False),
        ("example.com", False),
    ],
)
def test_other_machines_are_listened_to_with_keys_alone(host, is_allowed):
    check_host(host, access.Access({SHOP: access.Caller("shop")}))
    if is_allowed:
        check_host(host, access.Access())
    else:
        with pytest.raises(ConfigError, match="everybody who can connect"):
            check_host(host, access.Access())
