"""Two gloo processes, as `torchrun` starts them, forked from a server that has imported everything.

The server belongs to the process that runs the tests, and saves both the imports, which take longer than most of the
trainings. `test_distributed.py` starts processes by `torchrun` itself.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the server imports torch
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["albef_hf.tasks.pretraining", "albef_hf.evaluation.evaluate", "albef_hf.training.run"])


def run_on_two_processes(script: Path, *arguments: object, folder: Path, timeout: int = 300) -> str:
    """Run a script on two processes.

    Args:
        script: A Python file.
        arguments: Its command line.
        folder: Where what the processes print is kept.
        timeout: Seconds after which both are killed.

    Returns:
        What the first one printed, and then the second one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [str(script), *map(str, arguments)]
    outputs = [folder / f"printed_{rank}.txt" for rank in range(2)]
    for output in outputs:
        output.touch()
    settings = [(command, environment, output, rank) for rank, output in enumerate(outputs)]
    processes = [CONTEXT.Process(target=_run, args=setting) for setting in settings]
    for process in processes:
        process.start()
    end = time.monotonic() + timeout
    while any(process.exitcode is None for process in processes) and time.monotonic() < end:
        if any(process.exitcode for process in processes):  # the other one would wait for it
            end = min(end, time.monotonic() + 10)
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.join()
    printed = "".join(output.read_text() for output in outputs)
    assert [process.exitcode for process in processes] == [0, 0], printed[-6000:]
    return printed


def _run(command: list[str], environment: dict[str, str], output: Path, rank: int) -> None:
    """Run a script in this process."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.clear()
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")
