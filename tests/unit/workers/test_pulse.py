"""What a job's process must say, and how often, to be left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import Settings
from workers import child
from workers.child import BEAT, Child
from workers.pulse import ChildHung, Pulse

BEATING = {"kind": BEAT}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pulse(settings: Settings, clock: Clock) -> Pulse:
    limits = {"job_silence_seconds": 10, "stage_timeout_seconds": 100}
    return Pulse(settings.model_copy(update=limits), clock)


def test_a_process_that_says_nothing_hangs(pulse: Pulse, clock: Clock) -> None:
    clock.now = 10
    pulse.check()
    clock.now = 11
    with pytest.raises(ChildHung, match="no sign of life for 10 s in the stage 'starting'"):
        pulse.check()


def test_beats_alone_keep_it_for_as_long_as_a_stage_may_take(pulse: Pulse, clock: Clock) -> None:
    pulse.heard({"kind": "progress", "stage": "quantizing", "fraction": 0.5})
    while clock.now < 96:
        clock.now += 5
        pulse.heard(BEATING)
        pulse.check()
    clock.now += 5
    pulse.heard(BEATING)
    with pytest.raises(ChildHung, match=r"no further for 100 s in the stage 'quantizing'.*STAGE_TIMEOUT"):
        pulse.check()


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "progress", "stage": "waiting for another job", "fraction": 0.0},
        {"kind": "metrics", "message": "step 1", "data": {}},
        {"kind": "checkpoint", "message": "", "data": {}},
    ],
)
def test_whatever_work_says_begins_its_time_anew(message: dict[str, object], pulse: Pulse, clock: Clock) -> None:
    for _ in range(30):
        clock.now += 9
        pulse.heard(message)
        pulse.check()


# Two threads that talk at once while a third beats.
TALKER = """
import sys, threading
from workers.child import Channel
channel = Channel(int(sys.argv[1]))
channel.beat()
def talk(name):
    for number in range(200):
        channel.send({"kind": "said", "name": name, "text": "x" * 5000})
threads = [threading.Thread(target=talk, args=(name,)) for name in ("a", "b")]
for thread in threads: thread.start()
for thread in threads: thread.join()
channel.send({"kind": "done"})
channel.receive()
"""


def test_what_threads_say_at_once_does_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "talker.py").write_text(TALKER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    heard: list[str] = []
    with Child("talker", {}, log=tmp_path / "log") as talker:
        while (message := talker.receive(timeout_seconds=30)) is not None and message["kind"] != "done":
            heard.append(message["kind"])
    assert heard.count("said") == 400
    assert BEAT in heard


def test_a_process_whose_work_is_busy_still_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "busy.py").write_text(
        "import sys\nfrom workers.child import Channel\nChannel(int(sys.argv[1])).beat()\nwhile True: pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    with Child("busy", {}, log=tmp_path / "log") as busy:
        beats = [busy.receive(timeout_seconds=30) for _ in range(2)]
    assert beats == [BEATING, BEATING]
    assert Settings().job_silence_seconds / 10 > child.BEAT_SECONDS
