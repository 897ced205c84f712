"""Sends a job's id to the queue of the devices that can run it."""

from __future__ import annotations

import logging
from typing import Protocol

from celery import Celery
from kombu.exceptions import OperationalError

from app.queue.configuration import RUN_JOB

log = logging.getLogger(__name__)


class Dispatcher(Protocol):
    def send(self, job_id: str, queue: str) -> None:
        """Rings for a job whose row is committed. Never fails the caller."""


class CeleryDispatcher:
    def __init__(self, celery: Celery) -> None:
        self._celery = celery

    def send(self, job_id: str, queue: str) -> None:
        """A broker that is down delays the job until a worker's sweep finds its row; it loses nothing."""
        try:
            self._celery.send_task(RUN_JOB, args=[job_id], queue=queue, retry=False)
        except (OperationalError, OSError) as error:
            log.warning("job %s waits for the sweep, the broker is out of reach: %s", job_id, error)
