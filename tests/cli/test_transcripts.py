"""What README and guides show of a training has the lines that a training prints now, in their order; and every command of a
page runs, in the order of the page, on a base and rows of these names that are small. Some are only read as the command reads
them: `READ_ONLY` says why."""

import glob
import io
import re
import shutil
from pathlib import Path

import pytest

import inlay
from inlay import cli
from inlay.cli import demo
from inlay.cli.demo import BASE
from inlay.hub import files
from inlay.runs import database
from inlay.training import saves
from tests.support import bases, gguf_models, keys, models, on_pages, runs, tasks
from tests.support.command import run

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/start/quickstart.md", "docs/guides/fine-tune.md", "docs/guides/quantize.md")
DEPENDS = {"note", "check", "task", "scores"}
"""Lines that some runs have."""


def labels(lines):
    """What stands in the first ten columns, without what continues a line, each once."""
    return [*dict.fromkeys(line[:10].strip() for line in lines if line[:1].isalpha())]


def shown(page):
    """The lines of each training that a page shows."""
    blocks = re.findall(
        r"\n\$ inlay train (?![^\n]*--show-tokens)[^\n]*\n(base .*?)\n(?:```|\$ )",
        (ROOT / page).read_text("utf-8"),
        re.DOTALL,
    )
    return [block.splitlines() for block in blocks]


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    made = tmp_path_factory.mktemp("printed")
    return made, ["train", BASE, bases.jsonl(made / "rows.jsonl", bases.rows(60)), "--max-steps", 2, "--output"]


def test_trainings_are_shown_as_they_are_printed(printed, capsys):
    made, command = printed
    status, _, err = run(capsys, *command, made / "mine")
    assert status == 0, err
    wanted = [label for label in labels(err.splitlines()) if label not in DEPENDS]
    found = {page: [labels(lines) for lines in shown(page)] for page in PAGES}
    assert all(found.values()), "each page shows one"
    assert {
        page: [[label for label in one if label not in DEPENDS] for one in each] for page, each in found.items()
    } == {page: [wanted] * len(each) for page, each in found.items()}


def test_a_line_that_is_missing_would_be_seen():
    lines = ["base      a", "          b", "steps     1", "needs     1 GB", "..."]
    assert labels(lines) == ["base", "steps", "needs"]
    assert labels(lines[:3]) != labels(lines)


READ_ONLY = {
    "serve": "it listens until it is told to end: tests/serve starts it",
    "push": "it needs a registry: tests/cli/test_share.py has one",
    "pull": "it needs a registry: tests/cli/test_share.py has one",
    "compare": "it starts a process for each method: tests/attacks/test_lost_work.py compares",
    "torchrun": "it starts several processes: tests/laws/test_world.py does",
}
"""A command, or what starts it -> why it is not run here."""

ELSEWHERE = {"docs/guides/extend.md": "tests/architecture/test_extend.py has the package that its commands need"}
"""Pages whose commands another test runs."""

FEWER = {
    "train": ["--max-steps", "1", "--batch-size", "2"],
    "generate": ["--max-new-tokens", "2"],
    "demo": ["--steps", "1"],
}
"""What is added to a command, so that it takes less: what is said last counts."""

COMMANDS = {page: on_pages.commands(path.read_text("utf-8")) for page, path in on_pages.PAGES.items()}
PAGES_THAT_RUN = [page for page, found in COMMANDS.items() if found and page not in ELSEWHERE]


def reason(command):
    """Why a command is not run here, if it is not."""
    return READ_ONLY.get("torchrun" if command.before.startswith("torchrun ") else command.arguments[0])


def in_order(commands, has):
    """The commands of a page; one that needs what a later one makes comes after all others."""
    now, later = [], []
    for i, command in enumerate(commands):
        made = {output(other) for other in commands[i + 1 :]} - {None}
        waits = any(word in made - {output(command)} and not has(word) for word in command.arguments)
        (later if waits else now).append(command)
    return [*now, *later]


