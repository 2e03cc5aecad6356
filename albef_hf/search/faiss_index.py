"""Nearest neighbours among many vectors, by faiss.

What is built is named by a string of faiss's `index_factory`: `Flat` compares with every vector; `IVF4096,Flat` sorts
the vectors into 4,096 lists and compares with those of some lists; `IVF4096,SQ8` or `OPQ32,IVF4096,PQ32` hold them
compressed. See https://github.com/facebookresearch/faiss/wiki/The-index-factory.

Most strings can be taken. Refused before a picture is encoded are those without inner products, such as `LSH` and
`IMI2x8,Flat`, and those of bits, such as `BFlat`; refused afterwards, when the features are on the disk already, those
whose vectors cannot have numbers, `IDMap` and `RFlat` or `Refine` after an `IVF` (which nobody needs: the numbers are
given here, and the best candidates are compared by their whole features anyway), and those that want more pictures to
be trained. Graphs, `HNSW` and `NSG`, are made anew when a picture goes, and may find fewer than they are asked for.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

try:
    import faiss
except ImportError as error:
    raise ImportError('Searching pictures needs faiss: pip install -e ".[search]"') from error

FLAT_UP_TO = 1_000_000  # vectors, for which exact search takes a fraction of a second
TRAINING_VECTORS = 64  # of each list; faiss wants 39 at least
LISTS_SHARE = 16  # one list of so many is searched


def ivf_lists(vectors: int) -> int:
    """Into how many lists to sort so many vectors: about four for each one in the root."""
    return 2 ** round(math.log2(4 * vectors**0.5))


def default_factory(vectors: int) -> str:
    """What to build of so many vectors: what compares with all of them up to a million, then lists."""
    return "Flat" if vectors <= FLAT_UP_TO else f"IVF{ivf_lists(vectors)},Flat"


def check_factory(factory: str, width: int) -> None:
    """Refuse a string of which faiss makes nothing that has inner products, before there is anything to build of it.

    Raises:
        ValueError: If it does not.
    """
    try:
        faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"faiss cannot make the factory {factory!r} for inner products of vectors of {width}: {_reason(error)}. "
            "Examples: Flat, IVF1024,Flat, IVF4096,SQ8."
        ) from error


def make_vectors(factory: str, blocks: Sequence[tuple[np.ndarray, np.ndarray]], width: int) -> faiss.Index:
    """Build what finds vectors by their inner product.

    Args:
        factory: String of faiss's `index_factory`.
        blocks: Ids (vectors,), int64, and vectors (vectors, width), float32, which may be mapped to memory.
        width: Of a vector.

    Raises:
        ValueError: If faiss does not know the string, or there are too few vectors for it.
    """
    count = sum(len(ids) for ids, _ in blocks)
    try:
        index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
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
            f"faiss cannot make {factory!r} of {count} pictures: {_reason(error)}. Choose another factory; 'Flat' "
            "needs no training and always works."
        ) from error
    return index


def changed_vectors(
    index: faiss.Index, removed: np.ndarray, added: Sequence[tuple[np.ndarray, np.ndarray]]
) -> faiss.Index | None:
    """Remove vectors by their ids, and add others, in blocks as `make_vectors` takes them.

    Returns:
        The index, or None where its kind cannot remove: it has to be made anew.
    """
    try:
        if len(removed):
            index.remove_ids(removed)
    except RuntimeError:  # HNSW, for one
        return None
    for ids, vectors in added:
        index.add_with_ids(vectors, ids)
    return index


def find(index: faiss.Index, query: np.ndarray, count: int) -> np.ndarray:
    """Ids of the vectors nearest to a query, best first; `count` of them if there are as many.

    Where the lists that are searched hold fewer, more lists are.
    """
    count = min(count, index.ntotal)
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    lists = faiss.try_extract_index_ivf(index)
    usual = lists.nprobe if lists else 0
    try:
        while True:
            found = index.search(query[None], count)[1][0]
            found = found[found >= 0]
            if lists is None or len(found) == count or lists.nprobe >= lists.nlist:
                return found
            lists.nprobe = min(4 * lists.nprobe, lists.nlist)
    finally:
        if lists:
            lists.nprobe = usual


def read_vectors(path: Path, mapped: bool = True) -> faiss.Index:
    """Read from a file; mapped to memory for searching, else to be changed.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} cannot be read: {_reason(error)}.") from error


def write_vectors(index: faiss.Index, path: Path) -> None:
    """Write to a file.

    Raises:
        OSError: If that fails, as on a full disk.
    """
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written: {_reason(error)}") from error


def _sample(blocks: Sequence[tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    """Some vectors to train with, always the same ones of the same vectors."""
    sizes = [len(ids) for ids, _ in blocks]
    total = sum(sizes)
    chosen = np.sort(np.random.default_rng(0).choice(total, min(count, total), replace=False))
    places = np.split(chosen, np.searchsorted(chosen, np.cumsum(sizes)[:-1]))
    starts = np.cumsum([0, *sizes[:-1]])
    parts = zip(blocks, places, starts, strict=True)
    return np.concatenate([np.asarray(vectors)[numbers - start] for (_, vectors), numbers, start in parts])


def _reason(error: Exception) -> str:
    """What faiss says, without the place in its code."""
    return str(error).rpartition(": ")[2].strip().rstrip(".") or str(error)
