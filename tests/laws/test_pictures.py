"""The pictures of a run and of methods beside each other: what stands in them, and that nothing stands on anything else."""

import contextlib
import itertools
import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from inlay import methods, picture
from inlay.report import curve
from inlay.runs.progress import Progress

pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture
def figures(monkeypatch):
    """Every figure that was drawn."""
    made = []

    @contextlib.contextmanager
    def figure(*size):
        with picture.figure(*size) as (drawn, png):
            made.append(drawn)
            yield drawn, png

    monkeypatch.setattr(curve, "figure", figure)
    return made


def texts_of(drawn):
    """All texts of a figure that show something."""
    texts = drawn.findobj(lambda part: hasattr(part, "get_text"))
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def box(text):
    """Where a text lies, without the line that leads to it."""
    return Text.get_window_extent(text)


def overlapping(texts):
    """The pairs of texts that lie on each other."""
    boxes = [(text.get_text(), box(text)) for text in texts]
    return [(a, b) for i, (a, one) in enumerate(boxes) for b, other in boxes[i + 1 :] if one.overlaps(other)]


def progress(**more):
    losses = [1.7 + 0.8 * math.exp(-step / 40) + 0.1 * math.sin(step) for step in range(300)]
    held = [(step, 1.72 + 0.7 * math.exp(-step / 50) + 0.001 * max(0, step - 180)) for step in range(0, 301, 30)]
    about = {"losses": losses, "eval_losses": held, "step_seconds": 400.0, "best_step": 180}
    return Progress(300, **{"step": 300, **about, **more})


def test_a_run_says_what_it_learned_by_which_step_and_in_how_many_minutes(figures):
    assert curve.draw(progress(), "mine on base", "token").startswith(b"\x89PNG")
    shown = {text.get_text() for text in texts_of(figures[0])}
    assert {"mine on base: 2.42 → 1.74", "2.420", "1.842", "best: step 180, 1.739", "perplexity", "minutes"} <= shown
    bottom, top = figures[0].axes[0].get_ylim()
    assert 1 < bottom < 1.6, "the scale begins where the losses do"
    assert top < 3
    (right,) = [axis for axis in figures[0].axes[0].child_axes if axis.get_ylabel() == "perplexity"]
    for tick in right.yaxis.get_major_ticks():
        assert float(tick.label2.get_text()) == pytest.approx(math.exp(tick.get_loc()), rel=0.006)


def test_the_title_has_the_loss_of_the_step_that_was_kept(figures):
    """Which is the last where too few rows are held out to choose by; a name is no formula."""
    curve.draw(progress(best_step=300), "my$x$ on base", "token")
    assert "my$x$ on base: 2.42 → 1.84" in {text.get_text() for text in texts_of(figures[0])}
    curve.draw(progress(best_step=299), "mine", "token")
    assert "mine" in {text.get_text() for text in texts_of(figures[1])}


def test_a_loss_that_is_not_of_tokens_has_no_perplexity(figures):
    curve.draw(progress(), "mine on base", "row")
    assert "perplexity" not in {text.get_text() for text in texts_of(figures[0])}


@pytest.mark.parametrize(
    "more",
    [
        {"eval_losses": []},
        {"losses": [], "eval_losses": [(0, 2.0)], "step": 0},
        {"losses": [2.0, math.nan], "eval_losses": [(0, 2.0), (2, math.nan)]},
        {"losses": [math.inf], "eval_losses": [(0, math.inf)]},
        {"step_seconds": 0.0},
    ],
    ids=["none held out", "no step", "not a number", "infinite", "no time"],
)
def test_a_run_that_has_come_to_little_is_drawn_too(more):
    assert curve.draw(progress(**more), "mine", "token").startswith(b"\x89PNG")


def results(count, forgetting=0.01):
    names = methods.TABLE.names()
    return [
        SimpleNamespace(
            method=names[i % len(names)], loss=1.7 + 0.001 * i, seconds=60 + 7 * i % 90, adapter_bytes=10 ** (3 + i % 5),
            forgetting=forgetting,
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "forgetting"), [(1, None), (15, 0.01), (15, None), (40, 0.01)])
def test_no_name_of_a_method_stands_on_another(figures, count, forgetting):
    """Also where all losses are nearly the same."""
    shown = results(count, forgetting)
    for result in shown[1::2]:
        result.loss = shown[0].loss + 1e-6
    curve.compared(shown)
    (drawn,) = figures
    drawn.canvas.draw()  # places are those of the last resolution that it was drawn in
    names = [text for text in texts_of(drawn) if any(text.get_text().startswith(f"{r.method}  ") for r in shown)]
    assert len(names) == min(count, curve.MOST_LABELS)
    assert not overlapping(names)
    assert all(drawn.bbox.contains(*point) for text in names for point in box(text).get_points())


def test_without_methods_the_picture_is_empty():
    assert curve.compared([]).startswith(b"\x89PNG")


@given(st.lists(st.floats(0, 1), max_size=20).map(sorted))
def test_heights_are_spread_no_more_than_it_takes(heights):
    found = curve.spread(heights, 0.05)
    assert all(after - before >= 0.05 - 1e-9 for before, after in itertools.pairwise(found))
    assert not found or found[-1] <= 1
    if all(after - before >= 0.05 for before, after in itertools.pairwise(heights)):
        assert found == pytest.approx(heights)
