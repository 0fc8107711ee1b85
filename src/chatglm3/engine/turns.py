"""Who drives the core: whoever waits for a result, one at a time, and for everybody who waits.

There is no thread of the engine's own. A thread that waits runs steps until its result is there; the others that wait
meanwhile sleep, and one of them goes on afterwards. Coroutines wait together and have one thread run their steps.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from chatglm3.engine.core import Core
from chatglm3.engine.sequence import RunningSequence
from chatglm3.errors import ChatGLMError

Ready = Callable[[], bool]


class Turns:
    """Shares out a core among threads and coroutines."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._turn = threading.Condition()
        self._taken = self._closed = False
        self._claims = 0  # of threads that want the core for themselves; they go first
        self._drivers: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}  # the loop alone may forget a task
        self._waiters: dict[asyncio.AbstractEventLoop, list[tuple[Ready, asyncio.Future[None]]]] = {}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the core for oneself. `ChatGLMError` once it is closed."""
        with self._turn:
            self._claims += 1
            try:
                while self._taken:
                    self._turn.wait()
            finally:
                self._claims -= 1
            self.check_open()
            self._taken = True
        try:
            yield
        finally:
            with self._turn:
                self._taken = False
                self._turn.notify_all()

    def wait(self, ready: Ready) -> None:
        """Run steps, or wait for those that others run, until `ready`."""
        while self._drive(ready):
            pass

    def _drive(self, ready: Ready) -> bool:
        """Run one step unless it is not needed any more; false when `ready`."""
        with self._turn:
            while (self._taken or self._claims) and not ready() and not self._closed:
                self._turn.wait()
            self.check_open()
            if ready():
                return False
            self._taken = True
        try:
            self._core.step()
        finally:
            with self._turn:
                self._taken = False
                self._turn.notify_all()
        return True

    def wait_a_step(self) -> None:
        """Run one step, or wait for one that another thread runs."""
        with self.alone():
            self._core.step()

    async def wait_async(self, ready: Ready) -> None:
        """`wait` for a coroutine."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        waiters = self._waiters.setdefault(loop, [])
        waiters.append((ready, done))
        if len(waiters) == 1:
            self._drivers[loop] = loop.create_task(self._drive_waiters(loop, waiters))
        await done

    async def _drive_waiters(
        self, loop: asyncio.AbstractEventLoop, waiters: list[tuple[Ready, asyncio.Future[None]]]
    ) -> None:
        """Run steps in a thread as long as a coroutine of this loop waits."""
        while waiters:
            failure: BaseException | None = None
            try:
                await asyncio.to_thread(self._drive, lambda: any(d.done() or r() for r, d in list(waiters)))
            except BaseException as error:
                failure = error
            for waiter in list(waiters):
                ready, done = waiter
                if done.done():
                    waiters.remove(waiter)
                elif failure is not None:
                    done.set_exception(failure)
                    waiters.remove(waiter)
                elif ready():
                    done.set_result(None)
                    waiters.remove(waiter)
            if isinstance(failure, asyncio.CancelledError):
                raise failure
        self._waiters.pop(loop, None)
        self._drivers.pop(loop, None)

    @contextmanager
    def submitted(self, sequences: Sequence[RunningSequence]) -> Iterator[None]:
        """Let sequences wait for admission; those that are not done at the end are cancelled."""
        self.check_open()
        for sequence in sequences:
            self._core.submit(sequence)
        try:
            yield
        finally:
            for sequence in sequences:
                sequence.cancel()
            self._tidy()

    def _tidy(self) -> None:
        """Free what was cancelled now if nobody drives, or else in the next step.

        This may run in a finalizer, in the middle of a step of the same thread, so it must not wait.
        """
        if self._turn.acquire(blocking=False):
            try:
                if not self._taken:
                    self._core.tidy()
            finally:
                self._turn.release()

    def close(self) -> None:
        """Wait for the step that runs; every later call is an error."""
        with self._turn:
            self._closed = True
            while self._taken:
                self._turn.wait()
            self._turn.notify_all()

    def check_open(self) -> None:
        """`ChatGLMError` once it is closed."""
        if self._closed:
            raise ChatGLMError("this model is closed; load it again")
