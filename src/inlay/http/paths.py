"""The paths of a server, and what each of them does."""

import asyncio
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException

from inlay import __version__
from inlay.data import messages as turns
from inlay.errors import CapacityError, ConfigError, InlayError, explain
from inlay.http import faults, page
from inlay.http.bodies import Chat, Completion, Embedding, Load, Tokenize, Unload
from inlay.http.chat import chat, messages_of
from inlay.http.completions import complete
from inlay.http.embeddings import embed
from inlay.http.faults import fault, reply
from inlay.http.gate import Gate, log
from inlay.http.service import Service
from inlay.text import template

_FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"description": kind} for status, kind in {**faults.KINDS, 500: "server_error", 501: "server_error"}.items()
}


def application(service: Service, hosts: tuple[str, ...] = ()) -> Gate:
    """The application that answers requests to `service`; `hosts`: see `Gate`."""
    app = FastAPI(title="Inlay", version=__version__, docs_url=None, redoc_url=None, responses=_FAULTS)
    _answer_faults(app)
    _add_openai(app, service)
    _add_adapters(app, service)
    _add_state(app, service)
    page.add(app)
    document = app.openapi()
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # what is wrong with a body is 400 here
    return Gate(app, service.access, service.metrics, service.bounds.max_body_bytes, hosts)


def _answer_faults(app: FastAPI) -> None:
    """Every fault in one form."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        is_unknown = first["type"] == "extra_forbidden"
        says = (
            "not a field that is known here, and it may be meant to change the answer" if is_unknown else first["msg"]
        )
        found = f"{where or 'the body'}: {says}"
        return fault(400, "this request is not as it has to be", found=found, param=where or None)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        found = f"{request.method} {request.url.path[:200]}"
        response = fault(error.status_code, str(error.detail).lower(), found=found)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return fault(500, "the server failed on this request")  # the gate notes what it was

    @app.exception_handler(InlayError)
    async def explained(request: Request, error: InlayError) -> Response:
        request.state.facts["error"] = str(error)
        status = faults.status_of(error)
        if status == 500 and not request.state.caller.manages:  # it may name files
            return fault(500, error.wrong)
        return faults.of_error(error, status)


def _add_openai(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", response_class=Response)
    async def chat_completions(body: Chat, request: Request) -> Response:
        return await chat(service, body, request)

    @app.post("/v1/completions", response_class=Response)
    async def completions(body: Completion, request: Request) -> Response:
        return await complete(service, body, request)

    @app.post("/v1/embeddings", response_class=Response)
    async def embeddings(body: Embedding, request: Request) -> Response:
        return await embed(service, body, request)

    @app.get("/v1/models", response_class=Response)
    async def models(request: Request) -> Response:
        names = [None, *service.slots.names()]
        seen = [name for name in names if request.state.caller.sees(name)]
        data = [
            _model(service, name, prefix) for name in seen for prefix in (("", f"{service.name}:") if name else ("",))
        ]
        return reply({"object": "list", "data": data})

    @app.get("/v1/models/{model:path}", response_class=Response)
    async def one_model(model: str, request: Request) -> Response:
        name = service.named(model, request.state.caller)
        return reply(_model(service, name, f"{service.name}:" if name and model != name else ""))

    @app.post("/tokenize", response_class=Response)
    async def tokenize(body: Tokenize, request: Request) -> Response:
        service.named(body.model, request.state.caller)
        if (body.prompt is None) == (body.messages is None) or (body.tools and body.messages is None):
            raise ConfigError(explain("tokenize takes a prompt, or messages and tools", found="both, or none"))
        said = body.prompt if body.messages is None else messages_of(service, body.messages)
        settings = {"raw": body.messages is None, "tools": turns.schemas(body.tools, "tools")}
        tokenizer = service.base.tokenizer
        ids = await service.apart(template.prompt_ids, tokenizer, said, **settings)
        texts = tokenizer.convert_ids_to_tokens(ids)
        known = {"count": len(ids), "max_model_len": service.base.max_length, "tokens": ids, "token_strs": texts}
        return reply(known)


def _model(service: Service, name: str | None, prefix: str) -> dict[str, Any]:
    about = {"object": "model", "created": service.started, "owned_by": "inlay", "root": service.name}
    about |= {"answers": service.answers, "chat_template": "own" if service.base.tokenizer.chat_template else "plain"}
    if name is None:
        return {"id": service.name, **about, "parent": None, "digest": service.base_digest}
    is_loaded = any(version.name == name and version.is_current for version in service.slots.loaded())
    digest = service.slots.digest(name)
    return {"id": prefix + name, **about, "parent": service.name, "digest": digest, "is_loaded": is_loaded}


def _add_adapters(app: FastAPI, service: Service) -> None:
    @app.post("/v1/load_lora_adapter", response_class=Response)
    async def load_lora_adapter(body: Load, request: Request) -> Response:
        if not request.state.caller.manages:
            return fault(403, "this key may not load adapters", found=request.state.caller.name)
        await asyncio.get_running_loop().run_in_executor(service.loads, _load, service, body)
        log("load", adapter=body.lora_name, digest=service.slots.digest(body.lora_name))
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @app.post("/v1/unload_lora_adapter", response_class=Response)
    async def unload_lora_adapter(body: Unload, request: Request) -> Response:
        if not request.state.caller.manages:
            return fault(403, "this key may not unload adapters", found=request.state.caller.name)
        service.slots.unregister(body.lora_name)
        service.registry.remove(body.lora_name)
        log("unload", adapter=body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _load(service: Service, body: Load) -> None:
    """Register an adapter and read it once, so that what is wrong with it is said now."""
    try:
        directory = service.slots.allowed(body.lora_path)
        service.slots.load(body.lora_name, directory, replace=body.load_inplace, pinned=body.pinned)
    except (ConfigError, CapacityError):
        raise
    except InlayError as error:  # of the files: whoever names them is told
        raise ConfigError(str(error)) from error
    service.registry.put(body.lora_name, directory, body.pinned)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", response_class=Response)
    async def health() -> Response:
        if not service.worker.is_alive:
            return fault(500, "the server answers no more", found="its engine has ended")
        return reply({"status": "ok", "seconds": int(time.time()) - service.started})

    @app.get("/ready", response_class=Response)
    async def ready() -> Response:
        return await health() if not service.worker.is_alive else reply({"status": "ready"})

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
