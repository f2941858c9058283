"""What a base can't be, or be asked for: said before `transformers` or torch fail at it in words of their own."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from inlay.errors import CompatibilityError, ConfigError, FormatError, explain, few
from inlay.fields import MISFIT, fit, shown
from inlay.io.checkpoint import Checkpoint
from inlay.methods.contract import Method
from inlay.modules.frozen import table_size
from inlay.tasks.contract import TaskSpec

AUTO = "auto"
"""The device that is there."""

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""The generation settings of a checkpoint that are followed: the roles of tokens."""


def chosen_device(name: str, memory: int | None = None) -> str:
    """The device of this name, of which `memory` bytes may be used; of 'auto', a CUDA device if there is one, else the CPU.

    **Raises:**

    - `ConfigError`: this machine, or this build of torch, does not have it; or it is the CPU, whose memory is not limited.
    """
    found = _device(name)
    if memory is not None and found == "cpu":
        raise ConfigError(
            explain(
                "the CPU has no device memory that could be limited",
                found="device_memory with device cpu",
                do="--device cuda",
            )
        )
    return found


def _device(name: str) -> str:
    if name == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here = ["cpu"]
    if kind is not None:
        here += [kind.type, *(f"{kind.type}:{i}" for i in range(torch.accelerator.device_count()))]
    if name not in here:
        raise ConfigError(
            explain("there is no such device here", found=f"{name!r}; here are {', '.join(here)}", do="--device cpu")
        )
    return name


