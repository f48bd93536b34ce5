"""What a request does in threads ends before what it uses is closed, and what was kept of regions stays bounded."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import numpy as np
import pytest

from gateway.analyses.feature_cache import FeatureCache, RegionFeatures, RegionKey
from gateway.analyses.segment_form import EXAMPLE, SegmentBody
from gateway.analyses.segment_wire import body_of, outcome_of
from gateway.analyses.work import Work, in_order
from gateway.operations.errors import ArchiveUnavailable, IdentityMismatch, PathserveError, TooManyRequests


async def test_a_task_that_is_cancelled_twice_ends_with_its_call() -> None:
    work, go, over = Work(), threading.Event(), threading.Event()

    def call() -> None:
        go.wait(10)
        over.set()

    task = asyncio.create_task(work.done(call))
    await asyncio.sleep(0.05)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0.05)
    assert work.stopped()
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert over.is_set()


async def test_results_keep_their_order_and_one_that_fails_ends_the_others() -> None:
    ended: list[int] = []
    under_way = most = 0

    async def one(number: int, fails: int | None) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            await asyncio.sleep(0.02 if number % 2 else 0.001)
            if number == fails:
                raise RuntimeError
            return number
        finally:
            under_way -= 1
            ended.append(number)

    async def calls(fails: int | None = None) -> AsyncIterator[Coroutine[Any, Any, int]]:
        for number in range(8):
            yield one(number, fails)

    assert await in_order(calls(), 2) == list(range(8))
    assert most == 2
    ended.clear()
    with pytest.raises(RuntimeError):
        await in_order(calls(fails=3), 2)
    assert under_way == 0
    assert max(ended) < 6


def test_the_features_used_longest_ago_go_first_and_too_large_ones_are_not_kept() -> None:
    def features(size: int) -> RegionFeatures:
        return RegionFeatures(({"mask_features": np.zeros(size // 4, np.float32)},), ())

    cache = FeatureCache(1000)
    one, two, three, huge = (RegionKey("1", "1.2", name, "e") for name in ("one", "two", "three", "huge"))
    cache.put(one, features(400))
    cache.put(two, features(400))
    assert cache.get(one) is not None
    cache.put(three, features(400))
    cache.put(huge, features(1004))
    assert [cache.get(key) is not None for key in (one, two, three, huge)] == [True, False, True, False]
    assert cache.size == 800


@pytest.mark.parametrize("error", [ArchiveUnavailable("Later.", 7.0), IdentityMismatch("Not the same.")])
def test_an_error_of_the_child_is_the_same_error(error: PathserveError) -> None:
    with pytest.raises(type(error)) as caught:
        outcome_of(body_of(error), SegmentBody(**EXAMPLE).domain())
    assert type(caught.value) is type(error)
    assert (caught.value.detail, caught.value.after_s) == (error.detail, error.after_s)


@pytest.mark.parametrize("error", [TooManyRequests("Later.", 7.0), PathserveError("Who knows.")])
def test_an_error_that_is_not_the_childs_to_say_is_one_that_nobody_foresaw(error: PathserveError) -> None:
    with pytest.raises(PathserveError, match=r"could not be segmented\. Report this") as caught:
        outcome_of(body_of(error), SegmentBody(**EXAMPLE).domain())
    assert (type(caught.value), caught.value.after_s) == (PathserveError, 0.0)
