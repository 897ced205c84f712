"""Slots are handed out in order, a full queue refuses, and refusals say when to come again."""

from __future__ import annotations

import asyncio

import pytest

from app.domain.errors import TooManyRequests
from workers.serving.admission import LEAST_READY_AHEAD, Admission, Turn


def admission(*, slots: int = 1, queue: int = 2, timeout_seconds: float = 30.0) -> Admission:
    return Admission("org/m", slots=slots, queue=queue, timeout_seconds=timeout_seconds)


async def fill(gate: Admission, count: int, release: asyncio.Event, order: list[int]) -> list[asyncio.Task[None]]:
    async def request(number: int) -> None:
        async with gate.turn():
            order.append(number)
            await release.wait()

    tasks = [asyncio.create_task(request(number)) for number in range(count)]
    await asyncio.sleep(0)
    return tasks


def test_a_long_request_and_a_short_one_take_turns() -> None:
    """However many choices one of them has: the other waits for one of these to end, not for all."""

    async def main() -> None:
        gate, done = admission(slots=2, queue=9), list[str]()
        async with gate.turn() as long, gate.turn() as first_of_short, gate.turn() as second_of_short:
            work = [asyncio.create_task(piece(long, "long", done)) for _ in range(40)]
            await asyncio.sleep(0)
            # Its own share are the slots. What is ready ahead of them is there for others.
            assert len(long.held) == 2
            others = [asyncio.create_task(piece(short, "short", done)) for short in (first_of_short, second_of_short)]
            await asyncio.gather(*others)
            assert done.count("long") <= 4
            await asyncio.gather(*work)
        assert (gate.running, gate.waiting) == (0, 0)

    asyncio.run(main())


def test_long_requests_get_every_other_slot() -> None:
    async def main() -> None:
        gate, done = admission(slots=1, queue=9), list[str]()
        async with gate.turn() as one, gate.turn() as two, gate.turn() as three:
            names = {one: "one", two: "two", three: "three"}
            # The first has lined up with all of its work before the others come.
            await asyncio.gather(*(piece(turn, name, done) for turn, name in names.items() for _ in range(20)))
        for number in range(0, 60, 3):
            assert set(done[number : number + 3]) == {"one", "two", "three"}, done

    asyncio.run(main())


def test_work_whose_client_left_gets_no_slot() -> None:
    async def main() -> None:
        gate = admission(slots=1)
        async with gate.turn() as turn:
            await turn.slot()
            waiting = [asyncio.create_task(turn.slot()) for _ in range(5)]
            await asyncio.sleep(0)
            for task in waiting[:-1]:
                task.cancel()
            await asyncio.wait(waiting[:-1])
            (held,) = turn.held
            held.release()
            held.release()  # again, which is no second slot
            assert await waiting[-1] in turn.held
        assert (gate.running, turn.held) == (0, set())
        async with gate.turn() as after:
            assert gate.running == len(after.held) == 1

    asyncio.run(main())


def test_a_slot_that_is_handed_out_as_its_client_leaves_comes_back() -> None:
    async def main() -> None:
        gate = admission(slots=1)
        async with gate.turn() as turn:
            held = await turn.slot()
            waiting = asyncio.create_task(turn.slot())
            await asyncio.sleep(0)
            held.release()
            waiting.cancel()
            await asyncio.wait({waiting})
            assert waiting.cancelled()
            assert gate.running == 0

    asyncio.run(main())


async def piece(turn: Turn, name: str, done: list[str]) -> None:
    slot = await turn.slot()
    await asyncio.sleep(0.001)
    done.append(name)
    slot.release()


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
            async with gate.turn():
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
            async with gate.turn():
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
            async with gate.turn():
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
