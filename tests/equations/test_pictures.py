"""Pictures of what was made and of how adapters differ: each number in its square, and a file that is whole or not there."""

import matplotlib.image
import pytest

from inlay.base.load import load
from inlay.combine import pictures
from tests.equations.test_combine import saved
from tests.support import bases
from tests.support.command import run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    saved(load(bases.directory(home / "base"), dtype="float32"), home, ["plain", "tables", "dora"], twice=("plain",))
    return home


def grids(monkeypatch, panels):
    """(what the rows and columns of each panel are called, its numbers) as they are drawn."""
    seen = []

    def label(axes, title, kinds, layers):
        shown = axes.images[0].get_array().filled(-9).tolist()
        seen.append((title, pictures._short(kinds), list(layers), shown))

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "_label", label)
        pictures.drawn(panels)
    return seen


def test_each_number_is_in_the_square_of_its_module(monkeypatch):
    values = {
        "model.layers.10.self_attn.q_proj": 3.0,
        "model.layers.2.self_attn.q_proj": 5.0,
        "model.layers.2.mlp.up_proj": 7.0,
        "lm_head": 11.0,
    }
    (found,) = grids(monkeypatch, [pictures.Panel("size", values)])
    assert found == (
        "size",
        ["q_proj", "up_proj", "lm_head"],
        [pictures.OUTSIDE, 2, 10],
        [[-9, 5, 3], [-9, 7, -9], [11, -9, -9]],
    )


def test_modules_of_one_name_in_two_places_are_told_apart(monkeypatch):
    values = {f"layers.0.{part}.v_proj": 1.0 for part in ("self_attn", "cross_attn")}
    (found,) = grids(monkeypatch, [pictures.Panel("size", values)])
    assert found[1] == ["self_attn.v_proj", "cross_attn.v_proj"]


COMMANDS = {
    "cat": "combine plain plain-2 --output out",
    "svd": "combine plain tables --how svd --r 2 --output out",
    "shrunk": "combine plain --weights 4 --shrink-intruders 0.5 --model base --output out",
    "convert": "convert base dora --output out",
    "diff": "diff plain plain-2",
    "diff-model": "diff plain plain-2 --model base",
}


@pytest.mark.parametrize("case", COMMANDS)
def test_every_report_is_drawn(home, tmp_path, capsys, monkeypatch, case):
    for path in home.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, *COMMANDS[case].split(), "--plot", "picture.png")
    assert status == 0, err
    assert "drew      picture.png" in err
    picture = matplotlib.image.imread("picture.png")
    assert picture.shape[1] > picture.shape[0] / 3 > 20
    assert len({tuple(pixel) for pixel in picture[::7, ::7].reshape(-1, picture.shape[2]).tolist()}) > 10


@pytest.mark.parametrize(
    ("name", "says"), [("picture.jpg", "a picture is a PNG"), ("there.png", "nothing is overwritten")]
)
def test_a_picture_that_has_no_place_is_refused_before_the_work(home, tmp_path, capsys, name, says):
    (tmp_path / "there.png").write_bytes(b"somebody's")
    for command in (
        ["combine", home / "plain", "--output", tmp_path / "out"],
        ["diff", home / "plain", home / "plain-2"],
    ):
        status, _, err = run(capsys, *command, "--plot", tmp_path / name)
        assert status != 0
        assert says in err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "there.png").read_bytes() == b"somebody's"
