"""Measure how many pairs per second one process reads from shards that are not cached in memory, in several orders.

    python benchmarks/shard_reading.py --folder /data/tmp

Shards of random bytes, about as large as JPEGs of 384 pixels, are written to the folder, so that its disk or network
is measured. Before each measurement, Linux is asked to drop them from its cache.
"""

import argparse
import io
import os
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from albef_hf.data import ShardOrder, Shards
from albef_hf.data.shard_index import index_folder

ROWS_PER_SHARD = 2048


def write_shards(folder: Path, shards: int) -> None:
    """Write shards with random bytes as images."""
    generator = np.random.default_rng(0)
    content = os.urandom(1 << 20)
    for shard in tqdm(range(shards), "write", leave=False):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(ROWS_PER_SHARD):
                size = int(generator.integers(30_000, 70_000))
                start = int(generator.integers(0, len(content) - size))
                for kind, part in (("jpg", content[start : start + size]), ("txt", b"a caption")):
                    member = tarfile.TarInfo(f"{shard:05d}{row:05d}.{kind}")
                    member.size = len(part)
                    tar.addfile(member, io.BytesIO(part))
    index_folder(folder)


def drop_cache(folder: Path) -> None:
    """Drop the shards from the cache of the system."""
    for path in folder.glob("*.tar"):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pairs_per_second(folder: Path, order: list[int], read_ahead: bool) -> float:
    """Read rows in this order, with newly opened files."""
    rows = Shards([folder])
    drop_cache(folder)
    start = time.perf_counter()
    for row in order:
        if read_ahead:
            rows.read_ahead(row)
        rows[row]
    return len(order) / (time.perf_counter() - start)


def main() -> None:
    """Measure all orders alternately, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="folder on the disk to measure; default: temporary files")
    parser.add_argument("--shards", type=int, default=12, help="number of shards of 100 MB")
    parser.add_argument("--pairs", type=int, default=6000, help="pairs per measurement")
    parser.add_argument("--repetitions", type=int, default=7, help="repetitions; the median is reported")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_shards(folder, options.shards)
        bounds = Shards([folder]).bounds
        shuffled = np.random.default_rng(0).permutation(bounds[-1]).tolist()
        windowed = list(ShardOrder(bounds, window=4096))
        orders = {
            "all rows shuffled": (shuffled, False),
            "`ShardOrder`": (windowed, False),
            "`ShardOrder`, read ahead": (windowed, True),
            "sequential": (list(range(bounds[-1])), False),
        }
        rates: dict[str, list[float]] = {title: [] for title in orders}
        for _ in tqdm(range(options.repetitions), "read"):
            for title, (order, read_ahead) in orders.items():
                rates[title].append(pairs_per_second(folder, order[: options.pairs], read_ahead))
    first = statistics.median(rates["all rows shuffled"])
    tqdm.write("| order | pairs/s | relative to the first |\n|---|---|---|")
    for title, measured in rates.items():
        rate = statistics.median(measured)
        tqdm.write(f"| {title} | {rate:.0f} | {rate / first:.2f} |")


if __name__ == "__main__":
    main()
