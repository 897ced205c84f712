"""Several asynchronous streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Items in the order in which they come, each with its stream's index. One stream's error ends all."""
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_pass_on(index, stream, queue)) for index, stream in enumerate(streams)]
    running = len(tasks)
    try:
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def in_turn(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """As `merged`, but one after the other: each begins when the one before has ended."""
    for index, stream in enumerate(streams):
        async with aclosing(stream):
            async for item in stream:
                yield index, item


async def _pass_on(
    index: int, stream: AsyncGenerator[T, None], queue: asyncio.Queue[tuple[int, T] | Exception | None]
) -> None:
    """Whoever reads the queue raises this stream's error."""
    try:
        async with aclosing(stream):
            async for item in stream:
                queue.put_nowait((index, item))
    except Exception as error:
        queue.put_nowait(error)
    else:
        queue.put_nowait(None)
