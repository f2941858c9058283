"""Hostile input from a seed: a good base, adapter, rows and settings, one of them changed at random, and a command that reads it.

`Worker` runs the commands in a process of its own, one after the other, and says how each ended; `check` says what is wrong with
how: a traceback, a failure that nobody foresaw, no end, or more memory than any refusal needs. `conserved` does the same for rows
of which something is lost.
"""

import copy
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support import conserved, forks

SECONDS, MEMORY = 60, 2_000_000_000
"""What a command on these small files may take, with the start of its libraries: the clock's time and the growth of memory."""

ODD = [
    None, True, False, 0, -1, 1, 2, 3.5, 10**6, 10**9, 2**63, 10**30, 1e308, -1e-320, float("nan"), float("inf"),
    "", "x", "lora", "\x1b[2J\x1b]0;owned\x07", "\ud800", "\u202e", "a" * 5000, "../../etc/passwd", "~", ".*", "(", "(a|a)*(a|a)*x",
    "q_proj", "all-linear", [], [[]], {}, {"": ""}, [None], ["q_proj", 5], {"q_proj": -1}, {"a": {"b": {"c": []}}}, list(range(300)),
    {f"k{i}": i for i in range(300)}, "{{ 1/0 }}", "1" * 5000,
]  # fmt: skip


def changed(rng, value):
    """A JSON value with one or a few of its parts replaced, removed, added or moved."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        holders = [holder for holder in _holders(value) if holder]
        if not holders:
            return copy.deepcopy(rng.choice(ODD))
        holder = rng.choice(holders)
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        what = rng.randrange(6)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[rng.choice(["x", "", "q_proj", "new\nkey", "\x1b[1m", "r" * 2000])] = copy.deepcopy(rng.choice(ODD))
        elif what == 2 and isinstance(holder[key], int | float):
            holder[key] = holder[key] * rng.choice([-1, 0, 2, 10**3, 10**9, 10**18, 0.5])
        elif what == 3 and isinstance(holder[key], str):
            holder[key] = holder[key] * rng.choice([0, 2, 1000])
        elif what == 4:
            holder[key] = [holder[key]] * rng.choice([1, 2, 100])
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))
    return value


def _holders(value):
    if isinstance(value, dict | list):
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from _holders(part)


def written(rng, value):
    """A JSON text of a value, sometimes broken."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    what = rng.randrange(12)
    if what == 0:
        return text[: rng.randrange(len(text) + 1)]
    if what == 1:
        at = rng.randrange(len(text) + 1)
        return text[:at] + bytes(rng.randrange(256) for _ in range(3)) + text[at:]
    if what == 2 and text.startswith(b"{") and len(text) > 2:
        return b'{"r": 1, "r": 2, ' + text[1:]
    if what == 3:
        return b"[" * 100_000
    return text


def json_file(name, command):
    """Changes of one JSON file."""

    def kind(rng, place):
        path = place / name
        path.write_bytes(written(rng, changed(rng, json.loads(path.read_text("utf-8")))))
        return command(rng, place)

    return kind


def tensors_file(name, command):
    """Changes of one safetensors file: of its header, of its bytes, of its size."""

    def kind(rng, place):
        path = place / name
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
        what = rng.randrange(6)
        if what == 0:
            path.write_bytes(data[: rng.randrange(len(data))])
        elif what == 1:
            path.write_bytes(
                rng.choice([0, 1, 2**31, 2**62, length - 1, length + 1, length + 8]).to_bytes(8, "little") + data[8:]
            )
        elif what == 2:
            at = rng.randrange(len(rest) - 8)
            text = data[8 : 8 + length]
            path.write_bytes(
                data[:8] + text + rest[:at] + rng.choice([b"\xff" * 8, b"\x00\x00\xc0\x7f" * 2]) + rest[at + 8 :]
            )
        elif what == 3:
            with path.open("r+b") as file:
                file.truncate(len(data) + rng.choice([1, 8, 5 * 10**9]))
        else:
            text = written(rng, changed(rng, header))
            path.write_bytes(len(text).to_bytes(8, "little") + text + rest)
        return command(rng, place)

    return kind


