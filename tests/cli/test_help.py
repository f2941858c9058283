"""Help and errors of usage: what they say, and that they come at once, because nothing that computes is imported for them."""

import re
import shlex
import subprocess
import sys

import pytest

import inlay
from inlay import cli
from inlay.options import flag, help, peers, usage
from inlay.options.flag import Flag
from tests.support.command import run

COMPUTES = ("torch", "transformers", "numpy", "rich", "jaxtyping", "safetensors")
"""What a command needs that computes, and nothing else does."""

MOST_MODULES = 250
"""As many modules may be imported in all, those of Python's start and of entry points among them."""

HELP = [[name, "--help"] for name in cli.commands()] + [
    [name, verb, "--help"] for name in cli.commands() for verb, _ in (flag.stored("commands", name) or inlay).verbs
]
MORE = [
    [], ["--help"], ["-h"], ["help"], ["help", "train"], ["help", "store", "add"], ["version"], ["--version"], ["-V"],
    ["train", "--method", "oft", "--help"], ["help", "nothing"], ["store"],
]  # fmt: skip
MODEL, DATA = (f"{name} without a flag: inlay train MODEL DATA --output PATH [flags]" for name in ("MODEL", "DATA"))
WRONG = {
    "train": ("MODEL and DATA and --output must be given", "inlay train MODEL DATA --output PATH [flags]"),
    "trian m d": ("there is no command 'trian'", "inlay train"),
    "train m d": ("--output must be given", "inlay train MODEL DATA --output PATH [flags]"),
    "train m d --ouput x": ("there is no flag --ouput", "--output PATH"),
    "train m d --output": ("--output lacks its value", "--output PATH"),
    "train m d --output x --no-such-thing": ("there is no flag --no-such-thing", "inlay train --help"),
    "train m d e --output x": ("there is more than the command takes", "inlay train MODEL DATA --output PATH [flags]"),
    "train m d --output x --task tagging": ("--task takes no such value", "--task causal-lm"),
    "train m d --output x --method dara": ("--method takes no such value", "--method dora"),
    "train m d --output x --initializer pizza": ("--initializer takes no such value", "--initializer pissa"),
    "train m d --output x --train-on everything": ("--train-on takes no such value", "--train-on completions"),
    "train m d --output x --epochs many": ("--epochs takes a finite number", "--epochs 1"),
    "train m d --output x --max-steps 1.5": ("--max-steps takes a whole number", "--max-steps 4"),
    "train m d --output x --json=yes": ("--json takes no value", "--json"),
    "train m d --output x --rank-pattern q_proj": ("--rank-pattern takes pairs", "--rank-pattern NAME INT"),
    "train m d --output x --rank-pattern q_proj x": ("--rank-pattern takes a whole number", "--rank-pattern 4"),
    "train m d --output x --method dora --loraplus-lr-ratio 4": (
        "there is no flag --loraplus-lr-ratio",
        "--method lora has --loraplus-lr-ratio",
    ),
    "train --resume x --epochs 2": (
        "--resume stands alone: what else there is to say was said before",
        "--resume PATH",
    ),
    "merge m a --output x --batch-size 4": (
        "there is no flag --batch-size",
        "--batch-size is of inlay plan, train, compare",
    ),
    "merge m a --output x --lr 4": ("there is no flag --lr", "--learning-rate is of inlay plan, train, compare"),
    "compare m d --output x --methods lora,dara": ("--methods takes no such value", "--methods dora"),
    "export m a --output x --for pefft": ("--for takes no such value", "--for peft"),
    "train --model m --dataset d": ("some of this is not as the command takes it", f"{MODEL}; {DATA}"),
    "chat --base_model m": ("there is no flag --base_model", "MODEL without a flag: inlay chat MODEL [flags]"),
    "diff one": ("ADAPTER ADAPTER must be given", "inlay diff ADAPTER ADAPTER [flags]"),
    "combine --output x": ("ADAPTER ... must be given", "inlay combine ADAPTER ... --output PATH [flags]"),
    "quantize m --output x --scheme nf5": ("--scheme takes no such value", "--scheme nf4"),
    "runs show first": ("ID takes a whole number", "ID 4"),
    "store": ("inlay store is to do one of these", "inlay store --help"),
    "store ad x": ("inlay store does no such thing", "inlay store add"),
    "serve m --port web": ("--port takes a whole number", "--port 8000"),
}
"""What is typed wrong -> the first line of the error, and its hint."""


def imported(*commands):
    """All that is imported where these commands are given, one after the other, in one process."""
    script = "import sys; from inlay import cli\n" + "\n".join(f"cli.main({arguments!r})" for arguments in commands)
    script += "\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()[-1].split()


def test_no_help_imports_what_computes():
    found = imported(*HELP, *MORE)
    assert not {*COMPUTES} & {*found}
    assert len(found) < MOST_MODULES


def test_no_error_of_usage_imports_what_computes():
    found = imported(
        *map(shlex.split, WRONG), *(["train", f"--{name}", "4"] for name in {**peers.OURS, **peers.ARGUMENTS})
    )
    assert not {*COMPUTES} & {*found}
    assert len(found) < MOST_MODULES


