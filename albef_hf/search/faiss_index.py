"""Nearest neighbors among many vectors, by faiss.

A string of faiss's `index_factory` chooses the index: `Flat` compares with every vector; `IVF4096,Flat` sorts the
vectors into 4,096 lists and compares with those of some lists; `IVF4096,SQ8` or `OPQ32,IVF4096,PQ32` compress them.
See https://github.com/facebookresearch/faiss/wiki/The-index-factory.

Most strings are accepted. Indexes without inner products (`LSH`, `IMI2x8,Flat`) and binary indexes (`BFlat`) are
refused before encoding. Indexes without support for custom ids (`IDMap`, and `RFlat` or `Refine` after an `IVF`) and
those that need more images for training are refused afterwards, when the features are on the disk. `IDMap` and
refinement are not needed: this module assigns the ids, and a search compares its candidates by their full features
anyway. Graphs, `HNSW` and `NSG`, are built again when an image is removed, and may find fewer images than requested.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

try:
    import faiss
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('Image search needs faiss: pip install "albef_hf[search]"', name="faiss") from error

Blocks = Sequence[tuple[np.ndarray, np.ndarray]]  # ids (vectors,), int64, and vectors (vectors, width), float32

FLAT_UP_TO = 1_000_000  # vectors, for which exact search takes a fraction of a second
TRAINING_VECTORS = 64  # for each list; faiss wants at least 39
LISTS_SHARE = 16  # a search looks into one list of this many
WRITE_BLOCK = 2**20  # bytes


def ivf_lists(vectors: int) -> int:
    """Return the number of lists for a number of vectors: about four times the square root, a power of two."""
    return 2 ** round(math.log2(4 * vectors**0.5))


def default_index_factory(vectors: int) -> str:
    """Return the index for a number of vectors: exact search up to a million, then lists."""
    return "Flat" if vectors <= FLAT_UP_TO else f"IVF{ivf_lists(vectors)},Flat"


def check_index_factory(index_factory: str, width: int) -> None:
    """Refuse a string that faiss cannot build an index with inner products from."""
    try:
        faiss.index_factory(width, index_factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"faiss cannot create the index {index_factory!r} for inner products of vectors of {width}: "
            f"{_reason(error)}. Examples: Flat, IVF1024,Flat, IVF4096,SQ8."
        ) from error


def build_index(index_factory: str, blocks: Blocks, width: int) -> faiss.Index:
    """Build an index of vectors for the largest inner products.

    Args:
        index_factory: String of faiss's `index_factory`.
        blocks: Ids and vectors, which may be mapped to memory.
        width: Width of a vector.

    Raises:
        ValueError: If faiss does not know the string, or there are too few vectors for it.
    """
    count = sum(len(ids) for ids, _ in blocks)
    try:
        index = faiss.index_factory(width, index_factory, faiss.METRIC_INNER_PRODUCT)
        lists = faiss.try_extract_index_ivf(index)
        if lists is None:
            index = faiss.IndexIDMap(index)
        else:
            lists.nprobe = max(lists.nlist // LISTS_SHARE, 1)
        if not index.is_trained:
            index.train(_sample(blocks, max(TRAINING_VECTORS * (lists.nlist if lists else 0), 2**16)))
        for ids, vectors in blocks:
            index.add_with_ids(vectors, ids)
    except RuntimeError as error:
        raise ValueError(
            f"faiss cannot build {index_factory!r} from {count} images: {_reason(error)}. Choose another "
            "--index_factory (index_factory=); 'Flat' needs no training and always works."
        ) from error
    return index


def update_index(index: faiss.Index, removed: np.ndarray, added: Blocks) -> faiss.Index | None:
    """Remove vectors by their ids, and add others.

    Returns:
        The index, or None if its kind does not support removal and it has to be built again.
    """
    try:
        if len(removed):
            index.remove_ids(faiss.IDSelectorBatch(removed))
    except RuntimeError:  # HNSW, for example
        return None
    for ids, vectors in added:
        index.add_with_ids(vectors, ids)
    return index


def search(index: faiss.Index, query: np.ndarray, count: int) -> np.ndarray:
    """Return the ids of the vectors nearest to a query, best first, and at most `count`.

    More lists are searched than usual if those hold fewer vectors.
    """
    count = min(count, index.ntotal)
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    lists = faiss.try_extract_index_ivf(index)
    usual = lists.nprobe if lists else 0
    try:
        while True:
            ids = index.search(query[None], count)[1][0]
            ids = ids[ids >= 0]
            if lists is None or len(ids) == count or lists.nprobe >= lists.nlist:
                return ids
            lists.nprobe = min(4 * lists.nprobe, lists.nlist)
    finally:
        if lists:
            lists.nprobe = usual


def read_index(path: Path, mapped: bool = True) -> faiss.Index:
    """Read an index from a file; mapped to memory for searching, in memory to be changed.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} cannot be read: {_reason(error)}.") from error


def write_index(index: faiss.Index, path: Path) -> None:
    """Write an index to a file.

    Python writes it: `faiss.write_index(index, path)` reports no error if only the end of the file does not fit on the
    disk, and leaves a truncated file.

    Raises:
        OSError: If it cannot be written, as on a full disk.
        ValueError: If faiss cannot write this kind of index.
    """
    with path.open("wb") as file:
        try:
            writer = faiss.PyCallbackIOWriter(file.write, WRITE_BLOCK)  # type: ignore[attr-defined]
            faiss.write_index(index, writer)
        except RuntimeError as error:
            raise ValueError(f"faiss cannot write {path}: {_reason(error)}. Choose another index.") from error


def _sample(blocks: Blocks, count: int) -> np.ndarray:
    """Return vectors for training, always the same ones for the same vectors."""
    sizes = [len(ids) for ids, _ in blocks]
    total = sum(sizes)
    chosen = np.sort(np.random.default_rng(0).choice(total, min(count, total), replace=False))
    ends = np.cumsum(sizes)
    rows_of_blocks = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    starts = ends - sizes
    parts = zip(blocks, rows_of_blocks, starts, strict=True)
    return np.concatenate([np.asarray(vectors)[rows - start] for (_, vectors), rows, start in parts])


def _reason(error: Exception) -> str:
    """Return the message of faiss without the location in its source code."""
    return str(error).rpartition(": ")[2].strip().rstrip(".") or str(error)