LEAVES = [
    "{{ m.content }}", "{{ m['role'] }}", "{{ eos_token }}", "<|im_end|>", "\n", "{{ 'ab' * 10000000 }}", "{{ x.y.z }}", "{% set x = messages %}",
    "{% set ns.x = ns.x ~ ns.x %}", "{{ ns.x }}", "{{ f(1) }}", "{{ messages | tojson }}", "{{ 1 / 0 }}", "{{ m.content.format(m) }}", "\x1b[2J",
    "{{ raise_exception('no') }}", "{% include 'x' %}", "{{ '%99999999d' | format(1) }}", "{{ add_generation_prompt }}", "{{ messages[0].content }}",
    "{% if add_generation_prompt %}assistant:{% endif %}", "{{ 9 ** 9 ** 9 }}", "{{ lipsum(9999) }}", "{{ self }}", "{% break %}", "{{", "{% endfor %}",
]  # fmt: skip
BLOCKS = [
    ("{% for m in messages %}", "{% endfor %}"), ("{% for m in messages %}", "{% endfor %}"), ("{% for i in range(99999) %}", "{% endfor %}"),
    ("{% if m.role == 'user' %}", "{% else %}?{% endif %}"), ("{% generation %}", "{% endgeneration %}"), ("{% macro f(a) %}", "{% endmacro %}"),
    ("{% set ns = namespace(x='a') %}", ""), ("{% set y %}", "{% endset %}{{ y }}"), ("{% filter upper %}", "{% endfilter %}"),
]  # fmt: skip


def _template(rng, depth=0):
    parts = []
    for _ in range(rng.randrange(1, 4)):
        if depth < 3 and rng.random() < 0.5:
            start, end = rng.choice(BLOCKS)
            parts.append(start + _template(rng, depth + 1) + end)
        else:
            parts.append(rng.choice(LEAVES[:5] if rng.random() < 0.6 else LEAVES))
    return "".join(parts)


def template(rng, place):
    """A chat template of random blocks."""
    (place / "base" / "chat_template.jinja").write_text(_template(rng), "utf-8")
    return generate(rng, place)


VALUES = [
    "hi",
    "",
    " ",
    None,
    3,
    True,
    [],
    {},
    ["a", None],
    {"a": 1},
    "\ud800",
    "\x1b[2J",
    "a" * 3000,
    1e308,
    float("nan"),
    "</s>",
    "日本",
]
KEYS = [
    "prompt",
    "completion",
    "text",
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "role",
    "content",
    "from",
    "value",
    "tools",
    "label",
    "weight",
    "system",
]


def _row(rng):
    good = rng.choice(
        [
            {"prompt": "say 3", "completion": "three"},
            {"text": "three is 3"},
            {"messages": [{"role": "user", "content": "say 3"}, {"role": "assistant", "content": "three"}]},
            {"conversations": [{"from": "human", "value": "say 3"}, {"from": "gpt", "value": "three"}]},
            {"instruction": "say", "input": "3", "output": "three"},
        ]
    )
    row = changed(rng, good) if rng.random() < 0.4 else dict(good)
    if rng.random() < 0.3 and isinstance(row, dict):
        row[rng.choice(KEYS)] = rng.choice(VALUES)
    return row


