"""Answer prompts with the base and any number of adapters."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from inlay import formats, screen
from inlay.base.base import Base
from inlay.errors import ConfigError, FormatError, UnknownNameError, explain
from inlay.generation.generate import check_sampling
from inlay.generation.sampling import GENERATED_BY, Sampling
from inlay.options import purpose
from inlay.options.flags import OnBase, Signed
from inlay.options.types import repeated

BATCH = 32
"""As many prompts are answered at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(OnBase, Signed):
    """One batch: every prompt with every adapter, each row naming its own."""

    prompt: repeated(str) = ()  # type: ignore[valid-type]  # an annotation built by a function
    """What to answer; may be given several times."""

    prompts: str | None = None
    """A file with a prompt in every line; - reads them from stdin."""

    system: str | None = None
    """A system message in front of every prompt."""

    raw: bool = False
    """Continue prompts as they stand, without the chat template, as is done for adapters that were trained on plain text."""

    adapter: repeated(str) = ()  # type: ignore[valid-type]  # likewise
    """An adapter, as a directory or name@version, or 'none' for the plain base, which answers where none is given; given
    several times, all answer in one batch."""

    max_new_tokens: int | None = None
    """Longest answer in tokens; 256, or what the model's positions leave, unless given."""

    temperature: float = 0.0
    """0 takes the likeliest token; above 0 tokens are drawn."""

    top_p: float = 1.0
    """Draw only from the likeliest tokens that have this much of the probability together."""

    top_k: int = 0
    """Draw only from this many of the likeliest tokens; 0: from all."""

    repetition_penalty: float = 1.0
    """Above 1, tokens that are in the text already become less likely."""

    seed: int = 0
    """For drawing tokens."""

    force: bool = False
    """Use adapters that were trained on another base: answers will be wrong in ways that look right."""

    def __post_init__(self) -> None:
        check_raw(self.raw, self.system)
        check_sampling(self.max_new_tokens, self._sampling, self.seed)

    @property
    def _sampling(self) -> Sampling:
        return Sampling(**{name: getattr(self, name) for name in GENERATED_BY})

    def run(self) -> int:
        """Print the answers: alone where there is one, labelled where there are several."""
        prompts = self._asked()
        self.check_signed(self.adapter)
        purpose.check_answers("generate", self.model, self.adapter)
        base = self.load()
        names = attach_all(base, self.adapter, self.force, self.require_signed_by) or [None]
        rows = [(prompt, name) for prompt in prompts for name in names]
        results: list[dict[str, str | None]] = []
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            for (prompt, name), answer in zip(some, self._answers(base, some), strict=True):
                if len(rows) > 1:
                    print(f"--- {name or 'base'}: {prompt}")
                print(answer.strip(), flush=True)
                results.append({"prompt": prompt, "adapter": name, "answer": answer})
        if self.json:
            screen.emit({"answers": results, "base_fingerprint": base.fingerprint.weights})
        return 0

    def _asked(self) -> list[str]:
        """The prompts of the flags."""
        prompts = [*self.prompt, *(_lines(self.prompts) if self.prompts else ())]
        if not prompts:
            found = "no --prompt" if self.prompts is None else f"{self.prompts}: no line with text"
            raise ConfigError(explain("there is nothing to answer", found=found, do="--prompt 'Once upon a time'"))
        return prompts

    def _answers(self, base: Base, rows: list[tuple[str, str | None]]) -> list[str]:
        return base.generate(
            [prompt for prompt, _ in rows],
            [name for _, name in rows],
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            raw=self.raw or None,
            system=self.system,
            **{name: getattr(self, name) for name in GENERATED_BY},
        )


def check_raw(raw: bool, system: str | None) -> None:
    """Refuse a system message without a template to put it into.

    **Raises:**

    - `ConfigError`: there is one, and the prompts are raw.
    """
    if raw and system:
        found = f"--raw with --system {system!r}"
        raise ConfigError(
            explain("a raw prompt has no place for a system message", found=found, do="leave one of them out")
        )


def _lines(source: str) -> list[str]:
    """The lines of a file, or of stdin, that hold text.

    **Raises:**

    - `UnknownNameError`: there is no such file.
    - `FormatError`: it is not UTF-8.
    """
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).expanduser().read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found, do = f"{source}: {error}", "iconv -t utf-8"
        raise FormatError(explain("this file is not UTF-8 text", found=found, do=do)) from None
    except OSError as error:
        found, do = f"{source}: {error.strerror}", "--prompts FILE, or - for stdin"
        raise UnknownNameError(explain("the prompts can't be read", found=found, do=do)) from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def attach_all(base: Base, sources: tuple[str, ...], force: bool, require: Sequence[Path] = ()) -> list[str | None]:
    """Attach adapters under the names of their directories; 'none' is the plain base. The names, in order.

    **Arguments:**

    - `require`: public keys of which one must have signed each.
    """
    names: list[str | None] = []
    for source in sources:
        name = None if source == "none" else Path(source).resolve().name
        if name in base.adapters:
            name = source  # two directories of one name: the whole path tells them apart
        if name is not None and name not in base.adapters:
            base.attach(formats.fetched(source, require) if require else source, name, force=force)
        names.append(name)
    return names


Command = Generate
