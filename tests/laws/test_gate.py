"""The data gate finds each kind of fault where it was planted, and nothing in rows that have none; what it finds changes no run."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

import inlay
from inlay.data import forms
from inlay.errors import DataError
from inlay.gate import texts, turns
from inlay.gate.findings import KINDS
from inlay.gate.gate import Gate
from inlay.gate.near import Near
from inlay.tasks import causal_lm
from tests.support import bases
from tests.support.command import run
from tests.support.paths import SHARED, needs_shared

WORDS = [
    "harbour",
    "tide",
    "lamp",
    "copper",
    "violet",
    "engine",
    "meadow",
    "ladder",
    "pepper",
    "orchard",
    "signal",
    "thunder",
    "velvet",
    "window",
    "yellow",
    "basket",
    "candle",
    "drawer",
    "eagle",
    "forest",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "lemon",
    "mirror",
    "needle",
    "ocean",
    "pencil",
    "quartz",
    "river",
    "saddle",
    "timber",
    "umbrella",
    "valley",
    "walnut",
    "anchor",
    "bridge",
    "castle",
    "desert",
    "ember",
    "falcon",
    "glacier",
    "hazel",
    "ivory",
    "jungle",
    "kernel",
    "lantern",
    "marble",
    "nectar",
    "onyx",
]


def said(seed, length=40):
    """Text of its own: no two seeds give texts that are alike."""
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def sound(count, first=0):
    return [{"prompt": f"{said(i, 12)}?", "completion": f"{said(-1 - i)}."} for i in range(first, first + count)]


def talk(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def findings(rows, held=(), max_length=10_000, too_long="drop", tokenizer=None):
    """What is found in rows as training looks at them: by kind, how many."""
    gate, tokenizer = Gate(tokenizer or bases.tokenizer()), tokenizer or bases.tokenizer()
    for values, held_out in ((rows, False), (held, True)):
        if values:
            read = forms.read(list(values))
            made = causal_lm.prepare(read.rows, tokenizer, max_length, "completions", too_long, may_be_empty=True)
            gate.see(read.rows, held_out=held_out)
            gate.see_samples(made, read.rows)
            gate.see_unused(read.unused, len(read.rows))
    return {finding.kind: finding.num_rows for finding in gate.findings().found}


def changed(text, seed=5):
    """The text with one word in its middle replaced."""
    words = text.split(" ")
    words[len(words) // 2] = random.Random(seed).choice(["abacus", "zebra"])
    return " ".join(words)


ONE = sound(1, 900)[0]
EMAIL, CARD, PHONE = "ann.lee@harbour-post.net", "4111 1111 1111 1111", "(415) 555-2671"
PLANTED = {
    "duplicate": ([*sound(30), ONE, ONE], {"duplicate": 1}),
    "near-duplicate": ([*sound(30), ONE, ONE | {"completion": changed(ONE["completion"])}], {"near-duplicate": 1, "contradiction": 2}),
    "contradiction": ([*sound(30), ONE, ONE | {"completion": said(77)}], {"contradiction": 2}),
    "empty-prompt": ([*sound(30), {"prompt": " ", "completion": said(3)}], {"empty-prompt": 1}),
    "control-character": ([*sound(30), {"prompt": "say\x07", "completion": said(3)}], {"control-character": 1, "lossy": 1}),
    "replacement-character": ([*sound(30), {"prompt": "caf\ufffd", "completion": said(3)}], {"replacement-character": 1, "lossy": 1}),
    "mojibake": ([*sound(30), {"prompt": "café".encode().decode("latin-1"), "completion": said(3)}], {"mojibake": 1, "lossy": 1}),
    "e-mail": ([*sound(30), {"prompt": f"write to {EMAIL}", "completion": said(3)}], {"e-mail": 1}),
    "card-number": ([*sound(30), {"prompt": f"pay with {CARD}", "completion": said(3)}], {"card-number": 1}),
    "phone-number": ([*sound(30), {"prompt": f"call {PHONE}", "completion": said(3)}], {"phone-number": 1}),
    "role-order": ([talk(("user", said(1)), ("user", said(2)), ("assistant", said(3)))], {"role-order": 1}),
    "unused-key": ([row | {"lang": "en"} for row in sound(30)], {"unused-key": 30}),
}  # fmt: skip
"""Kind -> (rows with it, all that is found in them)."""


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_fault_is_found_and_nothing_else(kind):
    rows, wanted = PLANTED[kind]
    assert findings(rows) == wanted


@pytest.mark.parametrize("rows", [sound(3), sound(200), [{"text": said(i)} for i in range(60)], [talk(("system", said(5)), ("user", said(6)), ("assistant", said(7)), ("user", said(8)), ("assistant", said(9)))]])  # fmt: skip
def test_nothing_is_found_in_rows_without_faults(rows):
    assert findings(rows) == {}
    assert findings(rows, held=sound(20, 500) if "prompt" in rows[0] else []) == {}


def test_rows_on_both_sides_are_found():
    rows = sound(40)
    near = rows[3] | {"completion": changed(rows[3]["completion"])}
    assert findings(rows, held=[rows[0], rows[1], near]) == {"evaluated": 2, "nearly-evaluated": 1, "contradiction": 2}


def test_rows_beyond_the_longest_are_named():
    rows = [*sound(5), {"prompt": "tell", "completion": said(4, 400)}]
    assert findings(rows, max_length=600) == {"left-out": 1}
    assert findings(rows, max_length=600, too_long="window") == {"truncated": 1}


def test_answers_of_one_prompt_do_not_contradict_where_several_are_right():
    gate = Gate(bases.tokenizer(), has_answers=False)
    gate.see(forms.read_rows([ONE, ONE | {"completion": said(77)}]))
    assert not gate.findings().found


def test_two_start_tokens_and_a_missing_end_are_found():
    twice = "<s><s>{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}{% endfor %}"
    assert findings(sound(3), tokenizer=bases.tokenizer(template=twice)) == {"doubled-start": 3}
    tokenizer = bases.tokenizer()
    rows = forms.read_rows(sound(3))
    made = causal_lm.prepare(rows, tokenizer, 10_000, "completions", None)
    for example in made.examples[:2]:
        object.__setattr__(example, "input_ids", example.input_ids[:-1])
        object.__setattr__(example, "trained", example.trained[:-1])
    gate = Gate(tokenizer)
    gate.see_samples(made, rows)
    assert [(found.kind, found.num_rows) for found in gate.findings().found if found.kind != "lossy"] == [("no-end", 2)]


@pytest.mark.parametrize(
    ("order", "is_odd"),
    [("SUA", False), ("UA", False), ("UCRA", False), ("UCRRCRA", False), ("UC", False), ("UAUA", False), ("UCRUA", False), ("UU", True),
     ("AU", True), ("UAA", True), ("USA", True), ("URA", True), ("UAU", True), ("A", True)],
)  # fmt: skip
def test_turns_of_a_talk_alternate(order, is_odd):
    call = {"role": "assistant", "tool_calls": [{"name": "tide", "arguments": {}}]}
    kinds = {"S": "system", "U": "user", "A": "assistant", "R": "tool"}
    messages = [
        call if letter == "C" else {"role": kinds[letter], "content": said(i, 5)} for i, letter in enumerate(order)
    ]
    assert turns.are_odd(forms.read_rows([{"messages": messages}])[0]) == is_odd


@pytest.mark.parametrize(
    ("kind", "text"),
    [("card-number", "5500005555555559"), ("card-number", "no. 3714-496353-98431."), ("phone-number", "+49 30 901820"),
     ("phone-number", "1-800-555-0199"), ("phone-number", "+1 (415) 555-2671"), ("e-mail", "<a.b+c@mail.example-host.org>")],
)  # fmt: skip
def test_personal_data_is_known_by_its_form(kind, text):
    assert {name: found for name, found in texts.faults([f"so: {text} it is"]).items() if found} == {kind: [0]}


@pytest.mark.parametrize("text", ["4111111111111112", "1234567890123456", "0.4111111111111111", "2,000,000,000,000", "2026-11-29 13:15:00", "192.168.100.200", "ann@example.com", "@app.route", "3 + 5 = 8, 12 * 12 = 144", "ISBN 978-3-16-148410-0", "été à l'œuvre: NÃO"])  # fmt: skip
def test_what_only_looks_so_is_none(text):
    assert not any(texts.faults([text]).values())


def test_what_a_tokenizer_can_not_write_is_found():
    built = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, "say": 2, "so": 3}, unk_token="<unk>"))
    built.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=built, unk_token="<unk>", eos_token="</s>")
    rows = [{"prompt": "say so", "completion": "so so"}, {"prompt": "say what", "completion": "so"}]
    assert findings(rows, tokenizer=tokenizer) == {"unknown-token": 1, "lossy": 1}


def jaccard(one, other, size=16):
    """The similarity of two texts, from all of their windows."""
    sets = [{text.encode()[i : i + size] for i in range(len(text.encode()) - size + 1)} for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_near_rows_are_those_of_a_high_similarity():
    """The oracle is the similarity itself, of all windows: beyond 0.9 nearly all are found, below 0.6 nearly none."""
    draw = random.Random(1)
    pairs = []
    for i in range(400):
        words, rate = said(i, 80).split(), draw.choice((0.003, 0.01, 0.04, 0.15))
        other = [draw.choice(WORDS) if draw.random() < rate else word for word in words]
        pairs.append((" ".join(words), " ".join(other)))
    near = Near()
    near.add([text for pair in pairs for text in pair])
    found = {row // 2 for row, _ in near.pairs()}
    assert all(row // 2 == earlier // 2 for row, earlier in near.pairs()), "texts of two pairs are not alike"
    sure = {i for i, pair in enumerate(pairs) if jaccard(*pair) > 0.9}
    far = {i for i, pair in enumerate(pairs) if jaccard(*pair) < 0.6}
    assert len(sure) > 100
    assert len(far) > 30
    assert len(found & sure) > 0.97 * len(sure)
    assert len(found & far) < 0.05 * len(far)


def test_what_all_prompts_say_makes_no_row_near():
    """A long instruction before every short question is no similarity."""
    rows = [f"{said(0, 150)} {said(i + 1, 12)}" for i in range(300)]
    near = Near()
    near.add(rows)
    assert near.pairs() == []


def test_rows_are_near_however_they_come():
    rows = [said(i, 60) for i in range(150)]
    rows += [changed(row) for row in rows[::10]]
    whole, single = Near(), Near()
    whole.add(rows)
    for row in rows:
        single.add([row])
    assert whole.pairs() == single.pairs()
    assert {*whole.pairs()} <= {(150 + i, 10 * i) for i in range(15)}
    assert len(whole.pairs()) >= 14


def test_nothing_of_a_row_is_in_what_was_found():
    rows = forms.read_rows([{"prompt": f"write to {EMAIL}, {CARD}, {PHONE}", "completion": said(3)}] * 2)
    gate = Gate(bases.tokenizer())
    gate.see(rows)
    told = gate.findings()
    assert {found.kind for found in told.found} == {"duplicate", "e-mail", "card-number", "phone-number"}
    shown = json.dumps(told.as_dict()) + "".join(map(str, told.found))
    assert not any(secret in shown for secret in (EMAIL, CARD, PHONE, "ann", "4111"))


def test_every_kind_can_be_found():
    """Each kind of the table is planted in some test of this file."""
    assert {*KINDS} <= {word for word in KINDS if f'"{word}"' in Path(__file__).read_text("utf-8")}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return bases.directory(tmp_path_factory.mktemp("gate") / "base")


def test_a_run_learns_the_same_whatever_is_checked(base, tmp_path):
    rows = [*bases.rows(24), *bases.rows(2)]
    files = []
    for check in ("off", "warn"):
        inlay.train(
            inlay.load(base),
            rows,
            output=tmp_path / check,
            check=check,
            max_steps=3,
            method=inlay.Lora(r=2),
            progress=False,
        )
        files.append((tmp_path / check / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]
    with pytest.raises(DataError, match="rows say what an earlier row says"):
        inlay.train(inlay.load(base), rows, output=tmp_path / "error", check="error", max_steps=3, progress=False)
    assert not (tmp_path / "error").exists()


def test_train_says_what_was_found(base, tmp_path, capsys):
    path = bases.jsonl(
        tmp_path / "rows.jsonl", [*bases.rows(24), *bases.rows(1), {"prompt": f"write {EMAIL}", "completion": "ok"}]
    )
    status, _, err = run(capsys, "train", base, path, "--output", tmp_path / "new", "--max-steps", 1)
    assert status == 0
    assert "check     1 rows say what an earlier row says: rows.jsonl:25" in err
    assert "1 rows have e-mail addresses: rows.jsonl:26" in err
    assert EMAIL not in err


def test_a_file_is_checked_and_mended(base, tmp_path, capsys):
    held = bases.jsonl(tmp_path / "held.jsonl", sound(2, 300))
    bad = [{"prompt": "x", "completion": ""}, {"messages": [{"role": "wizard", "content": "x"}]}, {"promt": "x"}]
    rows = [
        *sound(210),
        *bad,
        *sound(2, 300),
        *sound(1),
        {"prompt": f"write {EMAIL}", "completion": "ok", "lang": "en"},
    ]
    path = bases.jsonl(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "out.jsonl"
    status, printed, err = run(
        capsys, "data", "check", path, "--model", base, "--eval-data", held, "--fix", out, "--max-length", 900, "--json"
    )
    assert status == 1, err
    told = json.loads(printed.splitlines()[-1])
    assert {kind: found["rows"] for kind, found in told["found"].items()} == {
        "unreadable": 2, "untrainable": 1, "evaluated": 2, "duplicate": 1, "unused-key": 1, "e-mail": 1,
    }  # fmt: skip
    assert told["dropped"] == {"unreadable": 2, "untrainable": 1, "evaluated": 2, "duplicate": 1}
    assert [json.loads(line) for line in out.read_text("utf-8").splitlines()] == [*sound(210), rows[-1]]
    assert "left as they are: unused-key, e-mail" in err
    assert "wizard" in err
    assert EMAIL not in err + printed
    status, printed, err = run(capsys, "data", "check", out, "--model", base, "--eval-data", held, "--max-length", 900)
    assert status == 0, err
    assert run(capsys, "data", "check", out, "--model", base, "--check", "error")[0] == 1
    assert run(capsys, "data", "check", path, "--model", base, "--fix", out)[0] == 1, "nothing is overwritten"


def test_rows_of_other_tasks_are_checked_too(base, tmp_path, capsys):
    rows = [{"text": said(i), "label": "yes"} for i in range(25)] + [{"text": said(3), "label": "no"}]
    path = bases.jsonl(tmp_path / "rows.jsonl", rows)
    status, printed, err = run(
        capsys, "data", "check", path, "--model", base, "--task", "sequence-classification", "--json"
    )
    assert status == 0, err
    assert json.loads(printed.splitlines()[-1])["found"]["contradiction"]["rows"] == 2


def test_rows_are_shown_with_what_is_trained_cut_and_ended(base, tmp_path, capsys):
    rows = [
        {"prompt": "say 1", "completion": "it is 1"},
        {"prompt": "x", "completion": ""},
        {"prompt": "say", "completion": "a" * 40},
    ]
    path = bases.jsonl(tmp_path / "rows.jsonl", rows)
    status, out, err = run(capsys, "data", "show", path, "--model", base, "--max-length", 30)
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0] == "rows.jsonl:1 (15 tokens, 8 trained on, ends with </s>)"
    assert lines[1] == "  <s>say 1⏎[[it is 1</s>]]"
    assert "can't be trained on" in lines[2]
    assert "16 more than --max-length: left out" in lines[3]
    assert lines[4].startswith("  <s>say⏎[[aaa")
    assert lines[4].endswith("a]]~~aaaaaaaaaaaaaaa</s>~~")
    status, out, _ = run(capsys, "data", "show", path, "--model", base, "--rows", 1, "--skip", 2, "--json")
    assert [row["source"] for row in json.loads(out.splitlines()[-1])["rows"]] == ["rows.jsonl:3"]


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("gsm8k/train.jsonl", {}),
        ("tinystories-sample/train.jsonl", {"mojibake": 20}),
        ("medquad/valid.jsonl", {"near-duplicate": 16, "contradiction": 14}),
    ],
)
def test_what_is_found_in_real_data_is_there(name, most):
    """Each of these was looked at: quotes of stories were decoded wrongly, answers on relatives of a disease are alike."""
    rows = forms.read_rows(SHARED / "data" / name)
    gate = Gate(bases.tokenizer())
    gate.see(rows)
    assert {found.kind: found.num_rows for found in gate.findings().found} == most
