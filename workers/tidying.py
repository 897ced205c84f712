"""What attempts, crashes and other databases left in the data folder. Only what a row knows is deleted at once."""

from __future__ import annotations

import logging
import time
from typing import Final

from app.domain.installation import mostly_known
from app.domain.jobs import FINAL_STATES, JobState
from app.persistence.installation import InstallationRepository
from app.persistence.jobs import ACTIVE, JobRepository
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage import artifacts, files
from app.storage import installation as folder

log = logging.getLogger(__name__)

# Far longer than rename and commit lie apart.
STRAY_SECONDS: Final = 3600.0


class Tidying:
    """Several workers may be at it at the same time."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings

    def tidy(self) -> None:
        if not self._belongs():
            log.critical("database and data folder belong together no more: nothing is tidied; start this worker again")
            return
        self.sort_out_strays()
        self.clean_staging()
        self.clean_checkpoints()
        files.remove_broken_uploads(self.settings, older_than=time.time() - STRAY_SECONDS)
        artifacts.finish_removals(self.settings.artifacts_folder)

    def _belongs(self) -> bool:
        """Folders are mounted, and databases restored, under workers that run."""
        with self.database.reading() as session:
            here = InstallationRepository(session).id()
        return here is not None and here == folder.read_id(self.settings)

    def clean_staging(self) -> None:
        """Removes what attempts left behind whose worker had no time to do it."""
        for name in folder.names_in(self.settings.staging_folder):
            if self._is_over(name):
                log.info("removed %s from the staging folder: no worker is at it", name)
                artifacts.remove(self.settings.staging_folder / name)

    def _is_over(self, name: str) -> bool:
        job_id, _, attempt = name.rpartition("-")
        with self.database.reading() as session:
            job = JobRepository(session).find(job_id)
        # What is of no known job is no attempt's of this database: `sort_out_strays` has it.
        return job is not None and (job.state not in ACTIVE or str(job.attempt) != attempt)

    def clean_checkpoints(self) -> None:
        """Removes what jobs kept between attempts, once they have ended."""
        artifacts.finish_removals(self.settings.checkpoints_folder)
        for name in folder.names_in(self.settings.checkpoints_folder):
            if self._has_ended(name):
                artifacts.remove(self.settings.checkpoints_folder / name)

    def _has_ended(self, job_id: str) -> bool:
        with self.database.reading() as session:
            job = JobRepository(session).find(job_id)
        return job is not None and JobState(job.state) in FINAL_STATES

    def sort_out_strays(self) -> None:
        """Moves what no row knows into the quarantine, what one knows after all back, and deletes what lay its days.

        Nothing is moved or deleted while most is unknown: then it is the database that is wrong.
        """
        with self.database.reading() as session:
            repository = InstallationRepository(session)
            stock = repository.stock(folder.entries(self.settings))
            aside = repository.stock(folder.quarantined(self.settings))
        for room, name in folder.bring_back(aside.known, self.settings):
            log.warning("brought %s back into %s: the database knows it", name, room)
        if not mostly_known(stock):
            self._tell_of_unknown(len(stock.unknown), len(stock.found))
            return
        older_than = time.time() - STRAY_SECONDS
        for room, name in folder.set_aside(sorted(stock.unknown), self.settings, older_than=older_than):
            log.warning("moved %s from %s into quarantine/: the database does not know it", name, room)
        for room, name in folder.delete_expired(self.settings):
            log.warning("deleted %s of %s: it was in quarantine/ for its days", name, room)

    def _tell_of_unknown(self, unknown: int, found: int) -> None:
        log.warning(
            "the database does not know %s of %s entries of %s: nothing of them is touched. Was an older one restored?",
            unknown, found, self.settings.data_folder,
        )  # fmt: skip
