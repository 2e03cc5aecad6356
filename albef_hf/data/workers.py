"""Run the items of a dataset in worker processes that end with their parent."""

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch


def run_in_workers(work: torch.utils.data.Dataset, workers: int) -> Iterator[Any]:
    """Yield the items of a dataset in order, computed by this many processes; 0 computes them in this process."""
    loader = torch.utils.data.DataLoader(
        work,
        batch_size=None,
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=exit_with_parent,
    )
    return iter(loader)


def exit_with_parent(worker: int) -> None:
    """Exit this worker soon after its parent ended, even if that was killed; a `worker_init_fn`."""
    parent = torch.multiprocessing.parent_process()
    assert parent is not None, "only a worker has a parent"
    parent_id = parent.pid

    def watch() -> None:
        while os.getppid() == parent_id:
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _identity(item: Any) -> Any:
    return item