def rows(rng, place):
    """Rows of a few layouts, some of them changed."""
    some = [_row(rng) for _ in range(rng.choice([1, 3, 12]))]
    if rng.random() < 0.5:
        some = some[:1] * 12
    form = rng.randrange(3)
    if form == 0:
        path = place / "r.json"
        path.write_bytes(written(rng, some))
    elif form == 1:
        path = place / "r.csv"
        names, wide = rng.sample(KEYS, k=2) if rng.random() < 0.5 else ["prompt", "completion"], rng.random() < 0.1
        lines = [rng.choices(VALUES, k=2 + (wide and rng.random() < 0.1)) for _ in range(12)]
        path.write_text(
            "\n".join(",".join(f'"{part}"' for part in line) for line in [names, *lines]), "utf-8", "replace"
        )
    else:
        path = place / "r.jsonl"
        path.write_bytes(
            b"\n".join(json.dumps(row).encode() if rng.random() < 0.95 else written(rng, row) for row in some)
        )
    return ["train", place / "base", path, "--output", place / "new", "--max-steps", 1, "--r", 1, "--max-length", 64]


SETTINGS = {
    "r": [2, "4", -1, "[*a]", "&a [x, x]", "1e999", "!!set {a}"],
    "lora_alpha": [8, ".nan", "0x10", "&a [*a, *a]"],
    "target_modules": ["all-linear", "q_proj", "[q_proj, v_proj]", "'.*q_proj'", "'(('", "{a: 1}", "&a [x]", "[*a]"],
    "layers_to_transform": ["0", "0-1", "0-9999999999", "[0, 1]", "x", "-1"],
    "method": ["lora", "dora", "full", "prefix", "[lora]", "~", "none"],
    "max_steps": [1, 0, "yes", 2.5, "2026-01-01"],
    "batch_size": [2, 0, 10**9],
    "learning_rate": ["1e-4", "1e309", "-1"],
    "rank_pattern": ["{q_proj: 1}", "{'(': 1}", "{}", "[1]"],
    "seed": [1, -1, 2**64],
    "<<": ["{r: 3}", "*a", "[]"],
    "\t": ["["],
    "typo": [1],
}


def settings(rng, place):
    """A configuration file, most of whose lines are good."""
    names = rng.sample(list(SETTINGS), k=rng.randrange(1, 6))
    chosen = {name: SETTINGS[name][0] if rng.random() < 0.6 else rng.choice(SETTINGS[name]) for name in names}
    (place / "run.yaml").write_text("\n".join(f"{name}: {value}" for name, value in {"max_steps": 1, **chosen}.items()))
    return ["train", place / "base", place / "rows.jsonl", "--output", place / "new", "--config", place / "run.yaml"]


def generate(rng, place):
    return ["generate", place / "base", "--prompt", "say 3", "--max-new-tokens", 1]


def attach(rng, place):
    if rng.random() < 0.3:
        return ["inspect", place / "good"]
    return [*generate(rng, place), "--adapter", place / "good"]


def use_base(rng, place):
    return rng.choice(
        [
            generate(rng, place),
            ["plan", place / "base"],
            ["merge", place / "base", place / "good", "--output", place / "new"],
        ]
    )


KINDS = {
    "adapter_config.json": json_file("good/adapter_config.json", attach),
    "inlay.json": json_file("good/inlay.json", attach),
    "adapter tensors": tensors_file("good/adapter_model.safetensors", attach),
    "config.json": json_file("base/config.json", use_base),
    "generation_config.json": json_file("base/generation_config.json", generate),
    "tokenizer.json": json_file("base/tokenizer.json", generate),
    "tokenizer_config.json": json_file("base/tokenizer_config.json", generate),
    "base tensors": tensors_file("base/model.safetensors", use_base),
    "template": template,
    "rows": rows,
    "settings": settings,
}  # fmt: skip


def case(home, folder, seed):
    """A changed copy of `home` in `folder`, and the kind and the command of this seed."""
    rng = random.Random(seed)
    kind = list(KINDS)[seed % len(KINDS)]
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(home, folder)
    return kind, [str(argument) for argument in KINDS[kind](rng, folder)]


