"""Graceful shutdown: signals set a flag that the training checks after every step."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

# SIGTERM: the usual 128 + 15. SIGUSR1, with which Slurm can announce the end of a job's time: EX_TEMPFAIL of
# sysexits.h, "try again later", which no other outcome uses; 0 would claim that the training is complete.
EXIT_CODES = {signal.SIGTERM: 143, **({signal.SIGUSR1: 75} if hasattr(signal, "SIGUSR1") else {})}

PR_SET_PDEATHSIG = 1  # from Linux's prctl.h
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND")  # set by torchrun and `accelerate launch`


def end_with_launcher(launcher: int) -> None:
    """Ask the system to send SIGTERM to this process when the launcher that started it ends.

    Otherwise the processes of a killed launcher keep running beside those of a restart. Only Linux supports this. A
    process without a launcher outlives its parent, which may be a shell.

    Args:
        launcher: `os.getppid()`, called before the slow imports.

    Raises:
        TrainingInterrupted: If the launcher has already ended.
    """
    if sys.platform == "linux" and any(name in os.environ for name in LAUNCHERS):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != launcher:
            raise TrainingInterrupted(signal.SIGTERM)


class TrainingInterrupted(SystemExit):
    """A signal ended the training after a step; the program exits with that signal's code."""

    def __init__(self, received: signal.Signals):
        super().__init__(EXIT_CODES[received])


class SignalHandler:
    """Record signals while entered; outside, and in a thread, they keep their usual effect.

    Example:
        ```python
        with SignalHandler() as signals:
            for batch in batches:
                training_step(batch)
                if any(signals.flags()):
                    break
        ```
    """

    def __init__(self) -> None:
        self.received: set[int] = set()
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "SignalHandler":
        if threading.current_thread() is threading.main_thread():  # Python sets handlers from no other thread
            self.previous = {signum: signal.signal(signum, self._record) for signum in EXIT_CODES}
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)
        self.previous = {}

    def _record(self, signum: int, frame: FrameType | None) -> None:
        self.received.add(signum)

    def flags(self) -> list[float]:
        """Return 1 or 0 for each of `EXIT_CODES`, as numbers that processes can sum."""
        return [float(signum in self.received) for signum in EXIT_CODES]


def first_signal(flags: list[float]) -> signal.Signals | None:
    """Return the first signal that any process received, given the sum of their flags."""
    return next((signum for signum, count in zip(EXIT_CODES, flags, strict=True) if count), None)


def block_signals_until_first_batch(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield the same batches; signals are blocked until the first one has arrived.

    The first batch starts the DataLoader workers, which a signal to all processes could end before they ignore it.
    """
    blocked = set(EXIT_CODES) if hasattr(signal, "pthread_sigmask") else set()
    if blocked:
        blocked -= signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        first = next(batches, None)
    finally:
        if blocked:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
    if first is not None:
        yield first
        del first  # may occupy GPU memory
        yield from batches


def ignore_signals(worker: int) -> None:
    """Ignore termination signals in DataLoader workers, for `DataLoader(worker_init_fn=...)`.

    Schedulers signal all processes, and the last step needs its batches. A worker ends with the iterator, or when its
    parent is gone.
    """
    for signum in EXIT_CODES:
        signal.signal(signum, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, EXIT_CODES)
