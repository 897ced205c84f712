"""The broker in the data folder, used by several processes at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from kombu import Connection, Exchange, Queue

from app.queue.configuration import create_celery
from app.settings import Settings

MESSAGES = 400
# What a second process rings with, as fast as it can.
RING = """
import sys
from app.queue.configuration import create_celery
from app.queue.dispatcher import CeleryDispatcher
from app.settings import Settings
dispatcher = CeleryDispatcher(create_celery(Settings(data_dir=sys.argv[1])))
for number in range(int(sys.argv[2])):
    dispatcher.send(f"qjob-{number}", "cpu")
"""


@pytest.fixture
def connection(settings: Settings) -> Connection:
    return create_celery(settings).connection()


def test_messages_that_are_read_as_they_are_written_arrive_whole(connection: Connection, settings: Settings) -> None:
    channel = connection.channel()
    Queue("cpu")(channel).declare()
    command = [sys.executable, "-c", RING, str(settings.data_folder), str(MESSAGES)]
    ringing = subprocess.Popen(command)
    found: list[str] = []
    deadline = time.monotonic() + 60
    while len(found) < MESSAGES and time.monotonic() < deadline:
        message = channel.basic_get("cpu", no_ack=True)  # without a pause: between a file's creation and its content
        if message is not None:
            found.append(message.headers["argsrepr"])
    assert ringing.wait(timeout=60) == 0
    assert sorted(found) == sorted(f"['qjob-{number}']" for number in range(MESSAGES))
    assert list((settings.broker_folder / "messages").iterdir()) == []


def test_a_message_is_no_message_before_it_is_whole(connection: Connection, settings: Settings) -> None:
    channel = connection.channel()
    Queue("cpu")(channel).declare()
    partial: Path = settings.broker_folder / "messages" / "1_x.cpu.msg.partial"
    partial.write_bytes(b"")
    assert channel.basic_get("cpu") is None
    assert partial.exists()


def test_a_table_is_never_empty(connection: Connection, settings: Settings) -> None:
    """Two workers that start together bind their queues to one exchange."""
    channels = [create_celery(settings).connection().channel() for _ in range(2)]
    for channel, name in zip(channels, ("cpu", "gpu"), strict=True):
        exchange = Exchange("both", type="direct")
        Queue(name, exchange, routing_key=name)(channel).declare()
    assert sorted(row.queue for row in channels[0].get_table("both")) == ["cpu", "gpu"]
    names = [path.name for path in (settings.broker_folder / "control").iterdir()]
    assert not [name for name in names if name.startswith(".")]