def problem(status, err, seconds, growth):
    """What is wrong with how a command ended; empty where it is right."""
    if status is None:
        return f"no end within {SECONDS} s, or the process died"
    if "Traceback" in err:
        return "a traceback"
    if status not in (0, 1, 2):
        return f"status {status}"
    if growth > MEMORY:
        return f"{growth / 1e9:.1f} GB of memory"
    if status == 1 and "error: " not in err:
        return "no word of what is wrong"
    unforeseen = (
        "Inlay failed",
        "failed on what it was given",
        "own code, in transformers, failed",
        "not enough memory for this",
    )
    return next((f"unforeseen: {words}" for words in unforeseen if words in err), "")


def make(home):
    """The good files in `home`: a base, rows, and an adapter trained on them."""
    from inlay.cli import main
    from tests.support import bases

    bases.directory(home / "base")
    bases.jsonl(home / "rows.jsonl", bases.rows(40))
    train = ["train", home / "base", home / "rows.jsonl", "--output", home / "good", "--max-steps", "2", "--r", "2"]
    assert main(list(map(str, train))) == 0


def search(home, folder, seconds, seed=0, say=lambda text: None):
    """What is wrong with the cases from `seed` on, as many as `seconds` have room for; and how many ended how."""

    worker, found, ends, stop = Worker(), [], {}, time.monotonic() + seconds
    try:
        while time.monotonic() < stop:
            kind, arguments = case(home, folder / "case", seed)
            status, err, took, growth = worker.run(arguments)
            ends[kind, status] = ends.get((kind, status), 0) + 1
            if wrong := problem(status, err, took, growth):
                found.append(f"seed {seed} ({kind}, inlay {arguments[0]}): {wrong}\n{err}")
                say(found[-1])
            seed += 1
    finally:
        worker.close()
    return found, ends


class Worker:
    """A process that runs commands, another one after it had to be killed; `planted` is code that it runs first."""

    def __init__(self, planted=""):
        self._process, self._planted = None, planted

    def run(self, arguments):
        """(status, stderr, seconds, growth of memory); the status is None where there was no end."""
        if self._process is None or self._process.poll() is not None:
            pipe, code = subprocess.PIPE, "from tests.support import fuzz; fuzz._serve()"
            self._process = forks.Process(code, self._planted, stdin=pipe, stdout=pipe)
            self._process.stdout.readline()  # it is there
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], SECONDS)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self.close()
            return None, "", SECONDS, 0
        return tuple(json.loads(line))

    def close(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None


def _peak():
    """The most memory since the last `_reset`."""
    return next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )


def _reset():
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _serve():
    import contextlib
    import io
    import traceback

    import inlay.cli

    exec(sys.argv[1])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin.buffer:
        arguments = json.loads(line)
        out, err = io.StringIO(), io.StringIO()
        before, start = _reset(), time.monotonic()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = inlay.cli.main(arguments)
            except SystemExit as exit_:
                status = exit_.code
            except BaseException:
                status = traceback.print_exc() or 99
        answers.write(
            json.dumps([status, err.getvalue()[-20_000:], time.monotonic() - start, _peak() - before]).encode() + b"\n"
        )
        answers.flush()


def report(seconds="60", seed=""):
    """Search for so many seconds, and print what was tried and found."""
    seed = int(seed or time.time() % 10**9)
    print(f"from seed {seed} on, for {seconds} s, a quarter of them for rows that may lose nothing", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        make(home)
        found, ends = search(home, Path(folder), 0.75 * float(seconds), seed, say=lambda text: print(text, flush=True))
    lost, num_rows, num_refused = conserved.search(
        0.25 * float(seconds), seed, say=lambda text: print(text, flush=True)
    )
    for (kind, status), number in sorted(ends.items(), key=str):
        print(f"{kind:<24} exit {status}: {number:>6,}")
    print(f"{'rows':<24} prepared: {num_rows - num_refused:>6,}\n{'':<24} refused: {num_refused:>7,}")
    print(f"{sum(ends.values()) + num_rows:,} cases, {len(found) + len(lost)} findings")
    return bool(found or lost)


if __name__ == "__main__":
    sys.exit(report(*sys.argv[1:]))
