"""The Celery application of a worker: `celery --app workers.celery_app worker`.

The worker's own row, heartbeat and sweep live as long as Celery's worker does.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import signals
from kombu import Queue

from app.domain.errors import WrongInstallation
from app.installation import require_installation
from app.persistence.unit_of_work import Database
from app.queue.configuration import create_celery
from app.queue.dispatcher import CeleryDispatcher
from app.settings import get_settings
from workers.presence import Presence
from workers.supervisor import Supervisor

log = logging.getLogger(__name__)

settings = get_settings()
app = create_celery(settings)
app.conf.imports = ("workers.tasks",)

database = Database(settings.database)
presence = Presence(database, settings, CeleryDispatcher(app))
supervisor = Supervisor(database, settings, presence)


@signals.setup_logging.connect
def _configure_logging(**_: Any) -> None:
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


@signals.celeryd_init.connect
def _choose_queues(conf: Any, **_: Any) -> None:
    with _or_end():
        require_installation(database, settings)
        conf.task_queues = [Queue(name) for name in presence.look_around()]


@signals.worker_ready.connect
def _arrive(**_: Any) -> None:
    with _or_end():
        presence.arrive()


@contextmanager
def _or_end() -> Iterator[None]:
    """Celery logs an exception of a signal's handler and goes on: with no row, no heartbeat, or all the GPUs."""
    try:
        yield
    except WrongInstallation as error:
        sys.exit(f"this worker does not start: {error.message}")
    except Exception as error:
        log.exception("the start failed")
        sys.exit(f"this worker does not start: {error}")


@signals.worker_shutting_down.connect
def _let_go(**_: Any) -> None:
    supervisor.stop()


@signals.worker_shutdown.connect
def _leave(**_: Any) -> None:
    presence.leave()
