"""Nothing leaves the machine in commands whose model, adapter and data are local: watched by an audit hook in their process."""

import json
import os
import subprocess
import sys

import pytest

from tests.support import bases
from tests.support import tasks as support

WATCHED = """
import io, json, socket, sys
seen, statuses = [[]], []
def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        seen[-1].append([event, str(arguments[0])])
        raise OSError("no network here")
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        if arguments[0].family in (socket.AF_INET, socket.AF_INET6):
            seen[-1].append([event, str(arguments[1:])])
            raise OSError("no network here")
sys.addaudithook(watch)
from inlay.cli import main
for arguments in json.loads(sys.argv[1]):
    seen.append([])
    sys.stdin = io.StringIO("say 3\\n")
    try:
        statuses.append(main(arguments))
    except SystemExit as error:
        statuses.append(error.code)
print("\\n" + json.dumps([statuses, seen]))
"""


def watched(*commands):
    """(the statuses of these commands, what imports and then each of them asked the network for), in a process that is not told
    to stay offline."""
    own = {key: value for key, value in os.environ.items() if "OFFLINE" not in key}
    arguments = json.dumps([[str(part) for part in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, arguments], env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    support.directory(place / "base", "llama", support.WIDE)  # widths that can be quantised
    bases.jsonl(place / "rows.jsonl", bases.rows(24))
    support.directory(place / "bert", "bert")
    bases.jsonl(place / "labelled.jsonl", support.rows("sequence-classification", 24))
    return place


@pytest.fixture(scope="module")
def answers(place):
    """The answer of a process to commands, of which only the last one's model is not local."""
    base, rows, mine, short = place / "base", place / "rows.jsonl", place / "mine", ["--max-new-tokens", 2]
    training = ["--max-steps", 2, "--r", 2]
    sorter = ["--task", "sequence-classification"]
    return watched(
        ["train", base, rows, "--output", mine, *training],
        ["generate", base, "--adapter", mine, "--prompt", "say 3", *short],
        ["chat", base, "--adapter", mine, *short],
        ["eval", base, rows, "--adapter", mine, "--scores", "bleu", "--rows", 2, *short],
        ["merge", base, mine, "--output", place / "merged"],
        ["inspect", mine],
        ["plan", base],
        ["quantize", base, "--output", place / "small"],
        ["train", place / "bert", place / "labelled.jsonl", "--output", place / "sorter", *sorter, *training],
        ["predict", place / "bert", place / "labelled.jsonl", "--adapter", place / "sorter"],
        ["inspect", "nobody/nothing-of-this-name"],
    )


def test_local_commands_ask_the_network_for_nothing(answers):
    statuses, seen = answers
    assert seen[:-1] == [[]] * 11
    assert statuses[:-1] == [0] * 10


def test_a_name_on_the_hub_is_seen_to_ask(answers):
    statuses, seen = answers
    assert seen[-1]
    assert statuses[-1] == 1
