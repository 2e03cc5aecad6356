"""Read image-text pairs from tar files by their position.

The layout is that of webdataset and img2dataset: `KEY.jpg` with `KEY.json`, which has a `caption`, a text or several,
or with `KEY.txt`. A tar file can only be read from its start, and a hole in it loses all that follows. Therefore an
index beside the shards has the position and the CRC-32 of every image and every caption: any pair can be read at any
time, and damage is found and costs only the pairs that it hits. `shard_index` makes the index.
"""

import contextlib
import functools
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..utils.files import sha256, size_problem
from .row_errors import InvalidSampleError, SkipReason

INDEX = "index.json"  # the shards, with their sizes and SHA-256
TABLE = "index.npy"  # a row for each pair
PLACE = np.dtype(
    [
        ("image_start", "<u8"),  # in the tar file, in bytes
        ("image_bytes", "<u4"),
        ("image_crc", "<u4"),
        ("text_start", "<u8"),
        ("text_bytes", "<u4"),
        ("text_crc", "<u4"),
        ("is_json", "?"),
    ]
)
BLOCK = 256  # neighboring pairs that are read ahead together
OPEN_FILES = 128
READ_AHEAD = 1 << 17  # bytes per request; of larger requests, Linux fetches only the start


class Shards(Sequence):
    """The pairs of one or several folders of shards, as rows with `image` (encoded) and `caption`.

    The tables are memory-mapped, and shared by all processes of a machine.

    Args:
        folders: Folders with an index; see `shard_index.index_folder`.
        indices: Increasing indices of the rows to use; default: all rows.

    Attributes:
        bounds: Index of the first row of each shard, and the number of rows, (shards + 1,).

    Raises:
        ValueError: If a folder has no index, or a damaged one.
    """

    def __init__(self, folders: Sequence[str | os.PathLike], indices: np.ndarray | None = None):
        self.folders = [Path(folder) for folder in folders]
        self.indices = indices
        self.paths: list[Path] = []
        self.sizes: list[int] = []
        self.tables: list[np.ndarray] = []
        for folder in self.folders:
            index, table = read_index(folder)
            ends = np.cumsum([shard["rows"] for shard in index["shards"]], dtype=np.int64)
            self.tables += np.split(table, ends[:-1])
            self.paths += [folder / shard["file"] for shard in index["shards"]]
            self.sizes += [shard["bytes"] for shard in index["shards"]]
        self.starts = np.cumsum([0, *map(len, self.tables)], dtype=np.int64)  # of the shards, in all rows
        self.bounds = self.starts if indices is None else np.searchsorted(indices, self.starts)
        self._open = functools.lru_cache(OPEN_FILES)(_open_in_process)
        self._fetch_once = functools.lru_cache(1024)(self._fetch)

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # slices are not supported
        """Read a row.

        Raises:
            InvalidSampleError: If it has changed since the index was made.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} pairs; {index} is not one of them.")
        shard = self._shard_of(index)
        place = self._place(shard, index)
        image = self._read(shard, place, "image")
        text = self._read(shard, place, "text")
        if not place["is_json"]:
            return {"image": image, "caption": text.decode("utf-8", errors="replace")}
        try:
            return {"image": image, "caption": json.loads(text)["caption"]}
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            detail = f"{self.paths[shard]}: the text of row {index} is not JSON with a caption"
            raise InvalidSampleError(SkipReason.SHARD_DAMAGED, detail) from error

    def __reduce__(self) -> tuple:
        return Shards, (self.folders, self.indices)  # without the tables and open files

    def select(self, rows: np.ndarray) -> "Shards":
        """Return some of the rows, by their increasing indices."""
        return Shards(self.folders, rows if self.indices is None else self.indices[rows])

    def image_ids(self) -> np.ndarray:
        """Return an id for each row, (rows,); rows with the same image have the same id."""
        ids = [table["image_bytes"].astype(np.uint64) << 32 | table["image_crc"] for table in self.tables]
        all_ids = np.concatenate([np.zeros(0, np.uint64), *ids])
        return all_ids if self.indices is None else all_ids[self.indices]

    def faults(self) -> list[str]:
        """Describe the shards that are missing or have another size than in the index."""
        problems = map(size_problem, self.paths, self.sizes)
        return [
            f"{problem} ({len(table)} pairs)" for problem, table in zip(problems, self.tables, strict=True) if problem
        ]

    def read_ahead(self, index: int) -> None:
        """Let the system fetch the whole block of a row, because `ShardOrder` asks for its other rows soon."""
        shard = self._shard_of(index)
        block = (index - int(self.bounds[shard])) // BLOCK
        self._fetch_once(shard, block, os.getpid())

    def _fetch(self, shard: int, block: int, process_id: int) -> None:
        if not hasattr(os, "posix_fadvise"):
            return
        first = int(self.bounds[shard]) + block * BLOCK
        last = min(first + BLOCK, int(self.bounds[shard + 1])) - 1
        start, end = (int(self._place(shard, row)["image_start"]) for row in (first, last))
        with contextlib.suppress(OSError):  # reading the row will report it
            file = self._open(self.paths[shard], process_id).fileno()
            for part in range(start, min(end + 1, os.fstat(file).st_size), READ_AHEAD):
                os.posix_fadvise(file, part, READ_AHEAD, os.POSIX_FADV_WILLNEED)

    def _shard_of(self, index: int) -> int:
        return int(np.searchsorted(self.bounds, index, "right")) - 1

    def _place(self, shard: int, index: int) -> np.void:
        row = index if self.indices is None else int(self.indices[index])
        return self.tables[shard][row - self.starts[shard]]

    def _read(self, shard: int, place: np.void, part: str) -> bytes:
        """Read the image or the text of a row and verify its checksum."""
        start, size, crc = (int(place[f"{part}_{field}"]) for field in ("start", "bytes", "crc"))
        end = start + size
        try:
            if end > self.sizes[shard]:
                raise OSError(f"bytes {start} to {end} are beyond its {self.sizes[shard]} bytes")
            file = self._open(self.paths[shard], os.getpid())  # forked processes would share the position in a file
            file.seek(start)
            content = file.read(size)
        except OSError as error:
            raise InvalidSampleError(SkipReason.SHARD_DAMAGED, f"{self.paths[shard]}: {error}") from error
        if len(content) < size or zlib.crc32(content) != crc:
            detail = f"{self.paths[shard]}: bytes {start} to {end} have changed since they were indexed (CRC-32)"
            raise InvalidSampleError(SkipReason.SHARD_DAMAGED, detail)
        return content


def open_shard(path: Path) -> BinaryIO:
    """Open a tar file.

    Raises:
        FileNotFoundError: If it is missing or not a regular file; opening a named pipe would wait for its writer.
    """
    if not path.is_file():
        raise FileNotFoundError("it is missing, or not a file")
    return path.open("rb")


def _open_in_process(path: Path, process_id: int) -> BinaryIO:
    """Open a tar file for a process; the id is part of the cache key, so that each process has its own position."""
    return open_shard(path)


def read_index(folder: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Read and verify the index of a folder.

    Returns:
        The content of `index.json`, and the memory-mapped table, (pairs,) of `PLACE`.

    Raises:
        ValueError: If there is no index, or it is damaged or does not match its table.
    """
    remedy = f"albef shards --output_dir {folder} indexes the tar files there."
    missing = [name for name in (INDEX, TABLE) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} has no {missing[0]}: {remedy}")
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        shards = index["shards"]
        _check_entries(shards)
        if sha256(folder / TABLE) != index["table"]["sha256"]:
            raise ValueError(f"{TABLE} does not match {INDEX}")
        table = np.load(folder / TABLE, mmap_mode="r")
        is_table = isinstance(table, np.ndarray) and table.dtype == PLACE and table.ndim == 1
        if not is_table or len(table) != sum(shard["rows"] for shard in shards):
            raise ValueError(f"{TABLE} is not a table of these shards")
    except (OSError, ValueError, LookupError, TypeError, EOFError, RecursionError) as error:
        raise ValueError(f"The index of {folder} cannot be read ({error}): {remedy}") from error
    return index, table


def _check_entries(shards: Any) -> None:
    """Raise a `ValueError` unless this is the list of shards of an index."""
    if not isinstance(shards, list) or not shards:
        raise ValueError(f"{INDEX} lists no shards")
    for shard in shards:
        file = shard["file"]
        counts = [shard["rows"], shard["bytes"]]
        if not isinstance(file, str) or Path(file).name != file or file == ".." or "\0" in file:
            raise ValueError(f"{file!r} is not the name of a file in this folder")
        if not all(type(count) is int and 0 <= count < 1 << 63 for count in counts):
            raise ValueError(f"rows and bytes of {file} are {counts}")
        if not isinstance(shard["sha256"], str):
            raise ValueError(f"{file} has no SHA-256")
