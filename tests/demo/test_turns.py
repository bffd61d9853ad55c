"""The queue: one at a time, visitors in turn, and what it says of the wait is true."""

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.turns import Full, Turns


async def served(visitors, leaving=()):
    """The order in which visitors' jobs are served if all join while another is served, and how
    many each had ahead.
    """
    turns, order, ahead, at_once = Turns(each=9, total=99), [], {}, 0

    async def job(number, visitor):
        nonlocal at_once
        async with turns.turn(visitor) as ticket:
            await asyncio.sleep(0)
            ahead[number] = await ticket.wait(0)
            if number in leaving:
                return
            while await ticket.wait(1):
                pass
            at_once += 1
            assert at_once == 1
            order.append(number)
            await asyncio.sleep(0)
            at_once -= 1

    async with turns.turn("first") as first:
        assert await first.wait(1) == 0
        tasks = []
        for number, visitor in enumerate(visitors):
            tasks.append(asyncio.create_task(job(number, visitor)))
        for _ in range(6):
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    return order, ahead


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=8))
def test_visitors_are_served_in_turn_each_in_its_own_order(visitors):
    order, ahead = asyncio.run(served(visitors))
    lines = {
        visitor: [i for i, other in enumerate(visitors) if other == visitor]
        for visitor in dict.fromkeys(visitors)
    }
    expected = [lines[v][k] for k in range(len(visitors)) for v in lines if k < len(lines[v])]
    assert order == expected
    # the one that is being served counts
    assert [ahead[number] for number in order] == list(range(1, len(order) + 1))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from("ab"), min_size=1, max_size=6), st.sets(st.integers(0, 5), max_size=3)
)
def test_who_leaves_holds_up_nobody(visitors, leaving):
    order, _ = asyncio.run(served(visitors, leaving))
    assert sorted(order) == [number for number in range(len(visitors)) if number not in leaving]


def test_no_more_than_so_many_wait():
    async def check():
        turns = Turns(each=2, total=3)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(turns.turn("a"))  # is served
            for visitor in "aab":
                await stack.enter_async_context(turns.turn(visitor))
            with pytest.raises(Full, match="2 requests of yours"):
                await stack.enter_async_context(turns.turn("a"))
            with pytest.raises(Full, match="3 requests are waiting"):
                await stack.enter_async_context(turns.turn("c"))
        async with turns.turn("c") as ticket:  # all have gone
            assert await ticket.wait(0) == 0

    asyncio.run(check())
