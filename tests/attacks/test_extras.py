"""Packages that are not installed: what needs one names its extra, and what does not, works."""

import importlib.metadata
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from inlay import extras, formats, http
from inlay.data import sources
from inlay.errors import MissingExtraError
from inlay.evaluation import score
from inlay.hub import oci, sign
from inlay.report import curve, outcome
from tests.support.command import run
from tests.support.refusals import refused, train

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest brings tomli
    import tomli as tomllib

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture
def without(monkeypatch):
    """As if none of the extras were installed."""
    for name in list(sys.modules):
        if name.partition(".")[0] in extras.EXTRAS:
            monkeypatch.delitem(sys.modules, name)
    for name in extras.EXTRAS:
        monkeypatch.setitem(sys.modules, name, None)


def _file(name):
    def read(place):
        (place / name).write_bytes(b"PAR1")
        sources.read(str(place / name), lambda values, *_: list(values))

    return read


def _part(name):
    """What a server asks first, where this part alone is missing."""

    def ask(place):
        for other in http.PARTS:
            if other != name:
                sys.modules.pop(other)
        http.check_parts()

    return ask


def _signing(place):
    """What signs asks next, where the part that it imports itself is there."""
    sys.modules.pop("OpenSSL")
    sign.key_id(place / "key.pub")


WAYS = {
    "datasets": (lambda place: sources.read("owner/name", lambda values, *_: list(values)), "train"),
    "matplotlib": (lambda place: curve.compared([]), "train"),
    "pyarrow": (_file("rows.parquet"), "train"),
    "pyarrow of arrow": (_file("rows.arrow"), "train"),
    "pandas": (lambda place: outcome.Report.to_pandas(None), "train"),
    "rouge_score": (lambda place: score.rouge_l(["a"], [["a"]]), "eval"),
    **{name: (_part(name), "serve") for name in http.PARTS},
    "OpenSSL": (lambda place: sign.key_id(place / "key.pub"), "share"),
    "model_signing": (_signing, "share"),
    "gguf": (lambda place: formats.find("gguf").write(place, None), "gguf"),
    "oras": (lambda place: oci.Registry(oci.parse("oci://localhost:5000/a:1")), "share"),
    "sacrebleu": (lambda place: score.bleu(["a"], [["a"]]), "eval"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_package_that_is_missing_names_its_extra(without, tmp_path, way):
    use, extra = WAYS[way]
    with pytest.raises(MissingExtraError, match=f"^{way.split()[0]} is not installed\n  found: .* needs it") as error:
        use(tmp_path)
    assert error.value.hint == f'pip install "inlay[{extra}]"'


def test_every_extra_has_its_way():
    assert {way.split()[0] for way in WAYS} == set(extras.EXTRAS)


def test_a_run_without_them_leaves_the_picture_out_and_says_so(without, place, capsys, drawn):
    with pytest.warns(
        UserWarning,
        match=r'curve.png was not drawn: matplotlib is not installed \(pip install "inlay\[train\]"\); nothing else',
    ):
        status, _, err = run(capsys, *train(place))
    assert status == 0, err
    assert "curve.png" not in err
    assert not (place / "new" / "curve.png").exists()
    assert "curve.svg)" in err
    assert (place / "new" / "curve.svg").read_text("utf-8").startswith("<svg ")
    status, out, _ = run(capsys, "generate", place / "base", "--adapter", place / "new", "--prompt", "say 3")
    assert status == 0, err
    assert out


def test_scores_are_refused_before_a_model_is_read(without, place, capsys, monkeypatch):
    monkeypatch.setattr("inlay.cli.eval.Eval.load", lambda *given: pytest.fail("a model was read"))
    command = ["eval", place / "base", place / "rows.jsonl", "--scores", "bleu"]
    refused(capsys, *command, says=["sacrebleu is not installed", 'pip install "inlay[eval]"'])


def test_a_package_that_lacks_something_itself_is_not_said_to_be_missing(monkeypatch, tmp_path):
    (tmp_path / "sacrebleu.py").write_text("import surely_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sacrebleu", raising=False)
    with pytest.raises(ModuleNotFoundError, match="surely_not_there"):
        extras.need("sacrebleu", "BLEU")


def test_no_quick_test_needs_data_that_a_clone_lacks():
    tests = Path(__file__).parents[1]
    sources = [path.read_text("utf-8") for path in tests.rglob("test_*.py") if path != Path(__file__)]
    marks = [part.partition("def ")[0] for text in sources for part in text.split("@needs_shared\n")[1:]]
    assert all("@pytest.mark.slow" in mark for mark in marks)


def _names(lines):
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_the_extras_are_those_of_the_package():
    brought = {"pandas": "datasets", "pyarrow": "datasets", "OpenSSL": "pyopenssl"}
    for extra in set(extras.EXTRAS.values()):
        used = {brought.get(name, name) for name, of in extras.EXTRAS.items() if of == extra}
        assert {canonicalize_name(name) for name in used} == _names(PROJECT["optional-dependencies"][extra])
    with_datasets = _names(line for line in importlib.metadata.requires("datasets") if "extra ==" not in line)
    assert {"pandas", "pyarrow"} <= with_datasets


def test_what_is_always_needed_is_little():
    """And what is imported without being named comes with transformers, always."""
    assert len(PROJECT["dependencies"]) <= 9
    always = _names(line for line in importlib.metadata.requires("transformers") if "extra ==" not in line)
    assert {"pyyaml", "regex"} <= always