def output(command):
    """What a command is to write."""
    words = command.arguments
    return words[words.index("--output") + 1] if "--output" in words else None


SHIPPED = ("demo_base", "HuggingFaceTB/SmolLM2-135M-Instruct")
"""What the base that ships with the package is called on pages."""

SMALLER = ("MODEL", "BASE", "Qwen/Qwen3-0.6B", "hf", "qwen", "stories260K")
"""What other bases are called there."""

DATA = dict.fromkeys(
    ("rows", "more", "a", "b", "customers/one", "customers/two", "owner/dataset/train", "e2e/train-1"), 24
)
DATA |= dict.fromkeys(("held", "test", "e2e/valid", "e2e/test"), 4)
"""What rows of prompts and completions are called on pages, without `.jsonl` -> how many there are."""

ADAPTERS = {"tell": "demo/tell", "tell-20": "demo/tell", "tell-60": "demo/ask"} | dict.fromkeys(
    ("ADAPTER", "restaurants", "owner/adapter"), "mine"
)
"""What adapters are called on pages -> what they are copies of; `mine` is on a smaller base."""

OF_TASKS = {
    "area": "sequence-classification",
    "names": "token-classification",
    "answers": "seq2seq",
    "pairs": "embedding",
}
"""What the page of the tasks calls their rows."""


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A folder with bases, rows, adapters and what `inlay demo --output demo` leaves, under the names that pages have for them."""
    place = tmp_path_factory.mktemp("stock")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        models.model("llama", sizes={"max_position_embeddings": 128, "num_hidden_layers": 1}).save_pretrained("smaller")
        bases.tokenizer().save_pretrained("smaller")
        bases.directory("other-base", seed=5)
        for target, names in {BASE: SHIPPED, place / "smaller": SMALLER, place / "other-base": ["other"]}.items():
            for name in names:
                Path(name).parent.mkdir(exist_ok=True)
                Path(name).symlink_to(target)
        for name, number in DATA.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            bases.jsonl(f"{name}.jsonl", bases.rows(number, seed=sum(map(ord, name))))
        Path("rows.csv").write_text("prompt,completion\n" + "".join(f"say {i},it is {i}\n" for i in range(24)), "utf-8")
        patch.setattr(demo, "NUM_ROWS", 40)
        patch.setattr(demo, "NUM_HELD_OUT", 4)
        for words in ("demo --output demo", "train MODEL rows.jsonl --output mine"):
            assert cli.main([*words.split(), *FEWER[words.split()[0]]]) == 0
        for name, source in ADAPTERS.items():
            shutil.copytree(source, name)
    return place


def of_gguf():
    """A base in a GGUF file, and an adapter that was trained on it."""
    gguf_models.write("model.gguf", gguf_models.model("llama", False))


def of_methods():
    """An adapter of the kind that AdapterHub's library reads."""
    shutil.rmtree("mine")
    how = inlay.Bottleneck(placement="houlsby")
    inlay.train(inlay.load("BASE"), "rows.jsonl", method=how, output="mine", max_steps=1, progress=False)


def of_resume():
    """A run that was ended between two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saves.Saves, "offer", killer(saves.Saves.offer))
        with pytest.raises(SystemExit):
            cli.main(["train", "MODEL", "rows.jsonl", "--output", "DIR", "--max-steps", "2"])


def killer(offer):
    """In place of the process: what can't be caught ends it after the first state."""

    def offered(self, state, *, now=False):
        offer(self, state, now=True)
        raise SystemExit(9)

    return offered


def of_runs():
    """A record of as many runs as the page speaks of."""
    for number in range(15):
        database.Database(database.place()).put(runs.run(steps=20 + number))


def of_share():
    """An adapter in the store, and a key."""
    cli.main(["store", "add", "tell", "--tag", "tell@1"])
    keys.pair(Path(), "team")


