"""When an engine is given up, and when it is only slow: rules on a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import Settings
from tests.fakes.engine import FakeEngine
from workers.serving.engines.base import RemoteAddress
from workers.serving.engines.vllm import VllmEngine
from workers.serving.probing import Probed
from workers.serving.remote import RemoteConnection
from workers.serving.vitals import Vitals


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Engine:
    """`well` and `work` are what it answers; `meanwhile` happens as it is asked."""

    name = "m"

    def __init__(self, *, well: bool = True, work: Any = None, counts: bool = True, ours: bool = True) -> None:
        self.well, self.work, self.counts_work, self.ours = well, work, counts, ours
        self.asked = 0
        self.meanwhile: Callable[[], None] = lambda: None

    async def answers(self, client: Any) -> bool:
        self.asked += 1
        self.meanwhile()
        return self.well

    async def work_done(self, client: Any) -> object | None:
        return self.work() if callable(self.work) else self.work


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def vitals(settings: Settings, clock: Clock) -> Vitals:
    found = Vitals(settings, now=clock)
    found.awaited = 1
    return found


def probe(vitals: Vitals, engine: Engine, clock: Clock, *, times: int = 1, every: float = 30.0) -> str | None:
    """The kind of the verdict after so many probes."""

    async def probes() -> None:
        for _ in range(times):
            clock.seconds += every
            await vitals.probe(engine, None)  # type: ignore[arg-type] -- the engine of the test asks nobody

    asyncio.run(probes())
    return vitals.hang.kind if vitals.hang else None


def test_an_engine_that_answers_no_probe_is_given_up(vitals: Vitals, clock: Clock) -> None:
    vitals.awaited = 0
    engine = Engine(well=False)
    assert probe(vitals, engine, clock, times=2) is None
    assert probe(vitals, engine, clock) == "probes"


def test_probes_have_to_fail_in_a_row(vitals: Vitals, clock: Clock) -> None:
    engine = Engine(well=False)
    for _ in range(5):
        assert probe(vitals, engine, clock, times=2) is None
        engine.well = True
        assert probe(vitals, engine, clock) is None
        engine.well = False


def test_an_engine_too_busy_for_probes_that_sends_tokens_is_well(vitals: Vitals, clock: Clock) -> None:
    engine = Engine(well=False)

    def token() -> None:
        clock.seconds += 1
        vitals.sign()

    engine.meanwhile = token
    assert probe(vitals, engine, clock, times=20) is None


def test_an_engine_that_gets_nowhere_is_given_up(vitals: Vitals, clock: Clock) -> None:
    assert probe(vitals, Engine(work="7 tokens"), clock, times=20) is None
    assert probe(vitals, Engine(work="7 tokens"), clock, times=2) == "stalled"


@pytest.mark.parametrize("silent", [0, 19])
def test_a_long_prompt_on_a_slow_machine_is_not_a_hang(vitals: Vitals, clock: Clock, silent: int) -> None:
    """Hours without a token, of which `silent` probes in a row find the engine too busy to count."""
    steps = iter(range(10**6))

    def work() -> int | None:
        step = next(steps)
        return None if step % (silent + 1) else step

    assert probe(vitals, Engine(work=work), clock, times=1000) is None


def test_an_idle_engine_need_get_nowhere(vitals: Vitals, clock: Clock) -> None:
    engine = Engine(work="7 tokens")
    vitals.awaited = 0
    assert probe(vitals, engine, clock, times=1000) is None
    vitals.awaited = 1
    assert probe(vitals, engine, clock, times=19) is None


def test_silence_of_an_engine_that_counts_nothing_says_nothing(vitals: Vitals, clock: Clock) -> None:
    """A whole answer comes at its end."""
    assert probe(vitals, Engine(counts=False), clock, times=1000) is None


def test_requests_that_run_out_of_time_one_after_the_other(vitals: Vitals, clock: Clock) -> None:
    for begun in (10, 20, 30):  # beside each other
        clock.seconds = 1300.0 + begun
        vitals.timed_out(1000.0 + begun)
    assert vitals.hang is None
    clock.seconds = 1700
    vitals.timed_out(1400)
    assert vitals.hang is not None
    assert vitals.hang.kind == "timeouts"


def test_requests_that_run_out_of_time_while_others_are_answered(vitals: Vitals, clock: Clock) -> None:
    for begun in range(2000, 9000, 400):
        clock.seconds = begun + 100
        vitals.sign()
        clock.seconds = begun + 300
        vitals.timed_out(begun)
    assert vitals.hang is None


def test_a_verdict_does_not_wait_for_the_next_probe(settings: Settings) -> None:
    async def main() -> str:
        vitals = Vitals(settings.model_copy(update={"serving_probe_seconds": 1e9, "serving_hung_after_timeouts": 1}))
        verdict = asyncio.create_task(vitals.until_hung(Engine()))
        await asyncio.sleep(0)
        vitals.timed_out(float("inf"))
        return (await asyncio.wait_for(verdict, 10)).reason

    assert "1 requests" in asyncio.run(main())


def test_a_server_elsewhere_is_asked_only_while_it_has_requests(vitals: Vitals, clock: Clock) -> None:
    remote = Engine(well=False, ours=False)
    vitals.awaited = 0
    assert probe(vitals, remote, clock, times=9) is None
    assert remote.asked == 0
    vitals.awaited = 1
    assert probe(vitals, remote, clock, times=3) == "probes"


@pytest.mark.parametrize(("answer", "counts"), [((200, "7"), True), ((501, "no such thing"), False), (None, True)])
def test_an_engine_that_tells_nothing_is_not_judged_by_it(
    settings: Settings, tmp_path: Path, answer: tuple[int, str] | None, counts: bool
) -> None:
    class Silent(FakeEngine):
        progress_path = "/progress"

    def reply(request: httpx.Request) -> httpx.Response:
        if answer is None:
            raise httpx.ReadTimeout("busy")
        return httpx.Response(answer[0], text=answer[1])

    async def main() -> bool:
        running = RemoteConnection(RemoteAddress("http://127.0.0.1:9", "m"))
        probed = Probed("m", Silent(tmp_path), running)
        async with httpx.AsyncClient(transport=httpx.MockTransport(reply)) as client:
            await probed.work_done(client)
        return probed.counts_work

    assert asyncio.run(main()) is counts


def test_what_vllm_counts(settings: Settings) -> None:
    told = """# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
vllm:prompt_tokens_total{engine="0",model_name="m"} %d
vllm:iteration_tokens_total_sum{engine="0",model_name="m"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
process_cpu_seconds_total %d
"""
    engine = VllmEngine(settings)
    assert engine.work_done(told % (1, 1)) == engine.work_done(told % (1, 2)) != engine.work_done(told % (2, 2))
    assert engine.work_done("another version") is None
