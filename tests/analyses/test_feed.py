"""The events of streams: a stream that is cancelled ends."""

import asyncio
from pathlib import Path

from gateway.analyses.feed import Feed
from gateway.analyses.ledger import Ledger


def test_a_cancelled_stream_ends_whichever_step_it_is_at(tmp_path: Path) -> None:
    """Also where its event comes in the same moment; one that went on would hold a caller's analysis for ever."""
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path)

    async def follow(feed: Feed) -> None:
        async for events in feed.follow("an-analysis", 0, lambda: False, 60.0):
            assert not events

    async def cancel_after(steps: int) -> bool:
        task = asyncio.create_task(follow(Feed(ledger)))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=10)
        return task.cancelled()

    async def each_step() -> list[bool]:
        return [await cancel_after(steps) for steps in range(12)]

    assert asyncio.run(each_step()) == [True] * 12
    ledger.close()
