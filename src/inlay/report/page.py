"""A run as one HTML page: a function of its record, with no script and nothing that has to be fetched.

While the run is under way the page is written anew every few seconds, and asks the browser to load it again. What a notebook
shows of a run is the beginning of the same page, with the same rules for colours and sizes, which there hold for it alone.
"""

import datetime
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from inlay.report import svg
from inlay.runs.record import FAILED, RUNNING, Run
from inlay.screen import count, size

RELOAD_SECONDS = 10
"""How often the browser looks again while the run is under way."""

MOST_WORSE = 10
"""As many rows that got worse are named."""

PART = "inlay-run"
"""The class of what a notebook shows."""

FORECASTS = {
    "memory_bytes": ("memory at most", size),
    "device_bytes": ("memory of the device at most", size),
    "disk_bytes": ("disk", size),
    "adapter_bytes": ("size of the adapter", size),
    "seconds": ("steps and evaluations", lambda value: duration(value)),
    "trainable_parameters": ("trained weights", count),
    "tokens_per_epoch": ("tokens of an epoch", count),
    "supervised_per_epoch": ("trained tokens of an epoch", count),
}
"""What is forecast, in words, and how it is written."""


def of(run: Run) -> str:
    """The page of a run."""
    name = Path(run.adapter.get("path") or run.command).name
    reload = f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">' if run.outcome == RUNNING else ""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">{reload}'
    parts = [
        _headline(run, name),
        _facts(run),
        _losses(run),
        _rates(run),
        _samples(run),
        _rows(run),
        _forecast(run),
        _forgotten(run),
    ]
    parts += [_findings(run), _again(run), _details(run)]
    body = "\n".join(part for part in parts if part)
    head += f"<title>{_e(name)} · Inlay</title>\n<style>\n{_css()}</style>"
    return f"<!doctype html>\n<html lang=en>\n<head>{head}</head>\n<body>\n{body}\n</body></html>\n"


def part(run: Run) -> str:
    """What a notebook shows of a run: losses, figures, the curve and the samples, as one element of a page that is not ours."""
    name = Path(run.adapter.get("path") or run.command).name
    shown = "\n".join(text for text in (_headline(run, name), _facts(run), _losses(run), _samples(run)) if text)
    whole = f'<div class="{PART}">\n<style>\n{_rules_of_part()}</style>\n{shown}\n</div>\n'
    return whole.encode("utf-8", "backslashreplace").decode()


def picture(run: Run) -> str:
    """The losses of a run as a file of SVG, in the colours of a dark page or of a light one; empty where there are none yet."""
    drawn, style = _chart(run), f"<style>\n{_rules_of_picture()}</style>"
    about = f'xmlns="http://www.w3.org/2000/svg" width="{svg.WIDTH}" height="{svg.HEIGHT}"'
    return drawn and drawn.replace("<svg", f"<svg {about}", 1).replace(">", f">\n{style}\n", 1) + "\n"


