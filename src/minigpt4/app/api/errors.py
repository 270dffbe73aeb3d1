"""Errors of the API, each in OpenAI's shape."""

from __future__ import annotations

import json
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

#: OpenAI's `code` and `type` by status; the rest is an `invalid_request_error` without a code.
_KINDS = {
    401: ("invalid_api_key", "authentication_error"),
    408: ("timeout", "timeout_error"),
    413: ("body_too_large", "invalid_request_error"),
    429: ("server_busy", "rate_limit_error"),
    500: ("server_error", "server_error"),
    503: ("server_ends", "server_error"),
}


class ApiError(HTTPException):
    """An answer that is an error. `param` names the field of the request."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(status, message)
        self.code, self.param = code, param


def busy(retry_after: int) -> HTTPException:
    message = f"too many requests are waiting; try again in {retry_after} s"
    return HTTPException(429, message, {"Retry-After": str(retry_after)})


def late(seconds: float) -> ApiError:
    return ApiError(408, f"the request took more than the {seconds:g} s allowed")


def response(error: BaseException) -> Response:
    """The response that tells an error: one of ours, of FastAPI's or Starlette's, or a fault of the server."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"] if step != "body")
        what = str(first["msg"]).removeprefix("Value error, ")
        error = ApiError(400, f"{where}: {what}" if where else what, param=where or None)
    elif not isinstance(error, HTTPException):
        error = ApiError(500, "the server failed")
    code, kind = _KINDS.get(error.status_code, (None, "invalid_request_error"))
    # Messages quote what was sent, which may be long, and no Unicode at all.
    param: Any = getattr(error, "param", None)
    detail = {
        "message": str(error.detail)[:1000],
        "type": kind,
        "param": param and param[:200],
        "code": getattr(error, "code", None) or code,
    }
    content = json.dumps({"error": detail}, ensure_ascii=False).encode("utf-8", "replace")
    return Response(content, error.status_code, error.headers, "application/json")
