"""One Celery configuration, shared by those who ring and those who answer."""

from __future__ import annotations

from typing import Any

from celery import Celery

from app.queue import files
from app.settings import Settings

# How the settings name the broker in the data folder.
FILES = "filesystem://"
RUN_JOB = "bitmill.run_job"
# Longer than any job: Redis would deliver a running job's message again, to be refused by the claim.
VISIBILITY_TIMEOUT_SECONDS = 7 * 24 * 3600


def create_celery(settings: Settings) -> Celery:
    app = Celery("bitmill", broker=f"{files.SCHEME}://" if settings.broker == FILES else settings.broker)
    app.conf.update(
        task_ignore_result=True,
        task_default_queue="cpu",
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options=_transport_options(settings),
    )
    return app


def _transport_options(settings: Settings) -> dict[str, Any]:
    if settings.broker != FILES:
        return {"visibility_timeout": VISIBILITY_TIMEOUT_SECONDS}
    messages = settings.broker_folder / "messages"
    control = settings.broker_folder / "control"
    for folder in (messages, control):
        folder.mkdir(parents=True, exist_ok=True)
    return {
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "control_folder": str(control),
        "polling_interval": settings.broker_polling_seconds,
    }
