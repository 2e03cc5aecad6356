"""Being asked to stop, by a scheduler or a person: a signal is noted, and the loop obeys at the end of a step."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

# SIGTERM: the 128 + 15 of a program that it has ended. SIGUSR1, by which Slurm can announce the end of a job's time:
# the EX_TEMPFAIL of sysexits.h, "try again later", which nothing else here ends with; 0 would say that all is done.
EXIT_CODES = {signal.SIGTERM: 143, **({signal.SIGUSR1: 75} if hasattr(signal, "SIGUSR1") else {})}

PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND")  # set by torchrun and `accelerate launch`


def end_with_launcher(launcher: int) -> None:
    """Have the system send SIGTERM to this process when the launcher that has started it ends, however it ends.

    Otherwise the processes of a launcher that was killed live on, beside those of a restart. Only Linux can do that. A
    process that no launcher has started outlives its parent, which may be a shell.

    Args:
        launcher: `os.getppid()`, called before the imports of the script, which take seconds.

    Raises:
        Stopped: If the launcher has ended since.
    """
    if sys.platform == "linux" and any(name in os.environ for name in LAUNCHERS):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != launcher:
            raise Stopped(signal.SIGTERM)


class Stopped(SystemExit):
    """The training has been asked to stop, and has done so; the program ends with the signal's exit code."""

    def __init__(self, asked: signal.Signals):
        super().__init__(EXIT_CODES[asked])


class StopRequest:
    """Notes signals while it is entered; outside, and in a thread, they do what they always did.

    Example:
        ```python
        with StopRequest() as stop:
            for batch in batches:
                learn(batch)
                if any(stop.votes()):
                    break
        ```
    """

    def __init__(self) -> None:
        self.noted: set[int] = set()
        self.handlers: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python sets no handler from another one
            self.handlers = {number: signal.signal(number, self._note) for number in EXIT_CODES}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted.add(number)

    def votes(self) -> list[float]:
        """For each of `EXIT_CODES` whether this process has got it, as numbers that processes can add up."""
        return [float(number in self.noted) for number in EXIT_CODES]


def chosen(votes: list[float]) -> signal.Signals | None:
    """The signal that any process has got, from the sum of their votes."""
    return next((number for number, count in zip(EXIT_CODES, votes, strict=True) if count), None)


def start_undisturbed(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches; signals are held back until the first is there.

    The first one starts the processes that load data, and a signal to all could end them before they ignore it.
    """
    held = set(EXIT_CODES) if hasattr(signal, "pthread_sigmask") else set()
    if held:
        held -= signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        first = next(batches, None)
    finally:
        if held:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
    if first is not None:
        yield first
        del first  # which may lie on a GPU
        yield from batches


def leave_signals_to_the_training(worker: int) -> None:
    """Let a process that loads data live on: a scheduler signals all processes, and the last step needs its batches.

    For `DataLoader(worker_init_fn=...)`. Such a process ends with the iterator, or when its parent is gone.
    """
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, EXIT_CODES)
