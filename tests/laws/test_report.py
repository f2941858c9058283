"""The page of a run: whole by itself, right by its record, a picture that a person can read."""

import dataclasses
import html.parser
import itertools
import json
import math
import re
from xml.etree import ElementTree

import pytest
import torch

import inlay
from inlay.evaluation import by_row, samples
from inlay.evaluation.loss import evaluate
from inlay.formats.peft import TENSORS
from inlay.report import page, recorded, svg
from inlay.runs import overfitting, record
from inlay.runs.progress import Progress
from tests.support import bases, runs
from tests.support.scripts import chromium

CHROMIUM = chromium()
HOSTILE = "<img src=x onerror=alert(1)></pre><script>alert(2)</script>"

SAMPLES = {
    "prompts": ["name : The Punter | food : Indian", HOSTILE],
    "wanted": ["The Punter serves Indian food .", "plain"],
    "answers": {
        "0": ['"Hello," said Puddle.', HOSTILE],
        "20": ["The Punter is", "a"],
        "40": ["The Punter is cheap", "b"],
    },
    "rows": [["rows.jsonl:3", 3.0, 1.0], ["rows.jsonl:8", 1.0, 1.2], [HOSTILE, 2.0, 2.75], ["rows.jsonl:9", 2.0, 2.0]],
}
FORECAST = {
    "predicted": {"memory_bytes": 800_000_000, "seconds": 60.0},
    "outcome": {"memory_bytes": 757_000_000, "seconds": 68.0},
}


def made(**parts):
    given = dict(
        samples=SAMPLES,
        forecast=FORECAST,
        findings={"rows": 640, "found": {"duplicate": {"rows": 12, "places": ["rows.jsonl:7", HOSTILE]}}},
        outcome=record.DONE,
    )
    run = runs.run(**given | parts)
    run.ended = run.started + 81
    return run


