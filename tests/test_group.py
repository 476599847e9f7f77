import asyncio
import threading

import pytest

from homeostat.errors import BusyError, JournalError
from homeostat.group import TOGETHER, Group


class Desk:
    """Answers groups, and can be held up in the middle of one."""

    def __init__(self):
        self.groups = []
        self.held = threading.Event()
        self.reached = threading.Event()
        self.held.set()

    def __call__(self, requests):
        self.groups.append(list(requests))
        self.reached.set()
        assert self.held.wait(20)
        return [JournalError("full") if r == "bad" else f"to {r}" for r in requests]


def line(desk, max_rows=1000, timeout=20.0):
    return Group(desk, max_rows=max_rows, timeout=timeout)


async def busy(group, desk, first="first", rows=1):
    """Ask something that is being answered, and held up, from now on."""
    desk.held.clear()
    asking = asyncio.create_task(group.ask(first, rows))
    await asyncio.to_thread(desk.reached.wait, 20)
    return asking


def test_each_request_gets_its_own_result():
    desk = Desk()

    async def main():
        group = line(desk)
        results = await asyncio.gather(*(group.ask(i, 1) for i in range(50)))
        await group.close()
        return results

    assert asyncio.run(main()) == [f"to {i}" for i in range(50)]


def test_what_comes_while_a_group_is_answered_is_answered_together():
    desk = Desk()

    async def main():
        group = line(desk)
        first = await busy(group, desk)
        others = [asyncio.create_task(group.ask(i, 1)) for i in range(30)]
        await asyncio.sleep(0)
        assert group.rows == 31
        assert group.lag > 0
        desk.held.set()
        await asyncio.gather(first, *others)
        assert (group.rows, group.lag) == (0, 0)
        await group.close()

    asyncio.run(main())
    assert desk.groups == [["first"], list(range(30))]


def test_a_group_has_an_end_so_that_the_first_need_not_wait_for_the_last():
    desk = Desk()

    async def main():
        group = line(desk, max_rows=10 * TOGETHER)
        first = await busy(group, desk)
        others = [asyncio.create_task(group.ask(i, TOGETHER // 2)) for i in range(5)]
        await asyncio.sleep(0)
        desk.held.set()
        await asyncio.gather(first, *others)
        await group.close()

    asyncio.run(main())
    assert desk.groups == [["first"], [0, 1], [2, 3], [4]]


def test_an_error_is_that_of_the_request_which_it_concerns():
    desk = Desk()

    async def main():
        group = line(desk)
        results = await asyncio.gather(
            group.ask("good", 1), group.ask("bad", 1), return_exceptions=True
        )
        await group.close()
        return results

    good, bad = asyncio.run(main())
    assert good == "to good"
    assert isinstance(bad, JournalError)


def test_a_defect_reaches_all_who_wait_and_the_next_are_answered():
    failing = [True]

    def answer(requests):
        if failing.pop() if failing else False:
            raise ZeroDivisionError
        return requests

    async def main():
        group = line(answer)
        with pytest.raises(ZeroDivisionError):
            await group.ask("a", 1)
        assert await group.ask("b", 1) == "b"
        await group.close()

    asyncio.run(main())


def test_what_would_end_the_process_reaches_who_asked_and_the_next_are_answered():
    def answer(requests):
        if "bad" in requests:
            raise SystemExit
        return requests

    async def main():
        group = line(answer)
        with pytest.raises(RuntimeError, match="SystemExit"):
            await group.ask("bad", 1)
        assert await group.ask("b", 1) == "b"
        await group.close()

    asyncio.run(main())


def test_what_was_given_up_while_it_waited_is_not_done():
    desk = Desk()

    async def main():
        group = line(desk)
        first = await busy(group, desk)
        gone = asyncio.create_task(group.ask("gone", 1))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        desk.held.set()
        await first
        assert await group.ask("next", 1) == "to next"
        assert group.rows == 0
        await group.close()

    asyncio.run(main())
    assert desk.groups == [["first"], ["next"]]


def test_beyond_the_bound_nobody_may_wait_but_a_large_request_alone_may():
    desk = Desk()

    async def main():
        group = line(desk, max_rows=10)
        first = await busy(group, desk, rows=25)
        with pytest.raises(BusyError) as caught:
            await group.ask("second", 1)
        assert caught.value.code == "busy"
        desk.held.set()
        assert await first == "to first"
        assert await group.ask("second", 10) == "to second"
        await group.close()

    asyncio.run(main())


def test_who_waits_for_too_long_is_told_so():
    desk = Desk()

    async def main():
        group = line(desk, timeout=0.05)
        first = await busy(group, desk)
        with pytest.raises(BusyError) as caught:
            await first
        assert caught.value.code == "timeout"
        desk.held.set()
        await group.close()

    asyncio.run(main())


def test_a_client_that_goes_away_holds_nobody_up():
    desk = Desk()

    async def main():
        group = line(desk)
        first = await busy(group, desk)
        gone = asyncio.create_task(group.ask("gone", 1))
        await asyncio.sleep(0)
        gone.cancel()
        desk.held.set()
        assert await first == "to first"
        assert await group.ask("next", 1) == "to next"
        assert group.rows == 0
        await group.close()

    asyncio.run(main())


def test_closing_answers_what_waits():
    desk = Desk()

    async def main():
        group = line(desk)
        first = await busy(group, desk)
        second = asyncio.create_task(group.ask("second", 1))
        await asyncio.sleep(0)
        closing = asyncio.create_task(group.close())
        desk.held.set()
        assert await asyncio.gather(first, second) == ["to first", "to second"]
        await closing

    asyncio.run(main())
