"""Errors of the API, each in OpenAI's shape."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from minigpt4.app.scheduler import BusyError
from minigpt4.documents import read_yaml, requirement

OPENAI = read_yaml(Path(__file__).with_name("openai.yaml"))


class ApiError(HTTPException):
    """An answer that is an error. `param` names the field of the request."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(status, message)
        self.code, self.param = code, param


def late(seconds: float) -> ApiError:
    return ApiError(408, f"the request took more than the {seconds:g} s allowed")


def response(error: BaseException) -> Response:
    """The response that tells an error: one of ours, of FastAPI's or Starlette's, or a fault of the server."""
    told: Any = error
    if isinstance(error, RequestValidationError):
        where, what = _mistake(error.errors(), error.body)
        told = ApiError(400, f"{where}: {what}" if where else what, param=where or None)
    elif isinstance(error, BusyError):
        told = HTTPException(429, str(error), {"Retry-After": str(error.retry_after)})
    elif isinstance(error, asyncio.CancelledError):  # this would have taken too long
        told = ApiError(503, "the server ends")
    elif not isinstance(error, HTTPException):
        told = ApiError(500, "the server failed")
    code, kind = OPENAI["errors"].get(told.status_code, (None, "invalid_request_error"))
    code, param = getattr(told, "code", None) or code, getattr(told, "param", None)
    # Both quote what was sent, which may be long.
    detail = {"message": str(told.detail)[:1000], "type": kind, "param": param and param[:200], "code": code}
    return Response(json.dumps({"error": detail}), told.status_code, told.headers, "application/json")


def _mistake(errors: Sequence[Any], body: Any) -> tuple[str, str]:
    """Where in the client's JSON a mistake is, and which, in words; what is not supported comes first."""
    error = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    steps, context = error["loc"][1:], error.get("ctx", {})
    missing = error["type"] in ("missing", "extra_forbidden")  # perhaps not in what the client sent
    place = []
    for step in steps[: len(steps) - missing]:  # without the names of the choices that pydantic made
        if step in body if isinstance(body, dict) else isinstance(body, list) and isinstance(step, int):
            body = body[step]
            place.append(str(step))
    place += map(str, steps[len(steps) - missing :])
    if kind := context.get("discriminator"):
        place.append(kind.strip("'"))
    if error["type"] == "extra_forbidden" or context.get("max_length") == 0:
        return ".".join(place), "this server does not do that, so leave it out"
    if "tag" in context:
        return ".".join(place), f"{context['tag']!r:.100} is not supported; {context['expected_tags']} are"
    if not steps and error["type"] != "value_error":
        return "", "the body must be a JSON object, sent with Content-Type: application/json"
    return ".".join(place), "is missing" if kind or missing else requirement(error)
