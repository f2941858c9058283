"""Prompts into answers: a function over a base, each row under the adapter that it names.

rows of tokens = virtual tokens of the row's adapter + the prompt, as training renders it
answers        = the new tokens of each, up to one that ends its adapter's answers (`inlay.generation.answers`)
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from inlay.errors import ConfigError, explain
from inlay.generation.answers import answers
from inlay.generation.sampling import Sampling
from inlay.generation.sequence import Request
from inlay.model.batch import Rows
from inlay.tasks.contract import DEFAULT_NEW_TOKENS, Loaded, TaskSpec
from inlay.text.template import prompt_ids

Prompt = str | Sequence[dict[str, str]]
"""A text, or a conversation as a list of messages, each with `role` and `content`."""


@runtime_checkable  # the tests check it where they check shapes
class Streamer(Protocol):
    """What hears an answer while it is made: any streamer of `transformers`, such as `TextStreamer`."""

    def put(self, value: Any) -> object:
        """Take the prompt's tokens, then each new one: integers (1, t) or (1,)."""
        ...

    def end(self) -> object:
        """The answer is whole."""
        ...


@runtime_checkable  # the tests check it where they check shapes
class Answering(Loaded, Protocol):
    """What is asked of a base here; `inlay.base.base.Base` is one."""

    spec: TaskSpec

    def stop_ids(self, adapter: str | None = None) -> list[int]: ...

    def asks_raw(
        self, prompt: Prompt, adapter: str | None, raw: bool | None = None, system: str | None = None
    ) -> bool: ...

    def check_unchanged(self) -> None: ...

    def check_weights(self) -> None: ...


def generate(
    base: Answering,
    prompts: Sequence[Prompt],
    adapters: Rows = None,
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling,
    seed: int | Sequence[int] = 0,
    streamer: Streamer | None = None,
    raw: bool | None = None,
    system: str | None = None,
) -> list[str]:
    """The new text of each row; see `inlay.base.base.Base.generate`."""
    for one in [seed] if isinstance(seed, int) else seed:
        check_sampling(max_new_tokens, sampling, one)
    names, seeds = names_of(prompts, adapters), _seeds(seed, len(prompts))
    _check_generates(base.spec)
    base.check_causal()
    if not prompts:
        return []
    rows = [
        prompt_ids(base.tokenizer, prompt, raw=base.asks_raw(prompt, name, raw, system), system=system)
        for prompt, name in zip(prompts, names, strict=True)
    ]
    entries = [None if name is None else base.adapters[name] for name in names]
    num_tokens = max(len(row) + (entry.num_virtual if entry else 0) for entry, row in zip(entries, rows, strict=True))
    how = dict[str, Any](sampling=sampling, max_new_tokens=_new_tokens(base, num_tokens, max_new_tokens))
    requests = [
        Request(tokens=tuple(row), adapter=entry, stops=tuple(base.stop_ids(name)), seed=own, **how)
        for row, entry, name, own in zip(rows, entries, names, seeds, strict=True)
    ]
    said = answers(base, requests, streamer)
    base.check_unchanged()
    return base.tokenizer.batch_decode(said, skip_special_tokens=True)


def names_of(prompts: Sequence[Any], adapters: Rows) -> Sequence[str | None]:
    """The adapter of each prompt.

    **Raises:**

    - `ConfigError`: they differ in number, or there is one prompt where a list of them is expected.
    """
    if isinstance(prompts, str):
        raise ConfigError(explain("prompts is no list", found=f"{prompts!r}", do=f"[{prompts!r}]"))
    if isinstance(adapters, str | None):
        return [adapters] * len(prompts)
    if len(adapters) != len(prompts):
        found = f"{len(prompts)} rows, {len(adapters)} adapters"
        wrong = "rows and names of their adapters differ in number"
        raise ConfigError(explain(wrong, found=found, do="one name for all rows"))
    return adapters


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """The seed of each row: its own, or one that follows that of the row before.

    **Raises:**

    - `ConfigError`: rows and seeds differ in number.
    """
    given = [seed + number for number in range(count)] if isinstance(seed, int) else seed
    if len(given) != count:
        found = f"{count} rows, {len(given)} seeds"
        raise ConfigError(explain("rows and their seeds differ in number", found=found, do="one seed for all rows"))
    return [one % 2**63 for one in given]


def _new_tokens(base: Answering, num_tokens: int, wanted: int | None) -> int:
    """How many tokens may follow a prompt of `num_tokens`."""
    room = DEFAULT_NEW_TOKENS if base.max_length is None else base.max_length - num_tokens
    if room < (wanted or 1):
        raise ConfigError(
            explain(
                "prompt and answer are longer than this model's positions",
                found=f"{num_tokens} + {wanted or 1} tokens, at most {base.max_length}",
                do=f"--max-new-tokens {room}" if room > 0 else "a shorter prompt",
            )
        )
    return wanted or min(DEFAULT_NEW_TOKENS, room)


def check_sampling(max_new_tokens: int | None, sampling: Sampling, seed: int) -> None:
    """Refuse an answer of no tokens, and what no token can be drawn with.

    **Raises:**

    - `ConfigError`: a setting is out of its range, or has no effect beside the others.
    """
    problems = sampling.problems()
    if max_new_tokens is not None and max_new_tokens < 1:
        problems.append((f"max_new_tokens={max_new_tokens}, not above 0", "--max-new-tokens 64"))
    if not -(2**63) <= seed < 2**63:
        problems.append((f"seed={seed}, not of 64 bits", "--seed 1"))
    if problems:
        found, hints = zip(*problems, strict=True)
        raise ConfigError(explain("an answer can't be made with these settings", found=found, do=" ".join(hints)))
    sampling.check()


def _check_generates(spec: TaskSpec) -> None:
    """Refuse to continue prompts with a base that was loaded for something else.

    **Raises:**

    - `ConfigError`: it was.
    """
    if not spec.continues:
        found = f"this base was loaded for {spec.name}"
        raise ConfigError(
            explain(
                "this base can't continue prompts",
                found=found,
                do="base.predict(rows); inlay.load(MODEL) without task= continues prompts",
            )
        )
