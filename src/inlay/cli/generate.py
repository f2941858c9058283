"""Answer a prompt with the base and any number of adapters."""

import dataclasses
from pathlib import Path

from inlay.cli import _screen
from inlay.cli._command import OnBase, repeated
from inlay.errors import ConfigError, explain
from inlay.model.base import Base
from inlay.model.checks import check_sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(OnBase):
    """One batch: every prompt with every adapter, each row naming its own."""

    prompt: repeated(str)  # type: ignore[valid-type]  # an annotation built by a function
    """What to answer; may be given several times."""

    adapter: repeated(str) = ()  # type: ignore[valid-type]  # likewise
    """An adapter directory, or 'none' for the plain base, which answers where none is given; given several times, all answer
    in one batch."""

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
        check_sampling(self.max_new_tokens, self.temperature, self.seed)

    def run(self) -> int:
        """Print the answers: alone where there is one, labelled where there are several."""
        if not self.prompt:
            raise ConfigError(
                explain("there is nothing to answer", found="no --prompt", do="--prompt 'Once upon a time'")
            )
        base = self.load()
        names = attach_all(base, self.adapter, self.force) or [None]
        rows = [(prompt, name) for prompt in self.prompt for name in names]
        answers = base.generate(
            [prompt for prompt, _ in rows],
            [name for _, name in rows],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
        )
        for (prompt, name), answer in zip(rows, answers, strict=True):
            if len(rows) > 1:
                print(f"--- {name or 'base'}: {prompt}")
            print(answer.strip())
        if self.json:
            results = [{"prompt": p, "adapter": n, "answer": a} for (p, n), a in zip(rows, answers, strict=True)]
            _screen.emit({"answers": results, "base_fingerprint": base.fingerprint.weights})
        return 0


def attach_all(base: Base, sources: tuple[str, ...], force: bool) -> list[str | None]:
    """Attach adapters under the names of their directories; 'none' is the plain base. The names, in order."""
    names: list[str | None] = []
    for source in sources:
        if source == "none":
            names.append(None)
            continue
        name = Path(source).resolve().name
        if name in base.adapters:
            name = source  # two directories of one name: the whole path tells them apart
        if name not in base.adapters:
            base.attach(source, name, force=force)
        names.append(name)
    return names


Command = Generate
