"""`inlay completion`: what bash and zsh complete command lines with, asked as the shell asks for it."""

import shutil
import subprocess

import pytest

from inlay import cli, methods
from inlay.options import completion
from tests.cli.test_help import COMPUTES, imported
from tests.support.command import run

BASH = shutil.which("bash")
ASK = """
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_inlay inlay "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
[ ${#COMPREPLY[@]} -eq 0 ] || printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def offered():
    """What is offered for a command line that ends where the pointer is."""
    text = completion.script("bash", cli.commands())

    def ask(*words):
        command = [BASH, "--norc", "-c", f"{text}\n{ASK}", "bash", "inlay", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    return ask


needs_bash = pytest.mark.skipif(BASH is None, reason="bash is not installed")


@needs_bash
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tr"], ["train"]),
        (["train", "--learn"], ["--learning-rate"]),
        (["train", "m", "rows.jsonl", "--learn"], ["--learning-rate"]),
        (["train", "m", "--method", "lo"], ["lora", "loha", "lokr"]),
        (["train", "--task", "emb"], ["embedding"]),
        (["train", "m", "--gamm"], []),
        (["train", "m", "--loraplus"], ["--loraplus-lr-ratio"]),
        (["store", "a"], ["add"]),
        (["store", "add", "mine", "--ta"], ["--tag"]),
        (["store", "add", "a"], []),
        (["runs", "c"], ["compare"]),
        (["runs", "--la"], ["--last"]),
        (["train", "r"], []),
        (["nothing", "--x"], []),
        (["compl"], ["completion"]),
    ],
)
def test_bash_is_offered_what_fits(offered, words, found):
    assert sorted(offered(*words)) == sorted(found), "nothing: bash offers files"


@needs_bash
def test_bash_is_offered_every_command_and_every_method(offered):
    assert {*offered("")} == {*cli.commands(), "help", "completion", "version"}
    assert {*offered("train", "m", "--method", "")} == {*methods.names()}


def test_both_shells_have_one_script(capsys):
    bash, zsh = (run(capsys, "completion", shell) for shell in ("bash", "zsh"))
    assert (bash[0], bash[2]) == (0, "")
    assert zsh[1] == "autoload -U +X bashcompinit && bashcompinit\n" + bash[1]


def test_a_shell_that_is_not_known_is_told_how_to_ask(capsys):
    assert run(capsys, "completion", "--help") == run(capsys, "help", "completion") == (0, completion.ABOUT + "\n", "")
    for wrong in ([], ["tcsh"], ["bash", "zsh"]):
        assert run(capsys, "completion", *wrong) == (2, "", completion.ABOUT + "\n")


def test_nothing_is_imported_that_computes():
    assert not {*COMPUTES} & {*imported(["completion", "bash"])}
