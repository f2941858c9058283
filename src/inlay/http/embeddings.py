"""`/v1/embeddings`: texts as vectors, of a base that was loaded for that."""

import asyncio
import base64
import struct
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from inlay.base import predict
from inlay.http.bodies import Embedding
from inlay.http.faults import reply
from inlay.http.metrics import NO_ADAPTER
from inlay.http.service import Service


async def embed(service: Service, body: Embedding, request: Request) -> Response:
    """A vector of length 1 for each text."""
    service.check_answers(service.base.spec.pools, "embeddings")
    texts = [body.input] if isinstance(body.input, str) else body.input
    async with service.taken(service.shares(body.model, None, request.state.caller)) as version:
        items = await service.apart(predict.prepare, service.base, texts)
        name = version and version.adapter.name
        said = await asyncio.wrap_future(service.worker.between(lambda: predict.predict(service.base, items, name)))
        await service.apart(service.base.check_unchanged)
        digests, adapter = service.digests(version), version.name if version is not None else NO_ADAPTER
    num_tokens = sum(len(item.ids) for item in items)
    service.metrics.prompt_tokens.labels(adapter).inc(num_tokens)
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens, **digests}
    request.state.facts.update(usage, adapter=adapter)
    write = _packed if body.encoding_format == "base64" else list
    data = [{"object": "embedding", "index": i, "embedding": write(row["vector"])} for i, row in enumerate(said)]
    headers = {f"inlay-{key.replace('_', '-')}": digest or "none" for key, digest in digests.items()}
    return reply({"object": "list", "data": data, "model": body.model, "usage": usage}, headers=headers)


def _packed(vector: list[float]) -> Any:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
