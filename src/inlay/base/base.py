"""A base: a frozen language model of `transformers`, mapped from its files, and the adapters on it.

The weights are mapped from safetensors and shared between processes, in the dtype that the file has; computed with is another
where that is faster or asked for (`inlay.modules.frozen`). They never change: an adapter is beside them, not in them.
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inlay import tasks
from inlay.base import origin, pooling, predict
from inlay.base.causality import check_causal
from inlay.base.checks import check_method, num_tokens, watch_tokens_
from inlay.base.heads import draw_, labels_of, with_heads
from inlay.base.residual import residual
from inlay.core.pooling import MEAN
from inlay.errors import ConfigError, explain
from inlay.formats.contract import AdapterFile
from inlay.generation.generate import Prompt, Streamer, generate
from inlay.generation.padded import minds_padding
from inlay.generation.sampling import Sampling
from inlay.io import meaning
from inlay.io.checkpoint import Checkpoint
from inlay.io.fingerprint import Fingerprint, check_unchanged, fingerprint
from inlay.layout.fresh import Calibration
from inlay.methods import hooks
from inlay.methods.contract import Method
from inlay.model.adapter import Adapter
from inlay.model.adapter_set import AdapterSet
from inlay.model.batch import Generators, Rows
from inlay.modules.frozen import num_weights
from inlay.tasks.contract import DEFAULT_TASK, TaskSpec
from inlay.text import stops

if TYPE_CHECKING:  # importing it takes seconds
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Base:
    """A frozen language model, its tokenizer, and the adapters on it.

    **Attributes:**

    - `model`: the `transformers` model, in evaluation mode.
    - `tokenizer`: its tokenizer.
    - `adapters`: the adapters on it, by name; `layout`, `maps`, `linears` and `head` are what these see of the model.
    - `checkpoint`: the files it is mapped from.
    - `dtype`: what it computes in.
    - `is_mapped`: the weights are the file's own pages, not a copy.
    - `original`: the files that it was quantised from, where that was done on loading.
    - `scheme`: how its linear maps are quantised, by name; None where they are not.
    - `spec`: the task that it was loaded for; `task` is the name of that.
    - `heads`: the modules of the task that every adapter trains whole; `fresh_heads`: those that the checkpoint lacks.
    - `labels`: the names of the classes, by number; empty where the task has none.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"

    def __init__(
        self,
        model: Any,  # by their names the tests could not check them
        tokenizer: Any,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        is_mapped: bool,
        scheme: str | None,
        *,
        spec: TaskSpec,
        heads: tuple[list[str], list[str]],
        original: Checkpoint | None = None,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.checkpoint, self.original = checkpoint, original
        self.dtype, self.is_mapped, self.scheme = dtype, is_mapped, scheme
        self.spec, self.task = spec, spec.name
        self.heads, self.fresh_heads = heads
        self.labels = labels_of(model.config) if spec.heads else ()
        watch_tokens_(model, tokenizer, checkpoint.name)
        self.adapters = AdapterSet(
            model,
            title=checkpoint.name,
            reference=checkpoint.reference,
            task_type=spec.task_type,
            heads=spec.heads,
            tokenize=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        )
        self.layout, self.maps, self.linears = self.adapters.layout, self.adapters.maps, self.adapters.linears
        self.head, self.router = self.adapters.head, self.adapters.router
        self.router.takes_padding = lambda: self.takes_padding

    def __repr__(self) -> str:
        adapters = ", ".join(self.adapters) or "none"
        return f"Base({self.describe()}; adapters: {adapters}; active: {self.active})"

    def describe(self) -> str:
        """The base in one line: name, weights, dtype, size on disk."""
        size = sum(file.stat().st_size for file in self.checkpoint.files)
        dtype, stored = (str(d).removeprefix("torch.") for d in (self.dtype, self.checkpoint.dtype))
        stored = self.scheme or stored
        how = f"over mapped {stored}" if stored != dtype else "mapped"
        how = how if self.is_mapped else "converted" if self.scheme is None else f"over {stored}"
        millions = self.num_weights / 1e6
        weights = f"{millions:,.1f}M weights" if millions >= 1 else f"{1000 * millions:,.0f}k weights"
        return f"{self.checkpoint.name} · {weights} · {dtype} {how} ({size / 1e6:,.1f} MB on disk)"

    @property
    def num_weights(self) -> int:
        """How many weights the base has, tied ones once, quantised ones as they were before."""
        return num_weights(self.model)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What the base is: digests of its weights, tokenizer and chat template."""
        return fingerprint(self.checkpoint)

    def check_unchanged(self) -> None:
        """Refuse what was computed with files that are others by now: a mapped base is what its files are.

        **Raises:**

        - `FormatError`: they changed since they were opened; see `inlay.io.fingerprint.check_unchanged`.
        """
        known = self.__dict__.get("fingerprint")  # if it was asked for before
        check_unchanged(self.checkpoint, known and known.weights)

    @cached_property
    def computes(self) -> dict[str, Any]:
        """What the base computes beside its weights; see `inlay.io.meaning`."""
        return meaning.computes(self.checkpoint.directory, self.tokenizer) | {"ends": sorted(self.end_tokens)}

    @property
    def about_base(self) -> dict[str, Any]:
        """What an adapter's record says of its base."""
        return origin.about(self)

    @property
    def about_task(self) -> dict[str, Any]:
        """What an adapter's record says of the task, where it is another than the usual one."""
        about: dict[str, Any] = {"name": self.task} | ({"labels": list(self.labels)} if self.labels else {})
        about |= {} if self.pooling == MEAN else {"pooling": self.pooling}
        brought = tasks.TABLE.origin(self.task)
        needs = {"needs": {"task": str(brought)}} if brought else {}
        return {} if self.task == DEFAULT_TASK else {"task": about, **needs}

    @cached_property
    def pooling(self) -> str:
        """How a text's states become its vector, where the base was loaded for that; see `inlay.base.pooling`."""
        return pooling.mode_of(self.checkpoint) if self.spec.pools else MEAN

    @property
    def active(self) -> Rows:
        """Which adapter the rows take now; set it to switch. Within `using` it is that of this thread or task."""
        return self.adapters.active

    @active.setter
    def active(self, rows: Rows) -> None:
        self.adapters.active = rows

    def get(self, name: str) -> Adapter:
        """The attached adapter of that name: `adapters[name]`."""
        return self.adapters[name]

    def using(
        self, rows: Rows, *, brings: bool = False, generator: Generators = None
    ) -> contextlib.AbstractContextManager[None]:
        """Within the block the rows take these adapters; see `inlay.model.adapter_set.AdapterSet.using`."""
        return self.adapters.using(rows, brings=brings, generator=generator)

    def attach(
        self, source: str | Path | Method, name: str | None = None, *, force: bool = False, seed: int = 0
    ) -> Adapter:
        """Attach an adapter and make it active: one on disk or on the hub, or a new one of a method.

        **Arguments:**

        - `source`: a directory or hub name; or a method such as `inlay.Lora(r=16)`.
        - `name`: what to call it; the directory's name, or 'default', unless given.
        - `force`: attach it even though it was trained on another base.
        - `seed`: for the tensors of a new adapter.

        **Raises:**

        - `UnknownNameError`, `FormatError`: see `inlay.formats.read`.
        - `CompatibilityError`: it was trained on other weights or another tokenizer, or does not fit this model.
        - `ConfigError`: the name is taken by another adapter than this, or the method is not for this task.
        """
        if isinstance(source, Method):
            return self.create(source, name or "default", seed)
        return self.adapters.attach(source, name, check=functools.partial(self.check, force=force))

    def read(self, source: str | Path, name: str, *, force: bool = False) -> Adapter:
        """An adapter from disk or the hub, checked against this base and not attached; see `attach`."""
        return self.adapters.read(source, name, functools.partial(self.check, force=force))

    def check(self, name: str, file: AdapterFile, *, force: bool = False) -> None:
        """Refuse an adapter, by its outline, that was made for another task or base; for another base, unless `force`."""
        origin.check_task(name, file.record, self.spec, self.labels)
        if file.record and not force:
            origin.check_pooling(name, file.record, self.pooling)
        origin.check(name, file, self, force)
        check_method(file.method, self.spec)

    def create(
        self, method: Method, name: str = "default", seed: int = 0, calibration: Calibration | None = None
    ) -> Adapter:
        """Attach a new adapter and make it active; see `fresh`."""
        return self.put(self.fresh(method, name, seed, calibration))

    def put(self, adapter: Adapter) -> Adapter:
        """Attach an adapter whose tensors exist, and make it active; see `inlay.model.adapter_set.AdapterSet.put`."""
        return self.adapters.put(adapter)

    def swap(self, name: str, adapter: Adapter) -> Adapter:
        """Put `adapter` in the place of the one called `name`, or change nothing; returns the one that was there."""
        return self.adapters.swap(name, adapter)

    def detach(self, name: str) -> Adapter:
        """Take an adapter out, and return it; layers that no other adapter needs become the base's own again."""
        return self.adapters.detach(name)

    def parameters(self) -> list[Tensor]:
        """The tensors of the active adapter, set to collect gradients: what an optimiser takes."""
        return self.adapters.parameters()

    def save(self, name: str, directory: Path, record: Mapping[str, Any], *, form: str = "peft") -> None:
        """Write an attached adapter into `directory`, which exists, with what is known of the base and this record."""
        about = origin.about(self, self.adapters[name])
        self.adapters.save(name, directory, {**about, **self.about_task, **record}, form=form)

    def fresh(
        self, method: Method, name: str = "default", seed: int = 0, calibration: Calibration | None = None
    ) -> Adapter:
        """A new adapter, its tensors drawn from `seed`, and not attached; see `inlay.model.adapter_set.AdapterSet.fresh`.

        The heads of the task are trained with it, whole; those that the checkpoint lacks are drawn from `seed` too.
        """
        check_method(method, self.spec)
        adapter = self.adapters.fresh(
            with_heads(method, self.heads, self.maps), name, seed, calibration or self._calibration(method)
        )
        draw_(adapter.params, self.fresh_heads, self.model.config, seed)
        adapter.record = origin.begun(method)
        return adapter

    def _calibration(self, method: Method) -> Calibration | None:
        start = hooks.starts(method)
        if start is None or start.source != "residual":
            return None
        if self.original is None:
            wrong = (
                f"{method.describe()} has nothing to start from: what this base lost when it was quantised is not known"
            )
            how = "not quantised" if self.scheme is None else "quantised, and its original is not known"
            do = "the model that it was made from, with --quantize nf4"
            raise ConfigError(explain(wrong, found=f"{self.checkpoint.name}: {how}", do=do))
        original, prefix = self.original, getattr(self.model, "base_model_prefix", "")
        return lambda path: residual(self.maps[path], original, path, prefix)

    @torch.no_grad()
    def logits(self, input_ids: Tensor, rows: Rows, attention_mask: Tensor | None = None) -> Tensor:
        """The model's logits (rows, t, vocab) with these adapters."""
        with self.using(rows):
            return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

    def check_weights(self) -> None:
        """Raise a `FormatError` that names a weight of the base that is NaN; reads all files, unless that was done before."""
        _ = self.fingerprint

    def check_causal(self) -> None:
        """Refuse a base whose tokens see what comes after them, or with a weight that is seen to be NaN.

        **Raises:**

        - `CompatibilityError`, `FormatError`: see `inlay.base.causality`.
        """
        special = {*self.tokenizer.all_special_ids, self.pad_token}
        with self.using(None):
            check_causal(self.model, self.dtype, special, self.checkpoint.name, self.check_weights)

    def generate(
        self,
        prompts: Sequence[Prompt],
        adapters: Rows = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | Sequence[int] = 0,
        streamer: Streamer | None = None,
        raw: bool | None = None,
        system: str | None = None,
    ) -> list[str]:
        """Continue every prompt, each row with the adapter that it names.

        **Arguments:**

        - `prompts`: texts, or conversations as lists of messages; either is rendered as training renders it. A text for an
          adapter that was trained on texts is taken as it is.
        - `adapters`: a name for all rows, or one name or None per row; None: the plain base.
        - `max_new_tokens`: longest answer; `DEFAULT_NEW_TOKENS`, or what the positions leave, unless given.
        - `temperature`: 0 takes the likeliest token; above, tokens are drawn.
        - `seed`: of the first row's draws, each other row has the next; or one for every row.
        - `top_p`, `top_k`, `repetition_penalty`: see `inlay.generation.sampling.Sampling`.
        - `streamer`: a `transformers` streamer, for one row.
        - `raw`: True takes texts as they are, False renders them; `system`: what the system says before each prompt.

        **Returns:** the new text of each row, without special tokens, up to one of its adapter's `stop_ids`.

        **Raises:**

        - `ConfigError`: a setting is out of its range, the base is for another task, or a prompt leaves no room for an answer.
        - `UnknownNameError`: a row names an adapter that is not attached.
        - `FormatError`: a weight of the base is NaN, or no row's logits are numbers.
        """
        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=repetition_penalty)
        limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed, "streamer": streamer}
        return generate(self, prompts, adapters, sampling=sampling, raw=raw, system=system, **limits)

    def predict(
        self,
        rows: Sequence[str | Mapping[str, Any]],
        adapter: Rows = None,
        *,
        max_new_tokens: int | None = None,
    ) -> list[dict[str, Any]]:
        """What the base says of every row, by its task: a label, tags, a vector or an answer; see `inlay.base.predict`.

        **Arguments:**

        - `rows`: texts, or objects with the keys of the task, such as `text` and `text_pair`.
        - `adapter`: a name for all rows, or one name or None per row; None: the plain base.
        - `max_new_tokens`: longest answer, where the task has answers.

        **Raises:**

        - `DataError`: rows without what the task reads, or longer than the model's positions.
        - `ConfigError`: the plain base has no trained head for the task.
        """
        if isinstance(rows, str):
            raise ConfigError(explain("rows is no list", found=f"{rows!r}", do=f"[{rows!r}]"))
        return predict.predict(self, predict.prepare(self, rows), adapter, max_new_tokens)

    @property
    def end_tokens(self) -> list[int]:
        """The tokens that end a text: the tokenizer's, and those of the model's own generation settings."""
        settings = getattr(self.model, "generation_config", None)  # a model that does not generate has none
        configured = getattr(settings, "eos_token_id", None)
        ids = [self.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
        return list(dict.fromkeys(token for token in ids if token is not None))

    def stop_ids(self, adapter: str | None = None) -> list[int]:
        """The tokens that end an answer: `end_tokens`, and those that ended what the adapter was trained on.

        Without a record of them, as for the plain base, those that would end a turn of the chat template.
        """
        record = {} if adapter is None else self.adapters[adapter].record
        return list(dict.fromkeys([*self.end_tokens, *stops.stop_ids(self.tokenizer, record)]))

    def asks_raw(
        self,
        prompt: str | Sequence[dict[str, Any]],
        adapter: str | None,
        raw: bool | None = None,
        system: str | None = None,
    ) -> bool:
        """Whether a prompt is taken as it is, without the chat template: by default where the adapter was trained on texts."""
        if raw is not None:
            return raw
        is_text = isinstance(prompt, str) and not system
        return is_text and adapter is not None and stops.is_raw(self.adapters[adapter].record)

    @property
    def pad_token(self) -> int:
        """The token that rows are filled up with: the model's, the tokenizer's, or one that ends an answer."""
        config, names, count = self.model.config.get_text_config(), self.tokenizer, num_tokens(self.model)
        choices: Any = (getattr(config, "pad_token_id", None), names.pad_token_id, names.eos_token_id, 0)
        return next(number for number in choices if number is not None and 0 <= number < count)

    @cached_property
    def takes_padding(self) -> bool:
        """Rows are answered as they are alone where they are filled up beside longer ones."""
        with self.using(None):
            return not minds_padding(self.model, self.pad_token)

    @cached_property
    def max_length(self) -> int | None:
        """The most tokens that the model's positions allow, where it has a limit."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return limit if not isinstance(limit, int) else limit - self.layout.first_position(limit)
