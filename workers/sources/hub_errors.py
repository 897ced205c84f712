"""From the hub library's errors to Bitmill's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import httpx2  # the HTTP library of huggingface_hub: what its calls raise when nobody answers
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from app.domain.errors import BitmillError, DiskFull, HubUnreachable, InvalidRequest, SourceNotFound
from app.domain.model_names import ModelName
from app.settings import Settings

UNAUTHORIZED: Final = (401, 403)


@contextmanager
def translated(model: ModelName, settings: Settings) -> Iterator[None]:
    """Raises SourceNotFound, InvalidRequest (a token is needed), DiskFull or HubUnreachable instead."""
    try:
        yield
    # ValueError: an answer that is no JSON, from something that is no hub.
    except (httpx2.HTTPError, OSError, ValueError) as error:
        raise _translate(_cause(error), model, settings) from error


def _cause(error: Exception) -> Exception:
    """The library hides why a file could not be looked up behind 'not in the local cache'."""
    cause = error.__cause__
    return cause if isinstance(error, LocalEntryNotFoundError) and isinstance(cause, Exception) else error


def _translate(error: Exception, model: ModelName, settings: Settings) -> BitmillError:
    if isinstance(error, RevisionNotFoundError):
        return SourceNotFound(
            f"the hub has no revision {model.revision!r} of {model.repo!r}; give a branch, tag or commit",
            param="model",
        )
    if isinstance(error, GatedRepoError):
        return _needs_token(model)
    if isinstance(error, RepositoryNotFoundError):
        return SourceNotFound(
            f"{settings.hub_endpoint} has no model {model.repo!r} that this server may read; check the "
            "name, or set BITMILL_HUB_TOKEN if it is private",
            param="model",
        )
    if isinstance(error, HfHubHTTPError):
        return _from_status(error.response.status_code, model, settings)
    if isinstance(error, OSError) and (full := DiskFull.from_os_error(error)):
        return full
    return _unreachable(model, settings, f"{type(error).__name__}: {error}")


def _from_status(status: int, model: ModelName, settings: Settings) -> BitmillError:
    if status in UNAUTHORIZED:
        return _needs_token(model)
    if status == httpx2.codes.NOT_FOUND:
        return SourceNotFound(
            f"{settings.hub_endpoint} has no model {model.name!r}; check the name and the revision",
            param="model",
        )
    return _unreachable(model, settings, f"HTTP status {status}")


def _needs_token(model: ModelName) -> InvalidRequest:
    return InvalidRequest(
        f"the hub refuses {model.repo!r} to this server: accept the model's terms on its page, and set "
        "BITMILL_HUB_TOKEN to a token of that account",
        param="model",
    )


def _unreachable(model: ModelName, settings: Settings, reason: str) -> HubUnreachable:
    return HubUnreachable(
        f"{settings.hub_endpoint} could not be asked for {model.name!r} ({reason}); check the network or "
        "BITMILL_HUB_ENDPOINT, or put the checkpoint into a folder of BITMILL_SOURCE_ROOTS and give that"
    )
