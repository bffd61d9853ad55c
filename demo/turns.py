"""A fair queue: one job at a time; visitors take turns, each in the order of its own jobs."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class Full(RuntimeError):
    """No more may wait."""


class Turns:
    """Jobs wait in one line a visitor, of `each` at most and `total` in all; the lines are served
    in turn.
    """

    def __init__(self, each: int = 3, total: int = 64):
        self.each, self.total = each, total
        # in the order in which the visitors are served
        self._lines: dict[str, deque[asyncio.Future]] = {}
        self._busy = False

    @contextlib.asynccontextmanager
    async def turn(self, visitor: str) -> AsyncIterator["Ticket"]:
        """Joins the visitor's line; the block waits by `Ticket.wait`. Raises Full."""
        line = self._lines.get(visitor, ())
        if len(line) >= self.each:
            raise Full(f"{self.each} requests of yours are waiting already")
        if sum(map(len, self._lines.values())) >= self.total:
            raise Full(f"{self.total} requests are waiting already")
        ticket = Ticket(self, visitor, asyncio.get_running_loop().create_future())
        self._lines.setdefault(visitor, deque()).append(ticket.called)
        self._call()
        try:
            yield ticket
        finally:
            if ticket.called.done():
                self._busy = False
            else:
                self._lines[visitor].remove(ticket.called)
                if not self._lines[visitor]:
                    del self._lines[visitor]
            self._call()

    def _call(self) -> None:
        """Calls the next one if nobody is being served; its visitor goes behind the others."""
        if not self._busy and self._lines:
            visitor = next(iter(self._lines))
            line = self._lines.pop(visitor)
            line.popleft().set_result(None)
            if line:
                self._lines[visitor] = line
            self._busy = True

    def ahead(self, visitor: str, called: asyncio.Future) -> int:
        """How many are served before this one, by those who wait now."""
        if called.done():
            return 0
        depth, order = list(self._lines[visitor]).index(called), list(self._lines)
        at = order.index(visitor)
        return (
            depth
            + self._busy
            + sum(
                min(len(self._lines[other]), depth + (i < at))
                for i, other in enumerate(order)
                if other != visitor
            )
        )


class Ticket:
    """A place in a line."""

    def __init__(self, turns: Turns, visitor: str, called: asyncio.Future):
        self._turns, self._visitor, self.called = turns, visitor, called

    async def wait(self, seconds: float) -> int:
        """Waits at most so long to be called; how many are ahead, 0: called."""
        await asyncio.wait([self.called], timeout=seconds)
        return self._turns.ahead(self._visitor, self.called)
