"""Scaling of search: time and memory to build faiss indexes, queries per second and recall, up to a million vectors.

    python benchmarks/index.py
    python benchmarks/index.py --sizes 10000 100000 --factories IVF,SQ8 HNSW32

The vectors have 256 dimensions and are clustered as learned features are. There are 20,000 centers, a few of them
common and many rare. In dimension i, the variance of the centers and of the points around them is proportional to
1 / i. All vectors lie to one side of the origin. The queries, which stand for texts, lie to another side, as far from
the images as those of a trained model. Queries are processed one at a time. `IVF` alone has about four times the
square root of the number of vectors as lists, as `albef_hf.search.faiss_index` chooses.
"""

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import measure
import numpy as np
from tqdm.auto import tqdm

from albef_hf.search.faiss_index import build_index, faiss, ivf_lists, read_index, search, write_index

WIDTH = 256
CENTERS = 20_000
BLOCK = 2**16
TOP_K = 128  # candidates, as many as are reranked
SHARES = (64, 32, 16, 8, 4)  # a search looks into one list of this many


@dataclass
class Result:
    """Hold the measurements of one index.

    Args:
        lists: Number of lists; 0 for an index without lists.
        build_seconds: Time to build it.
        build_gigabytes: Rise of the peak memory while it is built.
        file_gigabytes: Size of the file, which is mapped to memory.
        rates: Searched lists, queries per second and recall, for each share of the lists.
    """

    lists: int
    build_seconds: float
    build_gigabytes: float
    file_gigabytes: float
    rates: list[tuple[int, float, float]]


def make_features(count: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors of images, (count, width), and of texts, (queries, width), with a fixed seed."""
    rng = np.random.default_rng(0)
    spread = (1 / np.sqrt(np.arange(1, WIDTH + 1))).astype(np.float32)
    spread /= np.linalg.norm(spread)
    centers = rng.standard_normal((CENTERS, WIDTH), dtype=np.float32) * spread
    common = 1 / np.arange(1, CENTERS + 1) ** 0.7
    common /= common.sum()
    image_side, text_side = rng.standard_normal((2, WIDTH), dtype=np.float32) / WIDTH**0.5
    text_side = 0.64 * image_side + 0.77 * text_side

    def draw(size: int, side: np.ndarray, noise: float) -> np.ndarray:
        points = centers[rng.choice(CENTERS, size, p=common)]
        points = points + 0.6 * spread * rng.standard_normal((size, WIDTH), dtype=np.float32)
        points += noise / WIDTH**0.5 * rng.standard_normal((size, WIDTH), dtype=np.float32) + 1.2 * side
        return points / np.linalg.norm(points, axis=1, keepdims=True)

    vectors = np.empty((count, WIDTH), dtype=np.float32)
    query_vectors = draw(queries, text_side, 0.3)
    for start in range(0, count, BLOCK):
        vectors[start : start + BLOCK] = draw(min(BLOCK, count - start), image_side, 0.1)
    return vectors, query_vectors


def exact(vectors: np.ndarray, queries: np.ndarray) -> list[set[int]]:
    """Return the indices of the vectors nearest to each query by exact search."""
    best = faiss.knn(queries, vectors, TOP_K, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return [set(row) for row in best.tolist()]


def time_index(count: int, factory: str, queries: int) -> Result:
    """Build an index, write it, read it, and search it."""
    if factory.startswith("IVF,"):
        factory = f"IVF{ivf_lists(count)},{factory.removeprefix('IVF,')}"
    vectors, query_vectors = make_features(count, queries)
    expected = exact(vectors, query_vectors)
    ids = np.arange(count)
    blocks = [(ids[start : start + BLOCK], vectors[start : start + BLOCK]) for start in range(0, count, BLOCK)]
    peak = measure.peak_gigabytes()
    start = measure.now()
    built = build_index(factory, blocks, WIDTH)
    build_seconds = measure.now() - start
    build_gigabytes = measure.peak_gigabytes() - peak
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vectors.faiss")
        write_index(built, path)
        file_gigabytes = os.path.getsize(path) / 1e9
        index = read_index(path)
        del built, blocks, vectors
        inverted = faiss.try_extract_index_ivf(index)
        lists = inverted.nlist if inverted else 0
        rates = []
        for share in SHARES if inverted else (1,):
            if inverted:
                inverted.nprobe = max(lists // share, 1)
            search(index, query_vectors[0], TOP_K)
            start = measure.now()
            found = [search(index, query, TOP_K) for query in query_vectors]
            seconds = measure.now() - start
            recall = np.mean([len(best & {*row.tolist()}) / TOP_K for best, row in zip(expected, found, strict=True)])
            rates.append((inverted.nprobe if inverted else 0, queries / seconds, float(recall)))
    return Result(lists, build_seconds, build_gigabytes, file_gigabytes, rates)


def show(factory: str, results: dict[int, Result]) -> None:
    """Print the rows of one kind of index, and the exponents of their growth with the number of vectors."""
    for count, result in results.items():
        for searched, rate, recall in result.rates:
            lists = f"{searched} of {result.lists}" if result.lists else "-"
            print(
                f"| {factory} | {count:,} | {result.build_seconds:.2f} | {result.build_gigabytes:.2f} | "
                f"{result.file_gigabytes:.3f} | {lists} | {1000 / rate:.2f} | {rate:.0f} | {recall:.3f} |"
            )
    if len(results) > 1:
        counts = np.log(list(results))
        build = growth_exponent(counts, [result.build_seconds for result in results.values()])
        query = growth_exponent(counts, [1 / result.rates[-1][1] for result in results.values()])
        print(f"| {factory} | exponent | {build:.2f} | | | | {query:.2f} | | |", flush=True)


def growth_exponent(log_counts: np.ndarray, seconds: list[float]) -> float:
    """Return the exponent of a power law that is fitted to times."""
    return np.polyfit(log_counts, np.log(np.maximum(seconds, 1e-4)), 1)[0]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="numbers of vectors"
    )
    parser.add_argument(
        "--factories", nargs="+", default=["Flat", "IVF,Flat", "IVF,SQ8"], help="index_factory strings of faiss"
    )
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; with one, processor time is measured")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for the processes started below
    print("| index | vectors | build s | build GB | file GB | lists | ms per query | queries/s | recall@128 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for factory in options.factories:
        results = {}
        for count in tqdm(options.sizes, factory, leave=False):
            results[count] = measure.apart(options.threads, time_index, count, factory, options.queries)
        show(factory, results)


if __name__ == "__main__":
    main()