def test_a_command_that_computes_would_be_seen():
    assert {"torch", "rich"} <= {*imported(["inspect", "nowhere"])}


@pytest.mark.parametrize("typed", WRONG)
def test_an_error_of_usage_says_what_is_wrong_and_what_to_type(capsys, typed):
    status, out, err = run(capsys, *shlex.split(typed))
    assert (status, out) == (2, "")
    first, hint = WRONG[typed]
    assert err.splitlines()[0] == f"error: {first}"
    assert err.splitlines()[-1] == f"  hint:  {hint}"


def test_all_that_is_wrong_is_said_at_once(capsys):
    _, _, err = run(capsys, "train", "m", "d", "--output", "x", "--epochs", "many", "--task", "tagging")
    assert err.count("  found: ") == 2
    assert "--task causal-lm" in err
    assert "--epochs 1" in err


@pytest.mark.parametrize("name", ["lr", "lora_r", "num-train-epochs", "per_device_train_batch_size", "load-in-4bit"])
def test_names_of_other_tools_are_answered(capsys, name):
    status, _, err = run(capsys, "train", "m", "d", "--output", "x", f"--{name}", "4")
    assert status == 2
    assert err == f"error: there is no flag --{name}\n  hint:  {peers.ours(name)}\n"


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_fits_a_terminal_and_ends_with_two_examples(capsys, monkeypatch, arguments):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = run(capsys, *arguments)
    assert (status, err) == (0, "")
    assert out == run(capsys, "help", *arguments[:-1])[1]
    assert max(map(len, out.splitlines())) <= 80
    assert len(re.findall("^  (?! ).*inlay ", out.partition("\nexamples\n")[2], re.MULTILINE)) == 2
    assert "None" not in out


def test_help_shows_every_flag_once(capsys, monkeypatch):
    for arguments in HELP:
        described = flag.stored("commands", arguments[0])
        if len(arguments) == 3:
            described = dict(described.verbs)[arguments[1]]
        _, out, _ = run(capsys, *arguments)
        for own in (own for own in described.flags if not own.is_positional):
            start = rf"(-\w, )?{re.escape(own.typed)}( |$)"
            assert len(re.findall(rf"^  {start}", out, re.MULTILINE)) == 1, (arguments, own.name)


def test_help_of_a_method_shows_its_flags(capsys):
    _, out, _ = run(capsys, "train", "--method", "oft", "--help")
    assert "flags of the method oft: y = W R^T x + b" in out
    assert "--no-use-cayley-neumann" in out
    assert "--lora-alpha" not in out


EXAMPLES = [
    line.partition("  #")[0].strip()
    for line in help.EXAMPLES.read_text("utf-8").splitlines()
    if line.startswith(" ") and "inlay " in line
]


@pytest.mark.parametrize("typed", EXAMPLES)
def test_every_example_is_a_command(typed):
    typed = re.sub(r"^(echo .* \| |ls \$\()", "", typed).rstrip(")")
    program, name, *arguments = shlex.split(re.sub(r" > .*", "", typed))
    assert program == "inlay"
    assert cli.read(name, arguments) is not None


def test_every_example_is_of_a_command():
    lines = help.EXAMPLES.read_text("utf-8").splitlines()
    titles = [line for line in lines if not line.startswith(" ")]
    assert titles == [*dict.fromkeys(titles)]
    assert {*titles} == {" ".join(arguments[:-1]) for arguments in HELP}


def test_version_and_help_are_words_too(capsys):
    for word in ("version", "--version", "-V"):
        assert run(capsys, word) == (0, f"inlay {inlay.__version__}\n", "")
    assert run(capsys, "help") == run(capsys, "--help")
    assert run(capsys, "help", "trian")[0] == 2


ONE, MANY = Flag("one", "", is_positional=True, metavar="ONE"), Flag("many", "", num_values=0)
NUMBER, AGAIN = Flag("a_number", "", kind=flag.NUMBER), Flag("again", "", repeats=True)
OFF, TURN = Flag("use_it", "", kind=flag.OFF), Flag("turn", "", kind=flag.SWITCH, short="-t")


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("--many a b --a-number=-1.5 x", {"many": ["a", "b"], "a_number": -1.5, "one": "x"}),
        ("--a_number -1 -- --many", {"a_number": -1.0, "one": "--many"}),
        ("--again a --again=-b --no-use-it -t", {"again": ["a", "-b"], "use_it": False, "turn": True}),
        ("'- one' --again '--- two'", {"one": "- one", "again": ["--- two"]}),
        ("--again= -", {"again": [""], "one": "-"}),
        ("--many --turn", {"many": [], "turn": True}),
    ],
)
def test_how_a_command_line_is_read(typed, values):
    flags = [ONE, MANY, NUMBER, AGAIN, OFF, TURN]
    assert usage.read(flags, shlex.split(typed), {}, str, "") == values


def test_what_stands_alone_may_have_what_it_says(capsys):
    _, _, err = run(capsys, "train", "--resume", "nowhere", "--time", "1h", "--json")
    assert "stands alone" not in err