def of_tasks():
    """Bases and rows for each task; `demo` is what the page calls its base."""
    Path("demo").rename("made")
    Path("demo").symlink_to("smaller")
    tasks.directory("t5-random", "t5")
    for name, task in OF_TASKS.items():
        for split, number in {"train": 24, "choosing": 6, "test": 6}.items():
            bases.jsonl(f"{name}-{split}.jsonl", tasks.rows(task, number))
    bases.jsonl("new.jsonl", tasks.rows("sequence-classification", 3))


def typed(command):
    """The arguments of a command as its shell hands them over, with what makes it shorter; a digest is that of what is there."""
    words = []
    for word in command.arguments:
        word = re.sub(r"^sha256:\w+$", lambda _: f"sha256:{files.digest_of(Path('tell-60'))}", word)
        words += sorted(glob.glob(word)) or [word] if re.search(r"\*\.", word) else [word]
    words += FEWER.get(words[0], []) if "--resume" not in words else []
    return words + ["--force"] * (
        words[0] == "merge" and "--quantize" in words
    )  # an adapter of one step does not survive it


@pytest.mark.parametrize("page", PAGES_THAT_RUN)
def test_the_commands_of_a_page_run(page, stock, tmp_path, monkeypatch, capsys):
    shutil.copytree(stock, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("INLAY_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("INLAY_RUNS", str(tmp_path / "runs.sqlite"))
    globals().get(f"of_{Path(page).stem}", lambda: None)()
    for command in in_order(COMMANDS[page], lambda word: Path(word).exists()):
        made = output(command)
        if reason(command):
            assert cli.read(command.arguments[0], command.arguments[1:]) is not None
            continue
        if command.arguments == ["demo", "--output", "demo"]:
            continue  # `stock` has run it
        if made and Path(made).exists() and command.arguments.count(made) == 1:
            shutil.rmtree(made)
        given = re.search(r"echo '(.*)' \|", command.before)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{given[1]}\n".encode() if given else b"")))
        status, _, err = run(capsys, *typed(command))
        found = re.findall("^error: (.*)", err, re.MULTILINE)
        assert (bool(status), found[:1]) == (bool(command.error), [command.error] if command.error else []), err


def test_what_is_only_read_is_on_a_page():
    """A reason that has no command is out of date, and so is a page that has none."""
    found = {reason(command) for page in PAGES_THAT_RUN for command in COMMANDS[page]}
    assert found == {None, *READ_ONLY.values()}
    assert all(COMMANDS[page] for page in ELSEWHERE)
    assert {f"of_{Path(page).stem}" for page in PAGES_THAT_RUN} >= {
        name for name in globals() if name.startswith("of_")
    }


PLANTED = """
    ```bash
    X=1 inlay train M \\
        rows.jsonl --output one   # a remark
    ```

```
$ echo 'a b' | inlay predict M - > lines
error: no
try it    inlay chat M
see       inlay runs, which is what was printed
```
```python
import inlay
```
````console
pip install inlay
# inlay demo
eval "$(inlay completion bash)"
inlay runs && inlay store list | head
error: see it
hint:  inlay plan M
````
"""


def test_the_commands_of_every_block_are_found():
    found = on_pages.commands(PLANTED)
    assert [" ".join(command.arguments) for command in found] == [
        "train M rows.jsonl --output one", "predict M -", "chat M", "completion bash", "runs", "store list",
    ]  # fmt: skip
    assert [command.error for command in found] == ["", "no", "", "", "", "see it"]
    assert [command.before for command in found] == ["X=1 ", "echo 'a b' | ", "", 'eval "$(', "", "inlay runs && "]


def test_a_command_comes_after_what_it_needs():
    page = "```\ninlay predict M rows --adapter a\ninlay train M rows --output a\ninlay eval M rows --adapter a\n```"
    commands = on_pages.commands(page)
    names = lambda has: [command.arguments[0] for command in in_order(commands, has)]  # noqa: E731
    assert names(lambda word: False) == ["train", "eval", "predict"]
    assert names(lambda word: True) == ["predict", "train", "eval"]
