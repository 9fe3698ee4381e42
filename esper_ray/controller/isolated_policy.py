"""A policy that can be slow, stuck or dead without whoever asks it being so: it lives in processes of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Self

from esper_ray.controller.policy_process import PolicyProcess, StartError
from esper_ray.controller.proposals import Ending, Hello, Reply, Request
from esper_ray.errors import UserError

DEADLINE_SECONDS = 0.045
PATIENCE_SECONDS = 2.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""Between two tries to start a worker that cannot be started; each is twice as long as the one before."""


class IsolatedPolicy:
    """Asks a policy in a process of its own, whatever that does, within a deadline.

    A worker that ends is replaced in the background, and so is one that is stuck. Every question has all that its
    answer depends on, so that it does not matter to a decision which worker answers it. Workers end with this process.

    Any number of threads may ask at once; their questions are put one after another.

    Args:
        policy: As :func:`esper_ray.controller.proposing.load_proposer` takes it.
        deadline_s: Within which an answer counts.
        patience_s: After so long over one question a worker is stuck.
        standby: Keep a second worker, which takes over as soon as the first has ended.
        now: Monotonic clock of the deadlines, seconds.
        on_ready: Is told what a worker says of its policy when it is ready, in another thread: it must not raise.
        on_lost: Is told how a worker ended that was not to, likewise.

    Attributes:
        name: Of the policy, as given.
        deadline_s: As given.
    """

    def __init__(
        self,
        policy: str,
        *,
        deadline_s: float = DEADLINE_SECONDS,
        patience_s: float = PATIENCE_SECONDS,
        standby: bool = False,
        now: Callable[[], float] = time.monotonic,
        on_ready: Callable[[Hello], None] = lambda _: None,
        on_lost: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name, self.deadline_s, self._patience_s, self._now = policy, deadline_s, patience_s, now
        self._on_ready, self._on_lost = on_ready, on_lost
        self._directory = Path.cwd()
        self._hello, self._problem = Hello(), ""
        self._ready: list[PolicyProcess] = []
        self._news, self._closing = asyncio.Condition(), asyncio.Event()
        # One thread does everything with the workers, so that no two threads change anything here.
        self._loop = asyncio.SelectorEventLoop()
        self._thread = Thread(target=self._run, args=(standby,), name="policy workers", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ for the service
    def ask(self, request: Request, deadline_s: float | None = None) -> Reply:
        """Ask the policy, and wait at most until the deadline. It raises nothing.

        Args:
            request: The question.
            deadline_s: Another one than usual.
        """
        seconds = self.deadline_s if deadline_s is None else deadline_s
        due = self._now() + seconds
        closed = Reply(Ending.ERROR, "the policy's workers are closed")
        asking = self._ask(request)
        try:
            future = asyncio.run_coroutine_threadsafe(asking, self._loop)
        except RuntimeError:
            asking.close()
            return closed
        while (left := due - self._now()) > 0:
            try:
                reply = future.result(left)
            except TimeoutError:
                continue
            except CancelledError:
                return closed
            if self._now() <= due:
                return reply
        future.cancel()
        return Reply(Ending.TIMEOUT, f"no answer within {1e3 * seconds:.0f} ms")

    def wait_ready(self, timeout_s: float = 120.0) -> Hello:
        """Wait until a worker has the policy.

        Returns:
            What it says of it.

        Raises:
            UserError: there is no such policy, or no worker in time.
        """
        try:
            problem = asyncio.run_coroutine_threadsafe(self._settled(), self._loop).result(timeout_s)
        except TimeoutError:
            problem = f"no worker had the policy {self.name!r} within {timeout_s:.0f} s"
        if problem:
            raise UserError(problem)
        return self._hello

    @property
    def version(self) -> str | None:
        """Of the policy; None until a worker has had it."""
        return self._hello.policy_version

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the workers that could answer now: the one that does, then the one on standby."""
        return tuple(process.pid for process in self._ready)

    def close(self) -> None:
        """End the workers, and wait until they have."""
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ in the thread of the workers
    def _run(self, standby: bool) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._keep_all(standby))

    async def _keep_all(self, standby: bool) -> None:
        """Until all is closed; what is left then the runner cancels."""
        keeping = [asyncio.create_task(self._keep_one())]
        if standby:
            keeping.append(asyncio.create_task(self._keep_one(at_once=False)))
        await self._closing.wait()

    async def _keep_one(self, at_once: bool = True) -> None:
        """One worker after another."""
        if not at_once:
            await self._settled()
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                worker = await self._started()
            except Exception as error:  # whatever it is, it is said and tried again
                await self._tell(" ".join(str(error).split()))
                await asyncio.sleep(pause)
                pause = min(2.0 * pause, LONGEST_PAUSE_SECONDS)
                continue
            pause = FIRST_PAUSE_SECONDS
            self._ready.append(worker)
            self._on_ready(worker.hello)
            try:
                await self._tell("")
                await worker.over.wait()
            finally:
                self._ready.remove(worker)
                await worker.stop()
            self._on_lost(f"the worker {worker.ending}")

    async def _started(self) -> PolicyProcess:
        worker = await PolicyProcess.start(self.name, self._directory, self._patience_s)
        if self._hello not in (Hello(), worker.hello.policy):
            await worker.stop()
            raise StartError(f"the policy {self.name} has changed since these workers began with it: put it back")
        self._hello = worker.hello.policy
        return worker

    async def _tell(self, problem: str) -> None:
        async with self._news:
            self._problem = problem
            self._news.notify_all()

    async def _ask(self, request: Request) -> Reply:
        if not self._ready:
            return Reply(Ending.STARTING, self._problem or "no worker has the policy yet, or not again")
        try:
            return await self._ready[0].ask(request.framed())
        except Exception as error:  # whatever it is: a trainer waits for this
            return Reply(Ending.ERROR, " ".join(f"{type(error).__name__}: {error}".split()))

    async def _settled(self) -> str:
        async with self._news:
            await self._news.wait_for(lambda: self._ready or self._problem)
            return "" if self._ready else self._problem
