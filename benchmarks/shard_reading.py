"""Pairs per second that one process reads, from shards which no memory holds yet, in several orders.

    python benchmarks/shard_reading.py --folder /data/tmp

Shards of random bytes are written to the folder, about as large as JPEGs of 384 pixels, so that what is measured is
the disk, or the network, behind it. Before each measurement the system is asked to forget them, as Linux can be.
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
from albef_hf.data.shards import index_folder

ROWS_PER_SHARD = 2048


def write(folder: Path, shards: int) -> None:
    """Shards of pictures that are random bytes."""
    generator, content = np.random.default_rng(0), os.urandom(1 << 20)
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


def forget(folder: Path) -> None:
    """Have the system drop what it holds of the shards."""
    for path in folder.glob("*.tar"):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pairs_per_second(folder: Path, order: list[int], ahead: bool) -> float:
    """Read rows in this order, with a new set of open files."""
    rows = Shards([folder])
    forget(folder)
    start = time.perf_counter()
    for row in order:
        if ahead:
            rows.read_ahead(row)
        rows[row]
    return len(order) / (time.perf_counter() - start)


def main() -> None:
    """Measure all orders in turn, again and again, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="on the disk that is to be measured; default: that of temporary files")
    parser.add_argument("--shards", type=int, default=12, help="of 100 MB each")
    parser.add_argument("--pairs", type=int, default=6000, help="that are read in each measurement")
    parser.add_argument("--repetitions", type=int, default=7, help="of which the median counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write(folder, options.shards)
        bounds = Shards([folder]).bounds
        shuffled = np.random.default_rng(0).permutation(bounds[-1]).tolist()
        window = list(ShardOrder(bounds, window=4096))
        orders = {
            "all rows shuffled": (shuffled, False),
            "`ShardOrder`": (window, False),
            "`ShardOrder`, fetched ahead": (window, True),
            "one after another": (list(range(bounds[-1])), False),
        }
        rates: dict[str, list[float]] = {title: [] for title in orders}
        for _ in tqdm(range(options.repetitions), "read"):
            for title, (order, ahead) in orders.items():
                rates[title].append(pairs_per_second(folder, order[: options.pairs], ahead))
    first = statistics.median(rates["all rows shuffled"])
    tqdm.write("| order | pairs/s | times the first |\n|---|---|---|")
    for title, measured in rates.items():
        rate = statistics.median(measured)
        tqdm.write(f"| {title} | {rate:.0f} | {rate / first:.2f} |")


if __name__ == "__main__":
    main()
