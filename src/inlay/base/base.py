"""A base: a frozen language model of `transformers`, mapped from its files, and the adapters on it.

The weights are mapped from safetensors and shared between processes, in the dtype that the file has; computed with is another
where that is faster or asked for (`inlay.modules.frozen`). They never change: an adapter is beside them, not in them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from inlay.base import origin, pooling, predict
from inlay.base.answers import answers, minds_padding
from inlay.base.causality import check_causal
from inlay.base.checks import check_generates, check_method, check_sampling, num_tokens, watch_tokens_
from inlay.base.heads import draw_, with_heads, without_unknown_heads
from inlay.base.residual import residual
from inlay.base.sampling import Sampling
from inlay.core.pooling import MEAN
from inlay.errors import ConfigError, explain
from inlay.formats.contract import AdapterFile
from inlay.io import meaning
from inlay.io.checkpoint import Checkpoint
from inlay.io.fingerprint import Fingerprint, check_unchanged, fingerprint
from inlay.methods import hooks
from inlay.methods.contract import Method
from inlay.model import targets
from inlay.model.adapter import Adapter
from inlay.model.attach import Attached, Rows
from inlay.model.fresh import Calibration
from inlay.model.prompts import virtual_ids
from inlay.modules.frozen import QuantizedLinear
from inlay.tasks.contract import DEFAULT_NEW_TOKENS, DEFAULT_TASK, TaskSpec
from inlay.text import stops
from inlay.text.template import prompt_ids


class Base(Attached):
    """A frozen language model, its tokenizer, and the adapters on it.

    **Attributes:**

    - `model`: the `transformers` model, in evaluation mode.
    - `tokenizer`: its tokenizer.
    - `checkpoint`: the files it is mapped from.
    - `dtype`: what it computes in.
    - `is_mapped`: the weights are the file's own pages, not a copy.
    - `original`: the files that it was quantised from, where that was done on loading.
    - `scheme`: how its linear maps are quantised, by name; None where they are not.
    - `spec`: the task that it was loaded for; `task` is the name of that.
    - `heads`: the modules of the task that every adapter trains whole; `fresh_heads`: those that the checkpoint lacks.
    - `labels`: the names of the classes, by number; empty where the task has none.
    """

    def __init__(
        self,
        model: Any,
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
        super().__init__(model)
        self.model = model
        self.tokenizer = tokenizer
        self._tokenize = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        self.checkpoint, self.original = checkpoint, original
        self.dtype = dtype
        self.is_mapped = is_mapped
        self.scheme = scheme
        self.spec = spec
        self.task = spec.name
        self.heads, self.fresh_heads = heads
        config = model.config
        self.router.takes_padding = lambda: self.takes_padding
        watch_tokens_(model, tokenizer, checkpoint.name)
        self.labels = tuple(config.id2label[i] for i in range(config.num_labels)) if spec.heads else ()

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
    def title(self) -> str:
        return self.checkpoint.name

    @property
    def num_weights(self) -> int:
        """How many weights the base has, tied ones once, quantised ones as they were before."""
        layers = (module for module in self.model.modules() if isinstance(module, QuantizedLinear))
        quantized = sum(layer.in_features * layer.out_features for layer in layers)
        return quantized + sum(parameter.numel() for parameter in self.model.parameters())

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
    def base_name(self) -> str:
        return self.checkpoint.reference

    @property
    def task_type(self) -> str:
        return self.spec.task_type

    @property
    def about_task(self) -> dict[str, Any]:
        about: dict[str, Any] = {"name": self.task} | ({"labels": list(self.labels)} if self.labels else {})
        about |= {} if self.pooling == MEAN else {"pooling": self.pooling}
        return {} if self.task == DEFAULT_TASK else {"task": about}

    @cached_property
    def pooling(self) -> str:
        """How a text's states become its vector, where the base was loaded for that; see `inlay.base.pooling`."""
        return pooling.mode_of(self.checkpoint) if self.spec.pools else MEAN

    def fresh(
        self, method: Method, name: str = "default", seed: int = 0, calibration: Calibration | None = None
    ) -> Adapter:
        """A new adapter, its tensors drawn from `seed`, and not attached; see `Attached.fresh`.

        The heads of the task are trained with it, whole; those that the checkpoint lacks are drawn from `seed` too.
        """
        check_method(method, self.spec)
        adapter = super().fresh(
            with_heads(method, self.heads, self.maps), name, seed, calibration or self._calibration(method)
        )
        draw_(adapter.params, self.fresh_heads, self.model.config, seed)
        return adapter

    def _calibration(self, method: Method) -> Calibration | None:
        how = hooks.starts(method)
        if how is None or how.source != "residual":
            return None
        if self.original is None:
            raise ConfigError(
                explain(
                    f"{method.describe()} has nothing to start from: what this base lost when it was quantised is not known",
                    found=f"{self.checkpoint.name}: "
                    + ("not quantised" if self.scheme is None else "quantised, and its original is not known"),
                    do="the model that it was made from, with --quantize nf4",
                )
            )
        original, prefix = self.original, getattr(self.model, "base_model_prefix", "")
        return lambda path: residual(self.maps[path], original, path, prefix)

    def _known(self, file: AdapterFile) -> AdapterFile:
        check_method(file.method, self.spec)
        return dataclasses.replace(file, method=without_unknown_heads(file.method, self.layout.modules, self.spec))

    @property
    def about_base(self) -> dict[str, Any]:
        known = {"name": self.checkpoint.name, **self.fingerprint.as_dict()}
        return {"base": known, meaning.KEY: self.computes}

    @torch.no_grad()
    def logits(self, input_ids: Tensor, rows: Rows, attention_mask: Tensor | None = None) -> Tensor:
        """The model's logits (rows, t, vocab) with these adapters."""
        with self.using(rows):
            return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

    def check_causal(self) -> None:
        """Refuse a base whose tokens see what comes after them.

        **Raises:**

        - `CompatibilityError`: see `inlay.base.causality`.
        """
        with self.using(None):
            check_causal(self.model, self.dtype, {*self.tokenizer.all_special_ids, self.pad_token}, self.title)

    def generate(
        self,
        prompts: Sequence[str | Sequence[dict[str, str]]],
        adapters: Rows | None = None,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        streamer: Any = None,
        raw: bool | None = None,
        system: str | None = None,
    ) -> list[str]:
        """Continue every prompt, each row with the adapter that it names.

        **Arguments:**

        - `prompts`: texts, or conversations as lists of messages; either is rendered with the chat template, exactly as
          training renders it. A text for an adapter that was trained on texts is taken as it is.
        - `adapters`: a name for all rows, or one name or None per row; None: the plain base.
        - `max_new_tokens`: longest answer; `DEFAULT_NEW_TOKENS`, or what the positions leave, unless given.
        - `temperature`: 0 takes the likeliest token; above, tokens are drawn with `seed`.
        - `top_p`, `top_k`, `repetition_penalty`: see `inlay.base.sampling.Sampling`.
        - `streamer`: a `transformers` streamer, for one row.
        - `raw`: True takes texts as they are, False renders them, whatever the adapters were trained on.
        - `system`: what the system says before each prompt.

        **Returns:** the new text of each row, without special tokens, up to one of the tokens that end an answer of the row's
        adapter (`stop_ids`).
        """
        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=repetition_penalty)
        check_sampling(max_new_tokens, sampling, seed)
        if isinstance(prompts, str):
            raise ConfigError(explain("prompts is no list", found=f"{prompts!r}", do=f"[{prompts!r}]"))
        if not isinstance(adapters, str | None) and len(adapters) != len(prompts):
            raise ConfigError(
                explain(
                    "rows and names of their adapters differ in number",
                    found=f"{len(prompts)} rows, {len(adapters)} adapters",
                )
            )
        check_generates(self.spec)
        self.check_causal()
        if not prompts:
            return []
        names = [adapters] * len(prompts) if isinstance(adapters, str | None) else adapters
        rows = [
            prompt_ids(self.tokenizer, prompt, raw=self.asks_raw(prompt, name, raw, system), system=system)
            for prompt, name in zip(prompts, names, strict=True)
        ]
        entries = [None if name is None else self.get(name) for name in names]
        rows = [virtual_ids(entry) + row for entry, row in zip(entries, rows, strict=True)]
        settings = {"max_new_tokens": self._new_tokens(max(map(len, rows)), max_new_tokens), "streamer": streamer}
        stops, pad = [self.stop_ids(name) for name in names], self.pad_token
        generator = torch.Generator(targets.device_of(self.model)).manual_seed(seed)
        settings |= {"logits_processor": sampling.processors(generator), **sampling.arguments()}
        said = answers(self, rows, names, stops, pad, **settings)
        self.check_unchanged()
        return self.tokenizer.batch_decode(said, skip_special_tokens=True)

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
        record = {} if adapter is None else self.get(adapter).record
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
        return is_text and adapter is not None and stops.is_raw(self.get(adapter).record)

    @property
    def pad_token(self) -> int:
        """The token that rows are filled up with: the model's, the tokenizer's, or one that ends an answer."""
        config, count = self.model.config.get_text_config(), num_tokens(self.model)
        choices = (getattr(config, "pad_token_id", None), self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
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

    def _new_tokens(self, num_tokens: int, wanted: int | None) -> int:
        """How many tokens may follow a prompt of `num_tokens`."""
        room = DEFAULT_NEW_TOKENS if self.max_length is None else self.max_length - num_tokens
        if room < (wanted or 1):
            raise ConfigError(
                explain(
                    "prompt and answer are longer than this model's positions",
                    found=f"{num_tokens} + {wanted or 1} tokens, at most {self.max_length}",
                    do=f"--max-new-tokens {room}" if room > 0 else "a shorter prompt",
                )
            )
        return wanted or min(DEFAULT_NEW_TOKENS, room)

    def _check_origin(self, name: str, file: AdapterFile, force: bool) -> None:
        origin.check_task(name, file.record, self.spec, self.labels)
        if file.record and not force:
            origin.check_pooling(name, file.record, self.pooling)
        origin.check(name, file, self, force)
