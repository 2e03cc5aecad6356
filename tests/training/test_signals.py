"""Graceful shutdown: signals are recorded, and workers ignore them."""

import multiprocessing
import os
import signal
import sys
import time

import pytest

from albef_hf import cli
from albef_hf.training.signals import (
    EXIT_CODES,
    SignalHandler,
    block_signals_until_first_batch,
    end_with_launcher,
    first_signal,
)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the end of a parent")
@pytest.mark.parametrize("launcher", ["TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND", None])
def test_the_end_of_the_launcher_is_a_sigterm(monkeypatch, launcher):
    """At which a checkpoint is written; a shell is no launcher."""
    for name in ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    if launcher:
        monkeypatch.setenv(launcher, "1")
    forks = multiprocessing.get_context("fork")
    pipe, other_end = forks.Pipe(duplex=False)

    def rank() -> None:
        end_with_launcher(os.getppid())
        with SignalHandler() as signals:
            other_end.send(os.getpid())
            deadline = time.monotonic() + (10 if launcher else 1)
            while not any(signals.flags()) and time.monotonic() < deadline:
                time.sleep(0.01)
            other_end.send(signals.flags())

    def launch() -> None:
        forks.Process(target=rank).start()
        time.sleep(60)

    started = forks.Process(target=launch)
    started.start()
    assert pipe.recv() != started.pid
    started.kill()
    assert pipe.recv() == ([1, 0] if launcher else [0, 0])
    started.join()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the end of a parent")
@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_command_ends_if_its_launcher_has_already_ended(monkeypatch, command):
    parents = iter([7, 1])

    def start() -> None:
        monkeypatch.setattr(os, "getppid", lambda: next(parents))
        with pytest.raises(SystemExit) as stopped:
            cli.main([command, "--help"])
        os._exit(stopped.value.code)

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    process = multiprocessing.get_context("fork").Process(target=start, daemon=True)
    process.start()  # in a process, since the setting cannot be undone
    process.join(10)
    assert process.exitcode == 143


def test_signals_are_recorded_while_the_handler_is_entered():
    before = signal.getsignal(signal.SIGTERM)
    with SignalHandler() as signals:
        assert signals.flags() == [0, 0] and first_signal(signals.flags()) is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.flags() == [0, 1]
        assert first_signal([0, 3]) is signal.SIGUSR1 and first_signal([1, 1]) is signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert EXIT_CODES == {signal.SIGTERM: 143, signal.SIGUSR1: 75}


def test_signals_are_blocked_until_the_first_batch():
    def held() -> set[int]:
        """Return the signals that a process started now would block."""
        return signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGTERM, signal.SIGUSR1}

    def batches():
        os.kill(os.getpid(), signal.SIGTERM)  # while they start
        yield held()
        yield held()

    with SignalHandler() as signals:
        assert list(block_signals_until_first_batch(batches())) == [{signal.SIGTERM, signal.SIGUSR1}, set()]
        deadline = time.monotonic() + 10  # another thread may have taken the signal, and this one hears of it later
        while not any(signals.flags()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert signals.flags() == [1, 0], "it is not lost"
        assert list(block_signals_until_first_batch(iter([]))) == []
    assert not held()
