"""What every process asks before it begins: whether its database and its data folder belong together.

A worker deletes what its database does not know. So a process with a wrong, an emptied or an older database, or with
another folder than that database's, must not start. `python -m app.installation check` asks the same for scripts, and
`python -m app.installation adopt` makes the two belong together.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from app.domain.errors import WrongInstallation
from app.domain.installation import Stock, belong_again, belong_together
from app.domain.jobs import new_id
from app.persistence.installation import InstallationRepository
from app.persistence.patience import for_a_while, is_away, patiently
from app.persistence.unit_of_work import Database
from app.settings import Settings, get_settings
from app.storage import installation as folder

log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 2.0
WHAT_TO_DO: Final = (
    "Point BITMILL_DATABASE_URL and BITMILL_DATA_DIR at what belongs together, or restore the one that is wrong. Only "
    "if this database is to keep this folder from now on: `bitmill adopt`, which deletes nothing"
)


@dataclass(frozen=True, slots=True)
class Adopted:
    id: str
    stock: Stock


def require_installation(database: Database, settings: Settings) -> str:
    """The id that database and data folder share, given to both at their first start.

    Raises WrongInstallation where they do not belong together. Waits for a database that is away, up to a minute.
    """
    return patiently(lambda: _require(database, settings), for_a_while())


@asynccontextmanager
async def checked_installation(database: Database, settings: Settings) -> AsyncIterator[None]:
    """The same for a server, which answers health checks while its database is away.

    Raises WrongInstallation at once where it can be known; else the process ends as soon as it is.
    """
    checking = None if await _is_checked(database, settings) else asyncio.create_task(_check_later(database, settings))
    try:
        yield
    finally:
        if checking is not None:
            checking.cancel()
            await asyncio.wait({checking})


async def _is_checked(database: Database, settings: Settings) -> bool:
    """False where the database is away. Raises WrongInstallation."""
    try:
        await asyncio.to_thread(_require, database, settings)
    except SQLAlchemyError as error:
        if not is_away(error):
            raise
        log.warning("the database is away; whether it belongs to the data folder is checked when it answers")
        return False
    return True


async def _check_later(database: Database, settings: Settings) -> None:
    try:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if await _is_checked(database, settings):
                return
    except Exception as error:
        # Unchecked it must not go on; a start that meets the same says so as well.
        log.critical("whether database and data folder belong together could not be checked, or they do not: %s", error)
        signal.raise_signal(signal.SIGTERM)


def _require(database: Database, settings: Settings) -> str:
    there = folder.read_id(settings)
    with database.transaction() as session:
        repository = InstallationRepository(session)
        here = repository.id()
        if here is None or there is None:
            stock = repository.stock(folder.entries(settings))
            _require_fit(stock, here, there, settings)
            here = here or repository.give(there or new_id("installation"))
    if there is None:
        folder.write_id(settings, here)
        there = folder.read_id(settings)
    if here != there:
        raise WrongInstallation(
            f"the database {_shown(settings)} is that of {here}, and the data folder {settings.data_folder} is that "
            f"of {there}. {WHAT_TO_DO}"
        )
    return here


def _require_fit(stock: Stock, here: str | None, there: str | None, settings: Settings) -> None:
    """Raises WrongInstallation."""
    is_new = here is None and there is None
    fits = belong_together(stock) if is_new else belong_again(stock, database_has_id=here is not None)
    if not fits:
        raise WrongInstallation(_why_not(stock, settings))


def _why_not(stock: Stock, settings: Settings) -> str:
    place = f"the data folder {settings.data_folder}"
    database = f"the database {_shown(settings)}"
    if not stock.found:
        return f"{place} is empty, and {database} is not that of a new installation, or the folder is not. {WHAT_TO_DO}"
    example = "/".join(min(stock.unknown))
    return (
        f"{place} holds {len(stock.found)} models, uploads and jobs' files, of which {database} does not know "
        f"{len(stock.unknown)}, such as {example}. {WHAT_TO_DO}"
    )


def adopt(database: Database, settings: Settings) -> Adopted:
    """Has this database keep this data folder, whatever either was part of before. Nothing is deleted."""
    with database.transaction() as session:
        repository = InstallationRepository(session)
        stock = repository.stock(folder.entries(settings))
        # An id of its own: a database or a folder that either belonged to before is no part of this.
        id_ = new_id("installation")
        repository.replace(id_)
    folder.write_id(settings, id_)
    return Adopted(id_, stock)


def _shown(settings: Settings) -> str:
    return make_url(settings.database).render_as_string(hide_password=True)


def main(command: str) -> int:
    settings = get_settings()
    database = Database(settings.database)
    try:
        if command == "check":
            require_installation(database, settings)
        else:
            print(_report(adopt(database, settings), settings))  # noqa: T201 -- a command's answer
    except WrongInstallation as error:
        print(error.message, file=sys.stderr)  # noqa: T201 -- a command's answer
        return 1
    finally:
        database.close()
    return 0


def _report(adopted: Adopted, settings: Settings) -> str:
    stock = adopted.stock
    told = f"{_shown(settings)} and {settings.data_folder} belong together now, as {adopted.id}."
    if not stock.unknown:
        return told
    return (
        f"{told}\n{len(stock.unknown)} of {len(stock.found)} entries of the folder are unknown to the database. They "
        f"stay where they are while they are the most; else they are kept in {settings.quarantine_folder} for "
        f"{settings.quarantine_days:g} days."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