class Elements(html.parser.HTMLParser):
    """The elements of a page, all of which are closed, and its text."""

    VOID = ("meta", "line", "circle", "polygon", "polyline")

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.said = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, given):
        self.found.append((tag, dict(given)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, given):
        self.found.append((tag, dict(given)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)


def test_the_page_is_whole_by_itself_and_no_text_becomes_markup():
    text = page.of(made(error=HOSTILE, arguments=["base", HOSTILE], settings={"x": HOSTILE}))
    elements = Elements(text)
    assert {tag for tag, _ in elements.found} & {"script", "img", "link", "iframe", "object"} == set()
    for tag, given in elements.found:
        assert not given.keys() & {"src", "href", "onerror", "onload"}, tag
    assert "url(" not in text
    assert "@import" not in text
    assert "".join(elements.said).count(HOSTILE) >= 4


def test_the_page_says_what_the_record_has():
    said = " ".join("".join(Elements(page.of(made())).said).split())
    for words in (
        "Held-out loss 3.400 → 1.300 nats per token (perplexity 30 → 3.67), as it was after step 20",
        "best: step 20, 1.300",
        "perplexity",
        "memory at most800 MB757 MB-5 %",
        "0.173 nats per token worse than the base",
        "inlay train base rows.jsonl --output mine",
    ):
        assert words in said, words
    assert "duplicate12rows.jsonl:7" in said
    assert "1 of 4 held-out rows have a lower loss than under the base, 2 a higher one." in said
    assert f"{HOSTILE}2.0002.750rows.jsonl:81.0001.200" in said, "that which got worse most comes first"


def test_a_notebook_shows_the_beginning_of_the_page_and_no_text_becomes_markup():
    text = page.part(made(samples=SAMPLES | {"wanted": [HOSTILE, "a lone \ud800"]}, base={"name": HOSTILE}))
    assert text.encode("utf-8")
    elements = Elements(text)
    assert {tag for tag, _ in elements.found} & {"script", "img", "link", "iframe", "object", "html", "body"} == set()
    said = " ".join("".join(elements.said).split())
    assert said.count(HOSTILE) == 4
    for words in ("Held-out loss 3.400 → 1.300", "best: step 20", "memory at most757 MB", "The Punter is cheap"):
        assert words in said, words


def strange_rules(text):
    """The rules of style that are not of our element alone."""
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    names = [name.strip() for match in re.finditer(r"([^{}@;]+)\{", style) for name in match[1].split(",")]
    assert len(names) > 40
    return [name for name in names if not name.startswith(f".{page.PART}") and "prefers-color-scheme" not in name]


def test_a_notebook_keeps_its_own_style():
    assert strange_rules(page.part(made())) == []
    assert {":root", "body", "svg", "*::before"} <= {*strange_rules(page.of(made()))}


def test_the_picture_is_a_file_that_names_its_ends_and_is_right_on_dark_pages():
    drawn = page.picture(made())
    root = ElementTree.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"3.400", "2.200", "best: step 20, 1.300", "perplexity", "step"} <= {*texts}
    light, dark = root.find("{http://www.w3.org/2000/svg}style").text.split("@media (prefers-color-scheme: dark) {")
    before, after = re.findall(r"--held: (#\w+);", page._css())
    assert f"stroke: {before}" in light
    assert f"stroke: {after}" in dark
    assert before not in dark
    assert "var(" not in light + dark, "a reader of SVG that knows no names has colours"
    used = {part.get("class") for part in root.iter()} - {None}
    assert used <= {*re.findall(r"\.(\w+)", light)}
    assert page.picture(dataclasses.replace(made(), curve=[])) == ""


def test_a_run_under_way_is_loaded_again_and_one_that_ended_is_not():
    under_way = made(outcome=record.RUNNING, process={})
    assert 'http-equiv="refresh"' in page.of(under_way)
    assert 'http-equiv="refresh"' not in page.of(made())


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_a_page_can_be_drawn_from_the_first_step_on(number):
    run = made(outcome=record.RUNNING, samples={}, forecast={}, findings={}, scores={}, settings={})
    run.curve = run.curve[:number]
    assert page.of(run).count("<svg") == (number > 0) + (number > 4)


def test_losses_that_are_no_numbers_break_no_picture():
    run = made()
    run.curve[7] = run.curve[7]._replace(loss=float("nan"))
    run.curve[9] = run.curve[9]._replace(loss=float("inf"))
    assert not re.search(r'="[^"]*\b(nan|inf)\b', page.of(run))


def test_axes_have_round_numbers_within_their_range():
    for low, high in ((0.0, 300.0), (0.81, 4.54), (1.1e-3, 1.9e-3), (0, 1e6), (7.0, 7.5)):
        found = svg.ticks(low, high, 5)
        assert 3 <= len(found) <= 7
        assert all(low - 1e-9 <= tick <= high * (1 + 1e-9) for tick in found)
        steps = {round((b - a) / (high - low), 9) for a, b in itertools.pairwise(found)}
        assert len(steps) == 1
    assert svg.number(2.50) == "2.5"
    assert svg.number(1200) == "1,200"


def test_a_band_holds_every_loss_and_has_few_parts():
    points = [(float(step), (step * 7919) % 101 / 11) for step in range(1, 3001)]
    found = svg.banded(points)
    assert len(found) <= svg.MOST_PARTS + 1
    assert found[-1][0] == 3000
    for x, low, mean, high in found:
        near = [y for at, y in points if abs(at - x) <= 3000 // 80]
        assert (low, high) == (min(near), max(near))
        assert mean == pytest.approx(sum(near) / len(near))


@pytest.mark.parametrize(
    ("held_out", "losses", "says"),
    [
        ([2.0, 1.0, 1.3], [2.0] * 5 + [1.0] * 5, "since step 5 the held-out loss rose from 1.000 to 1.300"),
        ([2.0, 1.0, 1.01], [2.0] * 5 + [1.0] * 5, ""),
        ([2.0, 1.0, 1.3], [2.0] * 5 + [2.1] * 5, ""),
        ([2.0, 1.5, 1.3], [2.0] * 5 + [1.0] * 5, ""),
    ],
)
def test_a_run_that_overfits_is_told_from_one_that_does_not(held_out, losses, says):
    progress = Progress(10, step=10, losses=losses, eval_losses=list(zip((0, 5, 10), held_out, strict=True)))
    assert (says in overfitting.note(progress)) if says else overfitting.note(progress) == ""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return inlay.load(bases.directory(tmp_path_factory.mktemp("base") / "tiny"), dtype="float32")


HOW = dict(max_steps=12, batch_size=3, eval_every=2, learning_rate=5e-2, eval_fraction=0.5, progress=False)
METHOD = inlay.Lora(r=3, lora_alpha=5, lora_dropout=0.2)


def trained(base, target, **how):
    try:
        return inlay.train(base, bases.rows(60), method=METHOD, output=target, **HOW | how)
    finally:
        if target.name in base.adapters:
            base.detach(target.name)


def test_samples_change_no_byte_of_what_is_learned(base, tmp_path, looked_at):
    trained(base, tmp_path / "one")
    trained(base, tmp_path / "two", sample_every=1)
    assert (tmp_path / "one" / TENSORS).read_bytes() == (tmp_path / "two" / TENSORS).read_bytes()


def test_samples_are_what_the_adapter_answers_then(base, tmp_path, looked_at, monkeypatch):
    kept = {}
    prompts = samples.prompts
    monkeypatch.setattr(recorded.Observer, "end", lambda self: kept.update(run=self.run))
    monkeypatch.setattr(
        samples, "prompts", lambda base, rows, *more: kept.update(rows=rows) or prompts(base, rows, *more)
    )
    trained(base, tmp_path / "mine", sample_every=4)
    run = kept["run"]
    assert sorted(map(int, run.samples["answers"])) == [0, 4, 8, 12]
    assert len(run.samples["prompts"]) == 3
    best = str(run.scores["best_step"])
    asked = samples.prompts(base, kept["rows"])
    base.attach(tmp_path / "mine")
    for number, one in enumerate(asked):
        assert run.samples["prompts"][number] == one.text
        for name, step in ((None, "0"), ("mine", best)):
            assert run.samples["answers"][step][number] == greedy(base, name, one.tokens)
    base.detach("mine")


@torch.no_grad()
def greedy(base, name, tokens):
    """The likeliest token, again and again, by passes over all that was said."""
    ids = list(tokens)
    while len(ids) < len(tokens) + samples.NEW_TOKENS:
        ids.append(int(base.logits(torch.tensor([ids]), name)[0, -1].argmax()))
        if ids[-1] in base.stop_ids(name):
            break
    return base.tokenizer.decode(ids[len(tokens) :], skip_special_tokens=True)


def test_rows_are_compared_each_as_if_it_were_alone(base, tmp_path, looked_at, monkeypatch):
    kept = {}
    monkeypatch.setattr(recorded.Observer, "end", lambda self: kept.update(run=self.run))
    monkeypatch.setattr(by_row, "TOKENS", 40)  # so that some go through the model together, and not all
    monkeypatch.setattr(by_row, "MOST_ROWS", 20)
    report = trained(base, tmp_path / "mine")
    held_out = {row.source: row for row in report_rows(base)}
    found = kept["run"].samples["rows"]
    base.attach(tmp_path / "mine")
    assert len({source for source, _, _ in found}) == 20
    for source, before, after in found:
        for name, loss in ((None, before), ("mine", after)):
            assert loss == pytest.approx(evaluate(base, name, [held_out[source]]), abs=1e-5)
    base.detach("mine")
    assert sum(after < before for _, before, after in found) > 15
    assert report.eval_loss < report.eval_loss_before


def report_rows(base):
    """The rows of `trained` as samples."""
    prepared = base.spec.prepare(base.spec.read(bases.rows(60)).rows, base, 512, "completions", "drop")
    return prepared.examples


def test_a_row_whose_loss_is_no_number_is_left_out(base, monkeypatch):
    losses = iter([[1.0, math.nan], [0.5, 1.0]])
    monkeypatch.setattr(by_row, "_losses", lambda *given: next(losses))
    rows = report_rows(base)[:2]
    assert by_row.compared(base, "mine", rows) == [(rows[0].source, 1.0, 0.5)]


def test_a_run_ends_when_its_patience_does_and_keeps_the_best(base, tmp_path):
    how = dict(max_steps=60, eval_every=2, learning_rate=0.5)
    report = trained(base, tmp_path / "mine", patience=2, **how)
    training = json.loads((tmp_path / "mine" / "inlay.json").read_text("utf-8"))["training"]
    losses = training["eval_losses"]
    best = min(losses, key=lambda pair: pair[1])
    assert report.stopped_early
    assert not report.interrupted
    assert report.steps == losses[-1][0] < 60
    assert report.best_step == best[0]
    assert [step for step, _ in losses].index(best[0]) == len(losses) - 1 - 2
    assert not list(tmp_path.glob("*.run"))
    assert not trained(base, tmp_path / "other", patience=50, max_steps=6).stopped_early
    with pytest.raises(inlay.ConfigError, match="can't tell when to stop"):
        trained(base, tmp_path / "third", patience=2, eval_rows=19)


def test_the_page_of_a_training_lies_beside_its_adapter(base, tmp_path, looked_at):
    report = trained(base, tmp_path / "mine")
    text = recorded.page(tmp_path / "mine").read_text("utf-8")
    said = " ".join("".join(Elements(text).said).split())
    assert f"Held-out loss {report.eval_loss_before:.3f} → {report.eval_loss:.3f}" in said
    assert "before: the base" in said
    assert (tmp_path / "mine.report.html") == recorded.page(tmp_path / "mine")
    assert not [path for path in (tmp_path / "mine").iterdir() if path.suffix == ".html"]


def test_a_report_shows_itself_and_gives_its_steps(base, tmp_path, looked_at):
    report = trained(base, tmp_path / "mine")
    said = " ".join("".join(Elements(report._repr_html_()).said).split())
    assert f"Held-out loss {report.eval_loss_before:.3f} → {report.eval_loss:.3f}" in said
    assert "before: the base" in said
    frame = report.to_pandas()
    training = json.loads((tmp_path / "mine" / "inlay.json").read_text("utf-8"))["training"]
    assert list(frame.index) == list(range(13))
    assert frame["loss"][1:].round(6).tolist() == training["losses"]
    assert [[step, loss] for step, loss in frame["eval_loss"].dropna().items()] == training["eval_losses"]
    assert frame["eval_loss"][report.best_step] == report.eval_loss
    assert frame["seconds"].is_monotonic_increasing
    assert frame["tokens"].iloc[-1] == report.tokens
    assert "run" not in report.as_dict()


def test_a_report_without_a_record_shows_its_text_and_says_where_the_steps_are(base, tmp_path):
    report = dataclasses.replace(trained(base, tmp_path / "mine"), run=None)
    assert report._repr_html_() is None
    with pytest.raises(inlay.ConfigError, match="has no record of its steps") as caught:
        report.to_pandas()
    assert "inlay.json" in caught.value.hint


def test_a_page_that_can_not_be_written_costs_a_warning(base, tmp_path):
    recorded.page(tmp_path / "mine").mkdir()
    with pytest.warns(UserWarning, match="the page of the run was not written") as said:
        trained(base, tmp_path / "mine")
    assert len(said) == 1


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed; the tests above read the page's structure")
@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (1100, "dark"), (390, "light")])
def test_a_browser_shows_it(tmp_path, width, scheme):
    from playwright.sync_api import sync_playwright

    place, wrong = tmp_path / "mine.report.html", []
    place.write_text(page.of(made()), "utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        shown = context.new_page()
        shown.on("request", lambda request: wrong.append(request.url) if request.url != place.as_uri() else None)
        shown.on("console", lambda line: wrong.append(line.text))
        shown.goto(place.as_uri())
        picture = shown.screenshot(path=tmp_path / "page.png", full_page=True)
        boxes = [box.bounding_box() for box in shown.locator("svg").first.locator("text").all()]
        ground = shown.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        wide = shown.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert wrong == []
    assert len(picture) > 20_000
    assert wide <= width, "nothing is wider than the window"
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 18, 22)"}[scheme]
    assert [(a, b) for n, a in enumerate(boxes) for b in boxes[n + 1 :] if overlap(a, b)] == []


def overlap(one, other):
    """Two texts lie on each other."""
    across = min(one["x"] + one["width"], other["x"] + other["width"]) - max(one["x"], other["x"])
    down = min(one["y"] + one["height"], other["y"] + other["height"]) - max(one["y"], other["y"])
    return across > 1 and down > 2
