"""What all requests share: the base, its adapters, the worker, and how a request becomes answers."""

import asyncio
import contextlib
import dataclasses
import functools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from inlay.base.base import Base
from inlay.errors import CapacityError, ConfigError, UnknownNameError, explain
from inlay.generation.blocks import SIZE
from inlay.generation.sampling import Sampling
from inlay.generation.sequence import Request
from inlay.http import tools
from inlay.http.access import Access, Caller
from inlay.http.bodies import Drawn
from inlay.http.metrics import Metrics
from inlay.serve import grammar
from inlay.serve.answers import Answer, Group, Way
from inlay.serve.registry import Registry
from inlay.serve.slots import Slots, Version, added_up
from inlay.serve.worker import Worker


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """What one server takes on."""

    max_open: int = 256
    """Answers that are under way or wait, at a time."""

    max_new_tokens: int = 4096
    """Tokens of an answer."""

    max_body_bytes: int = 8_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for beside prompts and drawing."""

    num_logprobs: int | None = None
    prompt_logprobs: int | None = None
    form: tuple[grammar.Kind, Any] | None = None
    keeps_tokens: bool = True


class Service:
    """A base that is served."""

    def __init__(self, base: Base, worker: Worker, slots: Slots, *, access: Access, registry: Registry, bounds: Bounds):
        self.base, self.worker, self.slots = base, worker, slots
        self.access, self.registry, self.bounds = access, registry, bounds
        self.started = int(time.time())
        self.name = base.checkpoint.name
        self.base_digest = base.fingerprint.weights
        self.texts, self.loads, self.forms = (ThreadPoolExecutor(1, f"inlay-{n}") for n in ("texts", "loads", "forms"))
        """Templates and tokenizers, files of adapters, grammars: each one after the other, beside the loop."""
        self.metrics = Metrics(self._gauges())

    def close(self) -> None:
        """Begin nothing more beside the loop."""
        for pool in (self.texts, self.loads, self.forms):
            pool.shutdown(wait=False, cancel_futures=True)

    @functools.cached_property
    def call_form(self) -> tools.CallForm | None:
        """See `inlay.http.tools`."""
        return tools.form_of(self.base.tokenizer)

    @property
    def answers(self) -> list[str]:
        """What this base can be asked for, as `/v1/models` says it."""
        return [*["chats", "completions"] * (self.worker.engine is not None), *["embeddings"] * self.base.spec.pools]

    def named(self, model: str, caller: Caller) -> str | None:
        """The adapter that a request names, which its caller may see; None: the plain base.

        **Raises:**

        - `UnknownNameError`: there is none, as far as the caller can see.
        """
        is_base = model == self.name
        name = None if is_base else model.removeprefix(f"{self.name}:")
        if not caller.sees(name) or (name is not None and name not in self.slots):
            found = f"{model!r}; GET /v1/models lists those that there are"
            raise UnknownNameError(explain("there is no model of that name", found=found))
        return name

    def shares(self, model: str, adapters: Mapping[str, float] | None, caller: Caller) -> dict[str, float]:
        """The adapters that a request names, each with its weight; none: the plain base.

        **Raises:**

        - `UnknownNameError`: see `named`.
        - `ConfigError`: it names an adapter as its model and others beside, one twice, or the base among them.
        """
        name = self.named(model, caller)
        if adapters is None:
            return {} if name is None else {name: 1.0}
        if name is not None:
            do = f'"model": "{self.name}"'
            raise ConfigError(explain("a sum of adapters is asked for by the model of the base", found=model, do=do))
        named = [self.named(each, caller) for each in adapters]
        found = {each: weight for each, weight in zip(named, adapters.values(), strict=True) if each is not None}
        if len(found) < len(named):
            do = "other names, each once"
            raise ConfigError(
                explain("a sum is of adapters, each of which stands there once", found=", ".join(adapters), do=do)
            )
        return found

    @contextlib.asynccontextmanager
    async def taken(self, shares: Mapping[str, float]) -> AsyncIterator[Version | None]:
        """Within the block adapters are taken, and loaded first where they are not: as one, times their weights.

        **Raises:** what `Slots.acquire` and `inlay.serve.slots.added_up` do.
        """
        with contextlib.ExitStack() as held:
            versions: list[Version] = []
            for name in shares:
                versions.append(await self._taken(name))
                held.callback(self.slots.release, versions[-1])
            is_sum = len(versions) > 1 or any(weight != 1 for weight in shares.values())
            parts = list(zip(versions, shares.values(), strict=True))
            yield added_up(parts) if is_sum else versions[0] if versions else None

    async def _taken(self, name: str) -> Version:
        if (version := self.slots.taken(name)) is not None:
            return version
        loading = asyncio.get_running_loop().run_in_executor(self.loads, self.slots.acquire, name)
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(self._give_back)
            raise

    def _give_back(self, loading: "asyncio.Future[Version]") -> None:
        if not loading.cancelled() and loading.exception() is None:
            self.slots.release(loading.result())

    async def apart(self, function: Callable[..., Any], *given: Any, **settings: Any) -> Any:
        """What `function` returns, computed beside the loop."""
        call = functools.partial(function, *given, **settings)
        return await asyncio.get_running_loop().run_in_executor(self.texts, call)

    def digests(self, version: Version | None) -> dict[str, str | None]:
        """What an answer is of."""
        return {"base_digest": self.base_digest, "adapter_digest": version and version.digest}

    def check_answers(self, does: bool, what: str) -> None:
        """Refuse to do with this base what it was not loaded for.

        **Raises:**

        - `ConfigError`: see `does`.
        """
        if not does:
            wrong = f"this server does not answer {what}"
            raise ConfigError(explain(wrong, found=f"{self.name} was loaded for {self.base.task}"))

    async def ask(
        self, prompts: Sequence[Sequence[int]], version: Version | None, body: Drawn, wanted: Wanted, most: int | None
    ) -> Group:
        """Answers to prompts, `n` to each, those of one prompt together.

        **Arguments:**

        - `most`: the longest answer in tokens; what the base leaves, and the server allows, unless given.

        **Raises:**

        - `ConfigError`: a prompt leaves no room for the answer, or a form is none.
        - `CapacityError`: too many answers are under way.
        """
        n, form, base = body.n or 1, None, self.base
        await self.apart(base.check_unchanged)
        ends = self._ends(body, version)
        if wanted.form is not None:
            compiled = functools.partial(grammar.compiled, *wanted.form, base.tokenizer)
            form = await asyncio.get_running_loop().run_in_executor(self.forms, compiled)
        settings = {"sampling": _sampling(body), "stops": ends, "adapter": version and version.adapter}
        settings |= {"num_logprobs": wanted.num_logprobs, "prompt_logprobs": wanted.prompt_logprobs}
        lengths = [self._new_tokens(len(prompt), version, most) for prompt in prompts]
        self._check_room(n * len(prompts))
        seed = secrets.randbits(62) if body.seed is None else body.seed
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
        way = Way(stops=tuple(filter(None, stop)), ends=ends, keeps_tokens=wanted.keeps_tokens)
        answers = []
        for tokens, length in zip(prompts, lengths, strict=True):
            for number in range(n):
                constraint = None if form is None else grammar.Guide(form, sorted(ends))
                drawn = {"seed": (seed + number + 2**63) % 2**64 - 2**63, "constraint": constraint}
                request = Request(tokens=tuple(tokens), max_new_tokens=length, **settings, **drawn)
                answers.append(Answer(self.worker, request, base.tokenizer, way))
        return Group(answers)

    def _check_room(self, num_answers: int) -> None:
        """Refuse more answers than there may be now, or ever."""
        most, num_open = self.bounds.max_open, self.worker.num_open
        if num_answers > most:
            raise ConfigError(explain("too many answers to one request", found=f"{num_answers:,}, at most {most:,}"))
        if num_open + num_answers > most:
            found = f"{num_open} answers under way, and {num_answers} more; at most {most}"
            raise CapacityError(explain("the server is busy", found=found, do="ask again later"))

    def _ends(self, body: Drawn, version: Version | None) -> tuple[int, ...]:
        own = version.stop_ids if version is not None else self.base.stop_ids()
        count = len(self.base.tokenizer)
        given = {*(body.stop_token_ids or ()), *map(int, body.logit_bias or ())}
        if wrong := sorted(token for token in given if token >= count):
            found = f"{wrong[0]}; the vocabulary has {count:,}"
            raise ConfigError(explain("there is no such token", found=found, do="POST /tokenize shows those of a text"))
        return tuple(dict.fromkeys([*(body.stop_token_ids or ()), *(() if body.ignore_eos else own)]))

    def _new_tokens(self, num_prompt: int, version: Version | None, most: int | None) -> int:
        """The longest answer behind a prompt of so many tokens."""
        engine, base = self.worker.engine, self.base
        assert engine is not None, "`check_answers` was asked"
        num_prompt += version.adapter.num_virtual if version is not None else 0
        rooms = [engine.blocks.count * SIZE + 1, *([base.max_length] if base.max_length is not None else [])]
        room = min(rooms) - num_prompt
        wanted = most if most is not None else min(self.bounds.max_new_tokens, max(room, 1))
        if wanted > min(room, self.bounds.max_new_tokens):
            found = f"{num_prompt:,} tokens and {wanted:,} new ones; at most {min(rooms):,} together"
            found += f", {self.bounds.max_new_tokens:,} of them new"
            raise ConfigError(
                explain("prompt and answer are too long", found=found, do="a shorter prompt, or a smaller max_tokens")
            )
        return wanted

    def _gauges(self) -> dict[str, tuple[str, Callable[[], float]]]:
        slots, engine = self.slots, self.worker.engine
        found: dict[str, tuple[str, Callable[[], float]]] = {
            "inlay_adapters_registered": ("Adapters that can be asked for.", lambda: len(slots)),
            "inlay_adapters_loaded": ("Adapters in memory.", lambda: len(slots.loaded())),
            "inlay_adapters_bytes": ("Bytes of those.", lambda: slots.num_bytes),
            "inlay_steps": ("Steps of the engine.", lambda: self.worker.num_steps),
            "inlay_step_errors": ("Steps that failed.", lambda: self.worker.num_errors),
        }
        if engine is not None:
            blocks, scheduler = engine.blocks, engine.scheduler
            found["inlay_sequences_running"] = ("Answers under way.", lambda: len(scheduler.running))
            found["inlay_sequences_waiting"] = ("Answers that wait for their turn.", lambda: len(scheduler.waiting))
            found["inlay_cache_blocks"] = ("Blocks of the cache.", lambda: blocks.count)
            found["inlay_cache_blocks_used"] = ("Those in use.", lambda: blocks.count - blocks.num_free)
        return found


def _sampling(body: Drawn) -> Sampling:
    """How tokens are drawn: as OpenAI's interface says where nothing is said. What leaves tokens out of a draw changes nothing
    where the likeliest is taken."""
    temperature = 1.0 if body.temperature is None else body.temperature
    some = {} if not temperature else {"top_p": body.top_p, "top_k": max(body.top_k or 0, 0), "min_p": body.min_p}
    given: dict[str, Any] = {
        "temperature": temperature,
        **some,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": {int(token): value for token, value in (body.logit_bias or {}).items()},
    }
    sampling = Sampling(**{name: value for name, value in given.items() if value is not None})
    if problems := sampling.problems():
        raise ConfigError(explain("answers can't be drawn with these settings", found=[found for found, _ in problems]))
    return sampling
