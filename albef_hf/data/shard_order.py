"""The order in which training reads the rows of shards."""

from collections.abc import Iterator

import numpy as np
import torch

from .shards import BLOCK

WINDOW = 16384  # pairs that a process shuffles together


class ShardOrder(torch.utils.data.Sampler[int]):
    """Shuffle the rows of shards such that few places on the disk are read at a time.

    Neighboring rows form blocks. All blocks are shuffled and divided evenly among the processes; each process then
    shuffles the rows of its next blocks, a window, together. The order depends only on the seed, the epoch and the
    number of processes, so the position in an epoch is a single number. Each row comes once per epoch, on one process;
    rows that the number of processes does not divide evenly are left out, others in each epoch.

    Args:
        bounds: Index of the first row of each shard, and the number of rows, (shards + 1,).
        seed: Seed of the order.
        rank: Index of this process.
        world_size: Number of processes.
        block: Neighboring rows that stay together.
        window: Rows that a process shuffles together.

    Raises:
        ValueError: If there are no rows.
    """

    def __init__(
        self,
        bounds: np.ndarray,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        block: int = BLOCK,
        window: int = WINDOW,
    ):
        if not len(bounds) or bounds[-1] == 0:
            raise ValueError("There are no rows to shuffle: give shards with pairs.")
        starts = [np.arange(start, end, block) for start, end in zip(bounds[:-1], bounds[1:], strict=True)]
        ends = [np.minimum(part + block, end) for part, end in zip(starts, bounds[1:], strict=True)]
        self.starts = np.concatenate(starts)
        self.ends = np.concatenate(ends)
        self.seed = seed
        self.rank = rank
        self.window = window
        self.epoch = 0
        self.length = int(bounds[-1]) // world_size

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which changes the order; the data loader calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.starts))
        starts = self.starts[order]
        ends = self.ends[order]
        cumulative = np.cumsum(ends - starts)  # rows up to the end of each block
        first = self.rank * self.length
        last = first + self.length
        for window, begin in enumerate(range(first, last, self.window)):
            end = min(begin + self.window, last)
            blocks = slice(np.searchsorted(cumulative, begin, "right"), np.searchsorted(cumulative, end, "left") + 1)
            rows = np.concatenate([np.arange(*bounds) for bounds in zip(starts[blocks], ends[blocks], strict=True)])
            offset = cumulative[blocks.start] - (ends - starts)[blocks.start]
            rng = np.random.default_rng((self.seed, self.epoch, self.rank, window))
            yield from rng.permutation(rows[begin - offset : end - offset]).tolist()
