"""Waiting for a database that is away: restarted, failing over, or locked by another."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

from sqlalchemy import exc

T = TypeVar("T")

log = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 0.5
STARTUP_SECONDS: Final = 60.0


def is_away(error: BaseException) -> bool:
    """Whether the same statements may succeed in a moment: the fault is the server's or the connection's."""
    if isinstance(error, exc.OperationalError | exc.InterfaceError | exc.TimeoutError):
        return True
    return isinstance(error, exc.DBAPIError) and error.connection_invalidated


def patiently(work: Callable[[], T], may_go_on: Callable[[BaseException], None]) -> T:
    """The result of `work`, a whole transaction that changes nothing when done twice, however often it takes.

    `may_go_on` is asked before each pause, with the database's error, and raises what is to end the waiting.
    """
    while True:
        try:
            return work()
        except exc.SQLAlchemyError as error:
            if not is_away(error):
                raise
            may_go_on(error)
            log.warning("the database is away (%s); trying again", _brief(error))
        time.sleep(PAUSE_SECONDS)


def _brief(error: exc.SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def for_a_while(seconds: float = STARTUP_SECONDS) -> Callable[[BaseException], None]:
    """For `patiently`: after so many seconds the database's own error ends it."""
    deadline = time.monotonic() + seconds

    def check(error: BaseException) -> None:
        if time.monotonic() >= deadline:
            raise error

    return check
