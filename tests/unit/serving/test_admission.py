"""Slots are handed out in order, a full queue refuses, and refusals say when to come again."""

from __future__ import annotations

import asyncio

import pytest

from app.domain.errors import TooManyRequests
from workers.serving.admission import LEAST_READY_AHEAD, Admission


def admission(*, slots: int = 1, queue: int = 2, timeout_seconds: float = 30.0) -> Admission:
    return Admission("org/m", slots=slots, queue=queue, timeout_seconds=timeout_seconds)


async def fill(gate: Admission, count: int, release: asyncio.Event, order: list[int]) -> list[asyncio.Task[None]]:
    async def request(number: int) -> None:
        async with gate.slot():
            order.append(number)
            await release.wait()

    tasks = [asyncio.create_task(request(number)) for number in range(count)]
    await asyncio.sleep(0)
    return tasks


def test_slots_are_handed_out_in_order() -> None:
    async def main() -> None:
        gate, release, order = admission(), asyncio.Event(), list[int]()
        most = 1 + LEAST_READY_AHEAD
        tasks = await fill(gate, most + 2, release, order)
        assert (gate.running, gate.waiting, order) == (most, 2, list(range(most)))
        release.set()
        await asyncio.gather(*tasks)
        assert (gate.running, gate.waiting, order) == (0, 0, list(range(most + 2)))

    asyncio.run(main())


def test_a_full_queue_refuses_at_once() -> None:
    async def main() -> None:
        gate, release = admission(), asyncio.Event()
        tasks = await fill(gate, 1 + LEAST_READY_AHEAD + 2, release, [])
        with pytest.raises(TooManyRequests, match="2 wait; try again in") as refused:
            async with gate.slot():
                pass
        assert refused.value.headers == {"retry-after": str(refused.value.retry_after_seconds)}
        release.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_waiting_for_a_slot_ends() -> None:
    async def main() -> None:
        gate, release = admission(timeout_seconds=0.05), asyncio.Event()
        tasks = await fill(gate, 1 + LEAST_READY_AHEAD, release, [])
        with pytest.raises(TooManyRequests, match=r"within 0\.05 seconds"):
            async with gate.slot():
                pass
        assert gate.waiting == 0
        release.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_a_client_that_leaves_the_queue_leaves_no_trace() -> None:
    async def main() -> None:
        gate, release, order = admission(), asyncio.Event(), list[int]()
        tasks = await fill(gate, 1 + LEAST_READY_AHEAD + 2, release, order)
        tasks[-2].cancel()
        await asyncio.wait({tasks[-2]})
        assert gate.waiting == 1
        release.set()
        await asyncio.wait(tasks)
        assert (gate.running, gate.waiting) == (0, 0)
        assert len(order) == 1 + LEAST_READY_AHEAD + 1

    asyncio.run(main())


def test_the_time_to_come_again_follows_the_requests_before() -> None:
    async def main() -> None:
        gate = admission(queue=0)
        gate._average_seconds = 10.0
        release = asyncio.Event()
        tasks = await fill(gate, 1 + LEAST_READY_AHEAD, release, [])
        with pytest.raises(TooManyRequests) as refused:
            async with gate.slot():
                pass
        assert refused.value.retry_after_seconds == 10
        release.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_as_many_as_there_are_slots_are_ready_ahead() -> None:
    async def main() -> None:
        gate, release, order = admission(slots=4, queue=9), asyncio.Event(), list[int]()
        tasks = await fill(gate, 10, release, order)
        assert (gate.running, gate.waiting) == (8, 2)
        release.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
