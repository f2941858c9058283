"""Responses, and what is wrong with a request in the form in which OpenAI's interface says it."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi.responses import Response

from inlay import errors

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    503: "overloaded_error",
}
"""What the statuses of faults are called; others are of the server."""

_STATUS = (
    ((errors.ConfigError, errors.DataError), 400),
    (errors.UnknownNameError, 404),
    (errors.TrustError, 403),
    (errors.CapacityError, 503),
    (errors.MissingExtraError, 501),
)


def reply(value: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON object as a response; escaped, so that half a character in a text is no fault."""
    return Response(
        json.dumps(value, allow_nan=False), status, headers=dict(headers or {}), media_type="application/json"
    )


def body_of(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """What is wrong, as an object."""
    kind = KINDS.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def fault(
    status: int, wrong: str, *, found: str = "", do: str = "", code: str | None = None, param: str | None = None
) -> Response:
    """What is wrong, as a response."""
    headers = {"retry-after": "1"} if status == 503 else {"www-authenticate": "Bearer"} if status == 401 else None
    return reply(body_of(status, errors.explain(wrong, found=found or (), do=do), code, param), status, headers)


def status_of(error: errors.InlayError) -> int:
    """The status of what keeps a request from being answered: the client's fault, or ours."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def of_error(error: errors.InlayError, status: int | None = None) -> Response:
    """The response to what keeps a request from being answered."""
    status = status or status_of(error)
    code = "model_not_found" if status == 404 else None
    return reply(body_of(status, str(error), code), status, {"retry-after": "1"} if status == 503 else None)