def check_special_tokens(model: Any, checkpoint: Checkpoint) -> None:
    """Refuse generation settings whose special tokens are no numbers of tokens."""
    settings = getattr(model, "generation_config", None)  # a model that does not generate has none
    given = {name: getattr(settings, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    strange = {name: value for name, value in given.items() if fit(value, tuple[int, ...] | None) is MISFIT}
    if strange:
        raise FormatError(
            explain(
                "a special token of this model is no number of a token",
                found=[
                    f"{checkpoint.directory / 'generation_config.json'}: {n}={shown(v)}" for n, v in strange.items()
                ],
                do="fetch it again, or remove the file: the tokenizer has these numbers too",
            )
        )


def keep_special_tokens_(model: Any) -> None:
    """Leave the model the special tokens of its generation settings, and nothing else.

    `transformers` lets the file decide whatever a call leaves open: beams, penalties, strings that stop, n-grams that may not
    come again. A call that asks for the likeliest token would get another one.
    """
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        model.generation_config = type(settings)(**{name: getattr(settings, name, None) for name in SPECIAL_TOKENS})


def check_method(method: Method, spec: TaskSpec) -> None:
    """Refuse virtual tokens outside causal language models: nothing there takes them out of the rows again.

    **Raises:**

    - `ConfigError`: the method puts virtual tokens in front of the rows.
    """
    if method.lengthens_rows and not spec.continues:
        raise ConfigError(
            explain(
                "this task has no place for virtual tokens",
                found=f"{type(method).__name__} with task {spec.name}",
                do="--method lora",
            )
        )


def check_labels(source: str, spec: TaskSpec, labels: Sequence[str], own: Sequence[str] | None) -> None:
    """Refuse names of classes for a task that has none, others than those of a head that the base at `source` brings, and none
    where it brings no head.

    **Arguments:**

    - `own`: the names that go with the base's own head; None: it has no such head.

    **Raises:**

    - `ConfigError`: this is so.
    """
    if spec.heads and not labels and own is None:
        raise ConfigError(
            explain(
                "this base has no head of its own, so that the names of the classes have to be said",
                found=f"{source}: task {spec.name}, no labels",
                do=f'inlay.load(MODEL, task="{spec.name}", labels=["no", "yes"])',
            )
        )
    if labels and not spec.heads:
        raise ConfigError(
            explain(
                f"{spec.name} has no classes",
                found=f"labels={list(labels)}",
                do=f'inlay.load(MODEL, task="{spec.name}")',
            )
        )
    if labels and own is not None and tuple(labels) != tuple(own):
        raise ConfigError(
            explain(
                "this base has a head of its own, for other classes",
                found=f"labels={list(labels)}; those of {source} are {list(own)}",
                do=f'inlay.load(MODEL, task="{spec.name}"): base.labels has the names',
            )
        )


def num_tokens(model: Any) -> int:
    """How many tokens the model has embeddings for."""
    return table_size(model.get_input_embeddings())[0]


def watch_tokens_(model: Any, tokenizer: Any, title: str) -> None:
    """Where the tokenizer has tokens that the model has no embeddings for, let the model refuse them by name."""
    count = num_tokens(model)
    if len(tokenizer) <= count:
        return

    def check(module: Any, given: Any) -> None:
        strange = sorted({int(number) for number in given[0][given[0] >= count].flatten()})
        if strange:
            raise beyond_table(tokenizer, strange, count, title)

    model.get_input_embeddings().register_forward_pre_hook(check)


def check_rows(base: Any, examples: Iterable[Any]) -> None:
    """Refuse rows, as a task prepares them, with tokens that the model has no embeddings for.

    **Raises:**

    - `CompatibilityError`: there are some; the message names the tokens and the first row.
    """
    count, found = num_tokens(base.model), dict[str, set[int]]()
    for example in examples if len(base.tokenizer) > count else ():
        beyond = {number for number in example.input_ids if number >= count}
        if beyond:
            found[getattr(example, "source", None) or example.row.source] = beyond
    if found:
        more = f" and {len(found) - 1} more rows" if len(found) > 1 else ""
        raise beyond_table(
            base.tokenizer, sorted(set[int]().union(*found.values())), count, f"{next(iter(found))}{more}"
        )


def beyond_table(tokenizer: Any, strange: Sequence[int], count: int, where: str) -> CompatibilityError:
    """The error for tokens that the model has no embeddings for."""
    names = [f"{shown(tokenizer.convert_ids_to_tokens(number))} ({number})" for number in strange]
    return CompatibilityError(
        explain(
            "this tokenizer has tokens that the model has no embeddings for",
            found=f"{where}: {', '.join(few(names))}; the model has {count:,}, from 0 on",
            do="the tokenizer that the model was made with, or the model with its vocabulary resized: "
            "resize_token_embeddings of transformers",
        )
    )


def check_start(model: Any, checkpoint: Checkpoint) -> None:
    """Refuse an encoder with a decoder whose configuration does not say what a decoder starts with.

    **Raises:**

    - `FormatError`: it can't make its decoder's input of an answer's tokens.
    """
    shifted = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shifted is None or not getattr(model.config, "is_encoder_decoder", False):
        return
    try:
        shifted(labels=torch.tensor([[1, 1]]))
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        wrong, key = "this model does not say which token its decoder starts with", "decoder_start_token_id"
        said = f"{key} is {getattr(model.config, key, None)} ({next(iter(str(error).splitlines()), '')})"
        do = f'set "{key}" there: 0, its padding, for T5; 2 for BART'
        raise FormatError(explain(wrong, found=f"{checkpoint.directory / 'config.json'}: {said}", do=do)) from None


def check_layers(model: torch.nn.Module, unexpected: Iterable[str], checkpoint: Checkpoint) -> None:
    """Refuse a configuration with fewer layers than its checkpoint holds.

    **Raises:**

    - `FormatError`: tensors of further members of a list of the model's are there.
    """
    counts = {path: len(part) for path, part in model.named_modules() if isinstance(part, torch.nn.ModuleList)}
    prefix = getattr(model, "base_model_prefix", "")
    beyond: dict[str, set[int]] = {}
    for name in unexpected:
        parts = name.split(".")
        for i, part in enumerate(parts):
            path = ".".join(parts[:i])
            found = next((p for p in (path, f"{prefix}.{path}", path.removeprefix(f"{prefix}.")) if p in counts), None)
            if part.isdigit() and found is not None and int(part) >= counts[found]:
                beyond.setdefault(found, set()).add(int(part))
    if beyond:
        raise FormatError(
            explain(
                "this checkpoint holds more layers than its configuration says",
                found=[
                    f"{checkpoint.directory}: {path} has {counts[path]} layers, the files {max(numbers) + 1}"
                    for path, numbers in beyond.items()
                ],
                do='the "num_hidden_layers" that config.json had, or fetch it again',
            )
        )


def check_fractions(checkpoint: Checkpoint, quantized: tuple[str, ...]) -> None:
    """Refuse weights that are whole numbers where nothing says what they are multiplied with.

    **Arguments:**

    - `quantized`: how the names of the weights begin that the configuration says to be quantised.

    **Raises:**

    - `FormatError`: there are others.
    """
    whole = [
        f"{checkpoint.directory}: {name} of dtype {entry.dtype}"
        for name, entry in checkpoint.tensors.items()
        if name.endswith(".weight")
        and not name.startswith(quantized)
        and entry.dtype[0] in "IUB"
        and entry.dtype != "BF16"
    ]
    if whole:
        raise FormatError(
            explain(
                "this checkpoint holds whole numbers for weights, and does not say how they are quantised",
                found=few(whole),
                do="the same model in bfloat16 or float32, and --quantize int8",
            )
        )
