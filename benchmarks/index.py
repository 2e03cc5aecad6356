"""How searching grows: building, memory, queries a second and recall of faiss's indexes, from 10,000 to a million.

    python benchmarks/index.py
    python benchmarks/index.py --sizes 10000 100000 --factories IVF,SQ8 HNSW32

Vectors of 256 are clustered as learned features are: 20,000 centres, of which few are common and many are rare; the
variance of centres and of points around them falls as one over the number of the dimension; all lie to one side of the
origin, and queries, which stand for texts, lie to another side, as far from the pictures as those of a trained model
do. Queries come one at a time. `IVF` alone has about four lists for each one in the root of the number of vectors, as
`albef_hf.search.faiss_index` chooses.
"""

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import measure
import numpy as np
from tqdm.auto import tqdm

from albef_hf.search.faiss_index import faiss, find, ivf_lists, make_vectors, read_vectors, write_vectors

WIDTH, CENTRES, BLOCK = 256, 20_000, 2**16
WANTED = 128  # candidates, as they are reranked
SHARES = (64, 32, 16, 8, 4)  # one list of so many is searched


@dataclass
class Result:
    """What one index took.

    Args:
        lists: Searched, of all; empty where there are none.
        train: Seconds of making it.
        grown: Gigabytes by which the peak of the memory has risen over that of the vectors.
        size: Gigabytes of the file, which is mapped to memory.
        rates: Queries a second and recall for each share of the lists.
    """

    lists: int
    train: float
    grown: float
    size: float
    rates: list[tuple[int, float, float]]


def make_features(count: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of pictures, (count, width), and of texts, (queries, width), the same every time."""
    rng = np.random.default_rng(0)
    spread = (1 / np.sqrt(np.arange(1, WIDTH + 1))).astype(np.float32)
    spread /= np.linalg.norm(spread)
    centres = rng.standard_normal((CENTRES, WIDTH), dtype=np.float32) * spread
    common = 1 / np.arange(1, CENTRES + 1) ** 0.7
    common /= common.sum()
    image_side, text_side = rng.standard_normal((2, WIDTH), dtype=np.float32) / WIDTH**0.5
    text_side = 0.64 * image_side + 0.77 * text_side

    def draw(number: int, side: np.ndarray, noise: float) -> np.ndarray:
        points = centres[rng.choice(CENTRES, number, p=common)]
        points = points + 0.6 * spread * rng.standard_normal((number, WIDTH), dtype=np.float32)
        points += noise / WIDTH**0.5 * rng.standard_normal((number, WIDTH), dtype=np.float32) + 1.2 * side
        return points / np.linalg.norm(points, axis=1, keepdims=True)

    vectors = np.empty((count, WIDTH), dtype=np.float32)
    asked = draw(queries, text_side, 0.3)
    for start in range(0, count, BLOCK):
        vectors[start : start + BLOCK] = draw(min(BLOCK, count - start), image_side, 0.1)
    return vectors, asked


def exact(vectors: np.ndarray, queries: np.ndarray) -> list[set[int]]:
    """Numbers of the vectors that are nearest to each query, by comparing with all."""
    best = faiss.knn(queries, vectors, WANTED, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return [set(row) for row in best.tolist()]


def time_index(count: int, factory: str, queries: int) -> Result:
    """Build an index, write it, read it back and ask it."""
    if factory.startswith("IVF,"):
        factory = f"IVF{ivf_lists(count)},{factory.removeprefix('IVF,')}"
    vectors, asked = make_features(count, queries)
    right = exact(vectors, asked)
    ids = np.arange(count)
    blocks = [(ids[start : start + BLOCK], vectors[start : start + BLOCK]) for start in range(0, count, BLOCK)]
    peak, start = measure.peak_gigabytes(), measure.now()
    built = make_vectors(factory, blocks, WIDTH)
    train, grown = measure.now() - start, measure.peak_gigabytes() - peak
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vectors.faiss")
        write_vectors(built, path)
        size = os.path.getsize(path) / 1e9
        index = read_vectors(path)
        del built, blocks, vectors
        inverted = faiss.try_extract_index_ivf(index)
        lists = inverted.nlist if inverted else 0
        rates = []
        for share in SHARES if inverted else (1,):
            if inverted:
                inverted.nprobe = max(lists // share, 1)
            find(index, asked[0], WANTED)
            start = measure.now()
            found = [find(index, query, WANTED) for query in asked]
            seconds = measure.now() - start
            recall = np.mean([len(best & {*row.tolist()}) / WANTED for best, row in zip(right, found, strict=True)])
            rates.append((inverted.nprobe if inverted else 0, queries / seconds, float(recall)))
    return Result(lists, train, grown, size, rates)


def show(factory: str, results: dict[int, Result]) -> None:
    """Print the rows of one kind of index, and the exponents of their growth."""
    for count, result in results.items():
        for searched, rate, recall in result.rates:
            lists = f"{searched} of {result.lists}" if result.lists else "-"
            print(
                f"| {factory} | {count:,} | {result.train:.2f} | {result.grown:.2f} | {result.size:.3f} | {lists} | "
                f"{1000 / rate:.2f} | {rate:.0f} | {recall:.3f} |"
            )
    if len(results) > 1:
        counts = np.log(list(results))
        times = [[result.train for result in results.values()]]
        times += [[1 / result.rates[-1][1] for result in results.values()]]
        train, query = (np.polyfit(counts, np.log(np.maximum(values, 1e-4)), 1)[0] for values in times)
        print(f"| {factory} | exponent | {train:.2f} | | | | {query:.2f} | | |", flush=True)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="vectors")
    parser.add_argument("--factories", nargs="+", default=["Flat", "IVF,Flat", "IVF,SQ8"], help="of faiss")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; times of one are those of the processor")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for the processes that are started below
    print("| index | vectors | build s | build GB | file GB | lists | ms a query | queries/s | recall@128 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for factory in options.factories:
        results = {}
        for count in tqdm(options.sizes, factory, leave=False):
            results[count] = measure.apart(options.threads, time_index, count, factory, options.queries)
        show(factory, results)


if __name__ == "__main__":
    main()
