"""A worker as its service has it: started, asked one question at a time, ended if it is stuck."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Self

from esper_ray.controller.framing import read
from esper_ray.controller.proposals import Answer, Ending, Hello, Reply

START_SECONDS = 300.0
"""Within which a worker has its policy, on the slowest of machines."""
HANGING_UP_SECONDS = 1.0
"""Between the end of a worker's socket and its own."""


class StartError(Exception):
    """A worker that has no policy; one line of why."""


class PolicyProcess:
    """A process of :mod:`esper_ray.controller.worker`; :meth:`start` makes it. It belongs to the running event loop.

    Args:
        process: Of the worker.
        reader: Of what it says.
        writer: Of what it is asked.
        patience_s: After so long a question it is stuck, and ended.

    Attributes:
        pid: Of the process.
        hello: What it said of its policy.
        over: Set once it answers no more.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        patience_s: float,
    ) -> None:
        self._process, self._reader, self._writer, self._patience_s = process, reader, writer, patience_s
        self._turn = asyncio.Lock()
        self._asking: asyncio.Task[Reply] | None = None
        self.pid, self.hello = process.pid, Hello()
        self.over, self._gone, self._fault = asyncio.Event(), asyncio.Event(), ""
        Thread(target=self._wait, args=(asyncio.get_running_loop(),), daemon=True).start()

    @classmethod
    async def start(cls, policy: str, directory: Path, patience_s: float) -> Self:
        """Start a worker, and wait until it has its policy.

        Args:
            policy: As :func:`esper_ray.controller.proposing.load_proposer` takes it.
            directory: That relative paths are of.
            patience_s: As above.

        Raises:
            StartError: it has not.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours)
            try:
                process = _started(policy, directory, theirs)
            except (OSError, ValueError) as error:  # the latter of a name that no command line takes
                writer.close()
                raise StartError(f"no worker could be started for {policy!r}: {error}") from error
        worker = cls(process, reader, writer, patience_s)
        try:
            await worker._greet()
        except BaseException:
            await worker.stop()
            raise
        return worker

    async def _greet(self) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                (content,) = await read(self._reader)
                hello = Hello.model_validate_json(content)
        except TimeoutError:
            raise StartError(f"the worker had no policy after {START_SECONDS:.0f} s") from None
        except (EOFError, OSError):
            raise StartError(f"the worker {await self._how_it_ended()} before it had its policy") from None
        if hello.policy_version is None:
            raise StartError(hello.problem)
        self.hello = hello

    async def ask(self, request: bytes) -> Reply:
        """Put a question, after those before it.

        Whoever is cancelled while waiting for the turn has asked nothing. Later the worker goes on with the answer,
        which nobody hears, and the next one waits.

        Args:
            request: A frame.
        """
        await self._turn.acquire()
        self._asking = asyncio.create_task(self._ask(request))
        self._asking.add_done_callback(lambda _: self._turn.release())
        return await asyncio.shield(self._asking)

    async def _ask(self, request: bytes) -> Reply:
        try:
            async with asyncio.timeout(self._patience_s):
                self._writer.write(request)
                return Answer.reply(await read(self._reader))
        except TimeoutError:
            self._fault = f"was stuck for {self._patience_s:g} s, and was ended"
            await self.stop()
            return Reply(Ending.CRASHED, f"the worker {self.ending}")
        except (EOFError, OSError):
            return Reply(Ending.CRASHED, f"the worker {await self._how_it_ended()}")
        except ValueError as error:
            self._fault = f"gave no answer that can be read: {' '.join(str(error).split())}"
            await self.stop()
            return Reply(Ending.ERROR, f"the worker {self.ending}")

    async def stop(self) -> None:
        """End it, if it has not ended, and wait until it has."""
        self.over.set()
        self._writer.close()
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._gone.wait()

    async def _how_it_ended(self) -> str:
        self.over.set()
        with suppress(TimeoutError):  # it has hung up, and is about to end by itself
            async with asyncio.timeout(HANGING_UP_SECONDS):
                await self._gone.wait()
        await self.stop()
        return self.ending

    @property
    def ending(self) -> str:
        """How it ended, once it has, in words."""
        code = self._process.returncode
        by_itself = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return self._fault or by_itself

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._process.wait()
        with suppress(RuntimeError):  # the loop, and the interpreter with it, may be gone by now
            loop.call_soon_threadsafe(self._gone.set)
            loop.call_soon_threadsafe(self.over.set)


def _started(policy: str, directory: Path, connection: socket.socket) -> subprocess.Popen[bytes]:
    number = connection.fileno()
    return subprocess.Popen(
        # -P and the path: it imports what this process does, whatever lies in the directory.
        [sys.executable, "-P", "-m", "esper_ray.controller.worker", str(number), policy],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[number],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        start_new_session=True,  # what Ctrl-C in the terminal means for it, its service says
    )
