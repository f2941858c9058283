"""`/v1/completions`: texts that are continued as they stand."""

from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from inlay.errors import ConfigError, explain
from inlay.generation.sequence import Logprob
from inlay.http.bodies import Completion
from inlay.http.chat import form_of
from inlay.http.exchange import answered
from inlay.http.service import Service, Wanted
from inlay.serve.answers import Answer, Group, Piece
from inlay.serve.slots import Version
from inlay.serve.words import Detokenizer
from inlay.text import template

MAX_TOKENS = 16
"""The longest answer where nothing is said, as OpenAI has it."""


async def complete(service: Service, body: Completion, request: Request) -> Response:
    """What goes on behind texts."""
    service.check_answers(service.worker.engine is not None, "completions")
    most = MAX_TOKENS if body.max_tokens is None else body.max_tokens
    if not most and not body.echo:
        raise ConfigError(explain("no token is asked for", found="max_tokens=0 without echo", do='"echo": true'))
    asks_prompt = body.logprobs if body.echo else None
    form = form_of(body, None)
    wanted = Wanted(num_logprobs=body.logprobs, prompt_logprobs=asks_prompt, form=form, keeps_tokens=most > 0)
    tokenizer = service.base.tokenizer

    async def begin(version: Version | None) -> tuple[Group, _Form]:
        prompts = [await service.apart(_ids, tokenizer, prompt) for prompt in _prompts(body)]
        group = await service.ask(prompts, version, body, wanted, max(most, 1))
        return group, _Form(tokenizer, prompts, body.n or 1, bool(body.echo))

    return await answered(service, request, body, begin)


def _prompts(body: Completion) -> list[str | list[int]]:
    prompt: Any = body.prompt
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


def _ids(tokenizer: Any, prompt: str | list[int]) -> list[int]:
    """The tokens of a prompt."""
    if isinstance(prompt, str):
        return template.prompt_ids(tokenizer, prompt, raw=True)
    if (largest := max(prompt)) >= len(tokenizer):
        raise ConfigError(explain("there is no such token", found=f"{largest}; the vocabulary has {len(tokenizer):,}"))
    return prompt


class _Form:
    """How a completion is written; see `inlay.http.exchange.Form`."""

    kind, prefix, chunk_kind = "text_completion", "cmpl", "text_completion"

    def __init__(self, tokenizer: Any, prompts: Sequence[Sequence[int]], n: int, echoes: bool):
        self._tokenizer, self._prompts, self._n = tokenizer, prompts, n
        self._echoes = echoes
        self.num_prompt = sum(map(len, prompts))

    def first(self, number: int, answer: Answer) -> dict[str, Any] | None:
        """The prompt, where it is repeated."""
        text, said = self._echo(number, answer)
        return self._choice(number, text, self._logprobs(said, answer)) if self._echoes else None

    def part(self, number: int, piece: Piece) -> dict[str, Any] | None:
        """What was said."""
        if not piece.text and not piece.said:
            return None
        shift = len(self._text(number)[0]) if self._echoes else 0
        said = [(one.logprob, one.start + shift) for one in piece.said]
        return self._choice(number, piece.text, _as_lists(self._tokenizer, said) if said else None)

    def last(self, number: int, answer: Answer) -> dict[str, Any]:
        """Why it is over."""
        return self._choice(number, "", None, answer.reason)

    def whole(self, number: int, answer: Answer) -> dict[str, Any]:
        """The text, behind that of the prompt where that is repeated."""
        text, said = self._echo(number, answer)
        said += [(one.logprob, one.start + len(text)) for one in answer.said]
        return self._choice(number, text + answer.text, self._logprobs(said, answer), answer.reason)

    def _text(self, number: int) -> tuple[str, list[int]]:
        """(The prompt's text, where that of each token begins)."""
        words, text, starts = Detokenizer(self._tokenizer), "", list[int]()
        for token in self._prompts[number // self._n]:
            starts.append(len(text))
            text += words.add(token)
        return text + words.end(), starts

    def _echo(self, number: int, answer: Answer) -> tuple[str, list[tuple[Logprob | int, int]]]:
        """(The prompt's text, its tokens with how likely they were and where they begin)."""
        if not self._echoes:
            return "", []
        text, starts = self._text(number)
        if answer.request.prompt_logprobs is None:
            return text, []
        first = self._prompts[number // self._n][0]
        return text, list(zip([first, *answer.prompt_logprobs], starts, strict=True))

    def _logprobs(self, said: list[tuple[Logprob | int, int]], answer: Answer) -> dict[str, Any] | None:
        return None if answer.request.num_logprobs is None else _as_lists(self._tokenizer, said)

    def _choice(
        self, number: int, text: str, logprobs: dict[str, Any] | None, reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _as_lists(tokenizer: Any, said: Sequence[tuple[Logprob | int, int]]) -> dict[str, Any]:
    """How likely tokens were, as completions have it; of the first of a prompt, given as its number, nothing is known."""
    tokens = [one if isinstance(one, int) else one.token for one, _ in said]
    known = [None if isinstance(one, int) else one for one, _ in said]
    return {
        "tokens": [tokenizer.decode([token]) for token in tokens],
        "token_logprobs": [None if one is None else one.value for one in known],
        "top_logprobs": [
            None if one is None else {tokenizer.decode([token]): value for token, value in one.top.items()}
            for one in known
        ],
        "text_offset": [start for _, start in said],
    }