def duration(seconds: float) -> str:
    """A time for people: 0:42, 12:05, 3:12:05."""
    hours, minutes = divmod(round(seconds) // 60, 60)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{round(seconds) % 60:02}"


def _headline(run: Run, name: str) -> str:
    scores, unit = run.scores, run.notes.get("unit", "token")
    parts = [f'<h1>{_e(name)}<span class="outcome {run.standing}">{run.standing}</span></h1>']
    before, after = scores.get("eval_loss_before"), scores.get("eval_loss")
    if before is not None and after is not None:
        perplexity = f" (perplexity {svg.perplexity(before)} → {svg.perplexity(after)})" if unit == "token" else ""
        best = scores.get("best_step")
        kept = f", as it was after step {best:,}" if best != scores.get("steps") else ""
        parts.append(f"<p>Held-out loss {before:.3f} → {after:.3f} nats per {_e(unit)}{perplexity}{kept}.</p>")
    if run.standing == FAILED and run.error:
        parts.append(f'<p class="warning">{_e(run.error)}</p>')
    if said := run.notes.get("overfits"):
        parts.append(f'<p class="warning">{_e(said[:1].upper() + said[1:])}.</p>')
    when = datetime.datetime.fromtimestamp(run.started).strftime("%Y-%m-%d %H:%M")
    source = " · ".join(_e(part) for part in (run.base.get("name"), run.data.get("source"), f"begun {when}") if part)
    written = datetime.datetime.now().strftime("%H:%M:%S")
    way = f" · under way, as it was at {written}" if run.outcome == RUNNING else ""
    return "\n".join([*parts, f'<p class="note">{source}{way}</p>'])


def _facts(run: Run) -> str:
    scores, last = run.scores, run.curve[-1] if run.curve else None
    found: list[tuple[str, str | None]] = []
    total = run.settings.get("num_steps")
    steps = scores.get("steps", last.step if last else 0)
    found.append(("steps", f"{steps:,}" + (f" of {total:,}" if total and total != steps else "")))
    found.append(("time", duration(run.seconds)))
    rate = scores.get("tokens_per_second")
    found.append(("tokens per second", None if rate is None else f"{rate:,.0f}"))
    peak = scores.get("peak_rss_bytes")
    found.append(("memory at most", None if peak is None else size(peak)))
    weights = run.adapter.get("weights")
    found.append(("trained weights", None if weights is None else count(weights)))
    rows = run.data.get("rows")
    found.append(("rows", None if rows is None else f"{rows:,}"))
    cells = [f"<div><dt>{_e(key)}</dt><dd>{_e(value)}</dd></div>" for key, value in found if value is not None]
    return f'<dl class="facts">{"".join(cells)}</dl>'


def _losses(run: Run) -> str:
    drawn = _chart(run)
    return drawn and f'<h2>Loss</h2>\n<div class="wide">{drawn}</div>'


def _chart(run: Run) -> str:
    points = sorted(run.curve)
    trained = [(float(point.step), point.loss) for point in points if point.loss is not None]
    held = [(float(point.step), point.held_out) for point in points if point.held_out is not None]
    if not trained and not held:
        return ""
    unit = run.notes.get("unit", "token")
    best = min(held, key=lambda pair: pair[1]) if len(held) > 1 else None
    times = [(float(point.step), point.seconds) for point in points if point.seconds is not None]
    return svg.drawn(
        svg.Chart(
            title=_in_words(trained, held),
            y_name=f"nats per {unit}",
            lines=[svg.Line(held, "held out", "held")] if held else [],
            band=trained,
            band_name="training: mean of neighbouring steps, within their least and most",
            mark=best,
            mark_name=f"best: step {best[0]:,.0f}, {best[1]:.3f}" if best else "",
            second_y=svg.perplexity if unit == "token" else None,
            second_y_name="perplexity",
            second_x=(lambda step: duration(_at(times, step))) if len(times) > 1 else None,
            second_x_name="min:s",
        )
    )


def _rates(run: Run) -> str:
    known = [(float(p.step), p.seconds, p.tokens) for p in sorted(run.curve) if p.seconds is not None and p.tokens]
    width = max(1, len(known) // 40)
    rates = [
        (b[0], (b[2] - a[2]) / (b[1] - a[1]))
        for a, b in zip(known[::width], known[width::width], strict=False)
        if b[1] > a[1]
    ]
    if len(rates) < 2:
        return ""
    line = svg.Line(rates, "tokens per second, evaluations in the time", "rate", "{:,.0f}".format)
    chart = svg.Chart("Tokens per second over the steps", "tokens/s", [line], height=190, from_zero=True)
    return f'<h2>Tokens per second</h2>\n<div class="wide">{svg.drawn(chart)}</div>'


def _samples(run: Run) -> str:
    answers = {int(step): said for step, said in run.samples.get("answers", {}).items()}
    if not answers:
        return ""
    steps = sorted(answers)
    parts = ["<h2>Samples</h2>"]
    parts.append('<p class="note">Prompts of held-out rows; the likeliest token each time, at most 48.</p>')
    for number, (prompt, wanted) in enumerate(zip(run.samples["prompts"], run.samples["wanted"], strict=True)):
        shown = [(_after(step), answers[step][number]) for step in ([0, steps[-1]] if 0 in answers else steps[-1:])]
        shown.append(("the row itself", wanted))
        sides = "".join(f"<div><h3>{_e(name)}</h3><pre>{_e(text) or '(nothing)'}</pre></div>" for name, text in shown)
        between = "".join(f"<h3>{_after(step)}</h3><pre>{_e(answers[step][number])}</pre>" for step in steps[1:-1])
        more = f"<details><summary>in between</summary>{between}</details>" if between else ""
        parts.append(
            f'<div class="sample"><h3>prompt</h3><pre>{_e(prompt)}</pre><div class="sides">{sides}</div>{more}</div>'
        )
    return "\n".join(parts)


def _rows(run: Run) -> str:
    rows = run.samples.get("rows")
    if not rows:
        return ""
    unit, better = run.notes.get("unit", "token"), sum(after < before for _, before, after in rows)
    worse = sorted((row for row in rows if row[2] > row[1]), key=lambda row: row[1] - row[2])
    said = (
        f"{better:,} of {len(rows):,} held-out rows have a lower loss than under the base, {len(worse):,} a higher one"
    )
    dots = [(before, after) for _, before, after in rows]
    chart = svg.Chart(f"{said}.", f"after, nats per {unit}", dots=dots, x_name="before", height=300)
    named = [[source, f"{before:.3f}", f"{after:.3f}"] for source, before, after in worse[:MOST_WORSE]]
    note = '<p class="note">A row below the dashed line got better.</p>'
    picture = f'<div class="wide">{svg.drawn(chart)}</div>\n{note}'
    table = _table("", ["the rows that got worse most", "before", "after"], named)
    return f"<h2>Row by row</h2>\n<p>{said}.</p>\n{picture}\n{table}"


def _forecast(run: Run) -> str:
    predicted, outcome = run.forecast.get("predicted") or {}, run.forecast.get("outcome") or {}
    rows = []
    for key, (name, written) in FORECASTS.items():
        if predicted.get(key):
            said, came = predicted[key], outcome.get(key)
            off = f"{100 * (came - said) / said:+.0f} %" if came else ""
            rows.append([name, written(said), written(came) if came else "", off])
    return _table("Forecast and outcome", ["", "forecast", "came to", "off by"], rows)


def _forgotten(run: Run) -> str:
    growth = run.scores.get("forgotten")
    if growth is None:
        return ""
    what = "worse" if growth > 0 else "better"
    said = f"On text that has nothing to do with the rows it is {abs(growth):.3f} nats per token {what} than the base"
    how = "Four sentences that come with Inlay: a hint. <code>inlay compare --other FILE</code> measures it on a file."
    return f'<h2>Forgotten</h2>\n<p>{said} ({growth:+.3f}).</p>\n<p class="note">{how}</p>'


def _findings(run: Run) -> str:
    found = run.findings.get("found") or {}
    rows = [[kind.replace("-", " "), f"{one['rows']:,}", ", ".join(one["places"][:3])] for kind, one in found.items()]
    return _table("What was found in the data", ["", "rows", "the first of them"], rows)


def _again(run: Run) -> str:
    typed = " ".join(["inlay", run.command, *run.arguments]) if run.arguments else run.notes.get("again")
    return f"<h2>The same again</h2>\n<pre>{_e(typed)}</pre>" if typed else ""


def _details(run: Run) -> str:
    parts = []
    for part in ("settings", "base", "data", "adapter", "machine", "versions"):
        rows = [[key, str(value)] for key, value in getattr(run, part).items() if value not in (None, [], "")]
        if rows:
            parts.append(f"<details><summary>{part}</summary>{_table('', [], rows)}</details>")
    number = f'<p class="note">Run {run.id} of the record: <code>inlay runs show {run.id}</code></p>' if run.id else ""
    return "\n".join(["<h2>Details</h2>", *parts, number])


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    are_numbers = [bool(heads) and text[:1] in "+-0123456789" for text in map(str, rows[0])]
    head = f"<tr>{_cells('th', heads, are_numbers)}</tr>" if heads else ""
    body = "".join(f"<tr>{_cells('td', row, are_numbers)}</tr>" for row in rows)
    return (f"<h2>{_e(title)}</h2>\n" if title else "") + f"<table>{head}{body}</table>"


def _cells(tag: str, texts: Iterable[str], are_numbers: Iterable[bool]) -> str:
    kinds = {True: f'<{tag} class="number">', False: f"<{tag}>"}
    return "".join(f"{kinds[is_one]}{_e(text)}</{tag}>" for text, is_one in zip(texts, are_numbers, strict=True))


def _after(step: int) -> str:
    return f"after step {step:,}" if step else "before: the base"


def _in_words(trained: Sequence[svg.Pair], held: Sequence[svg.Pair]) -> str:
    """What the picture of the losses shows."""
    parts = []
    if trained:
        parts.append(f"training loss from {trained[0][1]:.3f} to {trained[-1][1]:.3f} in {trained[-1][0]:,.0f} steps")
    if held:
        parts.append(f"held-out loss from {held[0][1]:.3f} to {held[-1][1]:.3f}")
    return "; ".join(parts).capitalize()


def _at(times: Sequence[svg.Pair], step: float) -> float:
    """The seconds at a step, on the line between those that are known."""
    for (left, before), (right, after) in itertools.pairwise(times):
        if step <= right:
            return before + (after - before) * (step - left) / (right - left)
    return times[-1][1]


@cache
def _css() -> str:
    return Path(__file__).with_name("page.css").read_text("utf-8")


@cache
def _rules_of_part() -> str:
    """The rules of a page for what lies in an element of the class `PART`, which stands for the page."""

    def within(rule: re.Match[str]) -> str:
        names = (f".{PART}" if name in (":root", "html", "body") else f".{PART} {name}" for name in rule[2].split(", "))
        return f"{rule[1]}{', '.join(names)} {{"

    return re.sub(r"^( *)([^@{}\n]+) \{", within, _css(), flags=re.MULTILINE)


@cache
def _rules_of_picture() -> str:
    """The rules of a page for what lies in its pictures, each colour by its value: not every reader of SVG knows names."""
    names, rules = _css().split("*, *::before", 1)
    light, dark = (dict(re.findall(r"--(\w+): ([^;]+);", part)) for part in names.split("@media"))
    about = [line for line in rules.splitlines() if line.startswith("svg ") and "display: block" not in line]
    drawn = "\n".join(["svg { font: 12px system-ui, sans-serif; background: var(--ground); }", *about])

    def valued(values: Mapping[str, str]) -> str:
        return re.sub(r"var\(--(\w+)\)", lambda name: values[name[1]], drawn)

    return f"{valued(light)}\n@media (prefers-color-scheme: dark) {{\n{valued(dark)}\n}}\n"


def _e(text: Any) -> str:
    return escape(str(text), quote=True)
