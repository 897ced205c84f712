"""The one table from errors to HTTP statuses, shared by the API and the serving host."""

from __future__ import annotations

from typing import Final

from app.domain.errors import (
    AuthenticationFailed,
    BitmillError,
    BodyTooLarge,
    BrokenSource,
    Conflict,
    ContractUnsatisfiable,
    DatabaseUnavailable,
    EngineTimeout,
    HeadersTooLarge,
    HubUnreachable,
    InsufficientResources,
    InvalidRequest,
    JobFailed,
    NotFound,
    ServingUnavailable,
    TooManyRequests,
    UploadTooLarge,
    UpstreamFailed,
)

HTTP_STATUS: Final[dict[type[BitmillError], int]] = {
    InvalidRequest: 400,
    UploadTooLarge: 413,
    BodyTooLarge: 413,
    HeadersTooLarge: 431,
    BrokenSource: 422,
    AuthenticationFailed: 401,
    NotFound: 404,
    Conflict: 409,
    TooManyRequests: 429,
    InsufficientResources: 507,
    UpstreamFailed: 502,
    DatabaseUnavailable: 503,
    HubUnreachable: 502,
    ServingUnavailable: 503,
    EngineTimeout: 504,
    JobFailed: 500,
    ContractUnsatisfiable: 422,
    BitmillError: 500,
}


def status_of(error: BitmillError) -> int:
    """The status of the error's class, or of its nearest ancestor that has one."""
    return next(HTTP_STATUS[cls] for cls in type(error).__mro__ if cls in HTTP_STATUS)
