"""What other packages bring: a broken or clashing one is refused in words where it is asked for, and disturbs nothing else."""

import json
import subprocess

import pytest

from tests.support import forks, packages

METHOD = '''"""A method."""

import dataclasses

from inlay.methods.contract import Method
from inlay.methods.hooks import TrainsOwn


@dataclasses.dataclass(frozen=True, kw_only=True)
class {cls}(Method, TrainsOwn):
    """Every bias."""

    learning_rate_scale = 3.0

    def trains(self, own):
        return own.name == "bias"

    def describe(self):
        return "every bias"
'''

LOUD = "import sys\nsys.imported.append(__name__)\n"

ASK = """
import json
from inlay import methods, quant, tasks, initializers, formats
from inlay.errors import InlayError
rooms = dict(methods=methods, schemes=quant, tasks=tasks, initializers=initializers, formats=formats)
for line in sys.stdin:
    room, name = json.loads(line)
    sys.imported = []
    try:
        answer = str(rooms[room].find(name) if name else rooms[room].names())
    except InlayError as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps([answer, sys.imported]))
"""


BROKEN = {
    "gone": ("import a_package_that_is_gone", "ModuleNotFoundError: No module named 'a_package_that_is_gone'"),
    "unparsed": ("def broken(:", "SyntaxError"),
    "leaves": ("raise SystemExit(3)", "SystemExit: 3"),
    "empty": ("x = 1", "it does not define one class of the kind Method"),
    "both": (
        METHOD.format(cls="Both") + METHOD.format(cls="Other"),
        "gold.both.Other: the file both.py has another name",
    ),
    "borrowed": ("from inlay.methods.lora import Lora as Borrowed", "none in gold.borrowed"),
}
"""What is wrong with a module, and what is then said."""

VALUES = {"an_object": "gold.an_object:AnObject", "another": "gold.nuggets", "standard": "os"}
"""Entry points that name something else than a module that is called as they are."""

OURS = {
    "inlay.methods": "lora",
    "inlay.schemes": "nf4",
    "inlay.tasks": "token-classification",
    "inlay.initializers": "pissa",
    "inlay.formats": "peft",
}
WHAT = dict(zip(OURS, ("adapter method", "quantisation scheme", "task", "initializer", "adapter format"), strict=True))
TASK = "import dataclasses\nfrom inlay.tasks.causal_lm import SPEC as OURS\nSPEC = dataclasses.replace(OURS, name={!r})"
COPY = "from inlay.quant import nf4\nclass Copy(nf4.Nf4):\n    '''NF4.'''\n"


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """What asks the rooms of a process with two such packages on its path: (room, name; none: the names) -> the answer, or
    what it wrote to stderr where nothing is asked."""
    place = tmp_path_factory.mktemp("site")
    modules = {f"gold.{name}": LOUD + code for name, (code, _) in BROKEN.items()}
    modules |= {f"gold.{name}": LOUD + METHOD.format(cls=name.capitalize()) for name in ("nuggets", "dust")}
    modules |= {f"gold.{name.replace('-', '_')}": LOUD for name in (*OURS.values(), "it")} | {"gold.copy": COPY}
    modules |= {"gold.of_old": TASK.format("of-old"), "gold.wrong": TASK.format("right"), "gold.no_spec": "SPEC = 3"}
    points = {group: {name: f"gold.{name.replace('-', '_')}", "it": "gold.it"} for group, name in OURS.items()}
    points["inlay.methods"] |= {name: f"gold.{name}" for name in (*BROKEN, "nuggets", "dust")} | VALUES
    points["inlay.tasks"] |= {"of-old": "gold.of_old", "wrong": "gold.wrong", "no-spec": "gold.no_spec"}
    points["inlay.schemes"] |= {"copy": "gold.copy"}
    packages.write(place, "gold", "1.2", modules, points)
    packages.write(place, "lead", "0.3", {"lead.it": LOUD}, {group: {"it": "lead.it"} for group in OURS})
    (place / "evil.py").write_text(LOUD)
    begin = f"sys.path.insert(0, {str(place)!r})\nsys.stdout.reconfigure(line_buffering=True)\n"
    process = forks.Process(forks.ANEW + begin + ASK, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def answer(*question):
        print(json.dumps(question), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    yield answer
    process.communicate()


def test_a_method_is_found_and_imported_only_when_it_is_asked_for(ask):
    names = ask("methods", "")[0]
    assert "'dust'" in names
    assert "'lora'" in names
    assert "Dora" in ask("methods", "dora")[0]
    answer, imported = ask("methods", "nuggets")
    assert "gold.nuggets.Nuggets" in answer
    assert imported == ["gold.nuggets"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_one_is_refused_in_words_and_others_go_on(ask, name):
    answer, _ = ask("methods", name)
    assert answer.startswith(f"CompatibilityError: the adapter method {name} can't be used as gold brings it\n")
    assert f"found: gold==1.2, gold.{name}: " in answer
    assert BROKEN[name][1] in answer
    assert "hint:  pip install --upgrade gold, or pip uninstall gold" in answer
    assert "Bitfit" in ask("methods", "bitfit")[0]


@pytest.mark.parametrize("name", VALUES)
def test_an_entry_point_names_a_module_that_is_called_as_it_is(ask, name):
    answer, imported = ask("methods", name)
    assert f"inlay.methods names a module, whose last part is {name}; it is {VALUES[name]}" in answer
    assert imported == []


@pytest.mark.parametrize("group", OURS)
def test_a_name_that_is_ours_or_that_two_packages_bring_is_refused(ask, group):
    room, ours, what = group.partition(".")[2], OURS[group], WHAT[group]
    assert ask(room, ours)[0].splitlines()[:3] == [
        f"CompatibilityError: several packages bring the {what} {ours}",
        "  found: inlay itself",
        f"  found: gold==1.2: gold.{ours.replace('-', '_')}",
    ]
    answer, imported = ask(room, "it")
    assert answer.splitlines() == [
        f"CompatibilityError: several packages bring the {what} it",
        "  found: gold==1.2: gold.it",
        "  found: lead==0.3: lead.it",
        "  hint:  pip uninstall lead",
    ]
    assert imported == []
    names = ask(room, "")[0]
    assert names.count("'it'") == names.count(f"'{ours}'") == 1


@pytest.mark.parametrize("room", [group.partition(".")[2] for group in OURS])
def test_names_out_of_files_are_looked_up_and_never_imported(ask, room):
    for name in ("evil", "..evil", "os.path", "../evil", "contract", "__init__", "_low_rank", "gold.dust"):
        answer, imported = ask(room, name)
        assert answer.startswith("UnknownNameError")
        assert imported == []


def test_a_task_is_called_as_its_file_is(ask):
    assert "name='of-old'" in ask("tasks", "of-old")[0]
    assert "its SPEC has another name than its file" in ask("tasks", "wrong")[0]
    assert "its SPEC is no TaskSpec" in ask("tasks", "no-spec")[0]


def test_a_scheme_whose_tensors_would_be_read_as_ours_is_refused(ask):
    answer, _ = ask("schemes", "copy")
    assert "its marks are those of another scheme" in answer
    assert "of nf4" in answer
