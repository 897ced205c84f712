"""Errors on the wire: OpenAI's error object, always with all four fields."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from app.domain.errors import BitmillError, DatabaseUnavailable
from app.domain.http_status import status_of
from app.persistence.patience import is_away

log = logging.getLogger(__name__)


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(BitmillError, _on_bitmill_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(SQLAlchemyError, _on_database_error)
    app.add_exception_handler(Exception, _on_unexpected)


def _answer(
    status: int, message: str, type_: str, param: str | None, code: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    error: dict[str, Any] = {"message": message, "type": type_, "param": param, "code": code}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


async def _on_bitmill_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BitmillError)  # noqa: S101 -- registered for this class only
    return JSONResponse({"error": error.to_dict()}, status_code=status_of(error), headers=error.headers)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 -- registered for this class only
    first = _named(error.errors())
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    param = ".".join(place) or None
    subject = f"{param}: " if param else ""
    if first["type"] == "json_invalid":
        return _answer(400, "the body is not valid JSON", "invalid_request_error", None, "invalid_json")
    message = f"{subject}{first['msg']}"
    if first["type"] not in ("missing", "extra_forbidden"):
        message += f", not {first.get('input')!r}"
    return _answer(400, message, "invalid_request_error", param, "invalid_parameter")


def _named(errors: Sequence[Any]) -> dict[str, Any]:
    """The first error. Of a field that takes a word or a value and got a value, what is wrong with that."""
    first: dict[str, Any] = errors[0]
    if first["type"] != "literal_error" or not str(first["loc"][-1]).startswith("literal["):
        return first
    field = first["loc"][:-1]
    # What comes behind the field in `loc` is the name of the alternative.
    others: list[dict[str, Any]] = [error for error in errors[1:] if error["loc"][: len(field)] == field]
    if not others:
        return first | {"loc": field}
    other = others[0]
    loc = (*field, *other["loc"][len(field) + 1 :])
    return other | {"loc": loc, "msg": f"{other['msg']}, or {first['ctx']['expected']}"}


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 -- registered for this class only
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = str(error.detail)
    if error.status_code == 404:
        message = f"Unknown request URL: {request.method} {request.url.path}. See /docs for what exists"
    headers = dict(error.headers) if error.headers else None
    return _answer(error.status_code, message, "invalid_request_error", None, code, headers)


async def _on_database_error(request: Request, error: Exception) -> JSONResponse:
    if not is_away(error):
        return await _on_unexpected(request, error)
    log.warning("%s %s: the database is away (%s)", request.method, request.url.path, error)
    return await _on_bitmill_error(
        request, DatabaseUnavailable("the database does not answer; send the request again in a moment")
    )


async def _on_unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(500, "the server failed; its log has the reason", "server_error", None, "internal_error")
