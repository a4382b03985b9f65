"""Child processes that never outlive us: started apart from the terminal, stopped with their own.

A child has a session of its own, so that Ctrl-C reaches us alone and we end it in order; where
the kernel can (Linux), it is also killed when we are: everything here outlives that, and a worker
that was only asked would go on with its message while broker and store are gone.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.errors import ServiceError
from workers.private import private_folder

_PR_SET_PDEATHSIG = 1
_QUICK_DEATH_S = 15.0  # a child that dies sooner than this after its start did not work at all
_MAX_QUICK_DEATHS = 3


class Child:
    """One child process with a log file."""

    def __init__(
        self,
        name: str,
        command: list[str],
        log_dir: Path,
        environment: Mapping[str, str] = {},
        stop_s: float = 3.0,
    ) -> None:
        """environment: added to ours. stop_s: how long it may take to end when asked."""
        self.name = name
        self.deaths = 0
        self._command = command
        self._log = log_dir / f"{name}.log"
        self._environment = dict(environment)
        self._stop_s = stop_s
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._quick_deaths = 0

    def __enter__(self) -> Self:
        private_folder(self._log.parent)
        self._log.write_bytes(b"")
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ask_to_stop()
        self.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} has not been started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tend(self) -> bool:
        """Start it again if it has died, and say whether it had.

        Raises ServiceError when it keeps dying right after its start.
        """
        if self.alive:
            return False
        self.deaths += 1
        quick = time.monotonic() - self._started_at < _QUICK_DEATH_S
        self._quick_deaths = self._quick_deaths + 1 if quick else 0
        if self._quick_deaths >= _MAX_QUICK_DEATHS:
            raise ServiceError(f"{self.name} keeps dying: {self.log_tail()}")
        self._start()
        return True

    def ask_to_stop(self) -> None:
        if self.alive:
            self._signal(signal.SIGTERM)

    def wait(self) -> None:
        """Until it has ended; by force if it takes longer than it may."""
        if self._process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self._stop_s)
        self._signal(signal.SIGKILL)  # the whole group: a pool's children too
        self._process.wait()

    def log_tail(self) -> str:
        """The last line that it logged, and where the rest is."""
        lines = self._log.read_text("utf-8", "replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "it logged nothing")
        return f"{last.strip()} (more in {self._log})"

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self._environment,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self._started_at = time.monotonic()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)


def stop_together(children: Iterable[Child]) -> None:
    """End several at once, so that they need no longer than the slowest."""
    children = list(children)
    for child in children:
        child.ask_to_stop()
    for child in children:
        child.wait()


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
