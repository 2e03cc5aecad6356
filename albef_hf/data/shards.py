"""Pairs in tar files, each read by its place.

The layout is that of webdataset and img2dataset: `KEY.jpg` with `KEY.json`, which has a `caption`, a text or several,
or with `KEY.txt`. A tar file can only be read from its beginning, and one hole loses the rest. So an index beside the
shards says where every picture and every caption lies, with the CRC-32 of each: any pair can be read at any time, and
one that has been damaged is found, told, and alone.
"""

import contextlib
import functools
import json
import os
import tarfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from ..processing_albef import encodable
from ..utils.files import digest, written_aside
from ..utils.progress import progress
from .pairs import BadSampleError, Issue
from .row_values import flatten_texts

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
BLOCK, WINDOW = 256, 16384  # pairs that are read from one place, and pairs among which is shuffled
OPEN_FILES = 128
BAD_HEADERS = 100  # of a tar file, after which the rest of it is not read
READ_AHEAD = 1 << 17  # bytes; of more than that, Linux would fetch the beginning only


class Shards(Sequence):
    """The pairs of one or several folders of shards, as rows with `image` (encoded) and `caption`.

    Their tables are mapped, not read, and shared by all processes of a machine.

    Args:
        folders: Each has an index; see `index_folder`.
        chosen: Numbers of the rows that it is about, rising; None: all of them.

    Attributes:
        bounds: Number of the first of the rows in each shard, and of all rows, (shards + 1,).

    Raises:
        ValueError: If a folder has no index, or one that is damaged.
    """

    def __init__(self, folders: Sequence[str | os.PathLike], chosen: np.ndarray | None = None):
        self.folders, self.chosen = list(map(Path, folders)), chosen
        self.paths: list[Path] = []
        self.sizes: list[int] = []
        self.tables: list[np.ndarray] = []
        for folder in self.folders:
            index, table = _read_index(folder)
            ends = np.cumsum([shard["rows"] for shard in index["shards"]], dtype=np.int64)
            self.tables += np.split(table, ends[:-1])
            self.paths += [folder / shard["file"] for shard in index["shards"]]
            self.sizes += [shard["bytes"] for shard in index["shards"]]
        self.starts = np.cumsum([0, *map(len, self.tables)], dtype=np.int64)  # number of each shard's first row
        self.bounds = self.starts if chosen is None else np.searchsorted(chosen, self.starts)
        self._open = functools.lru_cache(OPEN_FILES)(_open)
        self._fetch = functools.lru_cache(1024)(self._fetch)  # each block once, while it matters

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read a row.

        Raises:
            BadSampleError: If it is not what it was when the index was made.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} pairs; {index} is not one of them.")
        shard = self._shard_of(index)
        place = self._place(shard, index)
        image = self._read(shard, *(int(place[f"image_{part}"]) for part in ("start", "bytes", "crc")))
        text = self._read(shard, *(int(place[f"text_{part}"]) for part in ("start", "bytes", "crc")))
        if not place["is_json"]:
            return {"image": image, "caption": text.decode("utf-8", errors="replace")}
        try:
            return {"image": image, "caption": json.loads(text)["caption"]}
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            detail = f"{self.paths[shard]}: the text of row {index} is not JSON with a caption"
            raise BadSampleError(Issue.SHARD_DAMAGED, detail) from error

    def __reduce__(self) -> tuple:
        return Shards, (self.folders, self.chosen)  # not the tables, nor open files

    def select(self, rows: np.ndarray) -> "Shards":
        """Some of the rows, by their numbers, which have to rise."""
        return Shards(self.folders, rows if self.chosen is None else self.chosen[rows])

    def pictures(self) -> np.ndarray:
        """A number for each row which rows of the same picture share, (rows,)."""
        numbers = [table["image_bytes"].astype(np.uint64) << 32 | table["image_crc"] for table in self.tables]
        numbers = np.concatenate([np.zeros(0, np.uint64), *numbers])
        return numbers if self.chosen is None else numbers[self.chosen]

    def faults(self) -> list[str]:
        """Shards that are missing or have another size than they had, and how many pairs the index has of each."""
        faults = []
        for path, size, table in zip(self.paths, self.sizes, self.tables, strict=True):
            present = path.stat().st_size if path.is_file() else None
            if present != size:
                found = "is missing" if present is None else f"has {present} bytes instead of {size}"
                faults.append(f"{path} {found} ({len(table)} pairs)")
        return faults

    def read_ahead(self, index: int) -> None:
        """Let the system fetch all of a row's block, in one go, since `ShardOrder` asks for its other rows soon."""
        shard = self._shard_of(index)
        self._fetch(shard, (index - int(self.bounds[shard])) // BLOCK, os.getpid())

    def _fetch(self, shard: int, block: int, process: int) -> None:
        if not hasattr(os, "posix_fadvise"):
            return
        first = int(self.bounds[shard]) + block * BLOCK
        last = min(first + BLOCK, int(self.bounds[shard + 1])) - 1
        start, end = (int(self._place(shard, row)["image_start"]) for row in (first, last))
        with contextlib.suppress(OSError):  # a row that cannot be read is told when it is
            file = self._open(self.paths[shard], process).fileno()
            for part in range(start, min(end + 1, os.fstat(file).st_size), READ_AHEAD):
                os.posix_fadvise(file, part, READ_AHEAD, os.POSIX_FADV_WILLNEED)

    def _shard_of(self, index: int) -> int:
        return int(np.searchsorted(self.bounds, index, "right")) - 1

    def _place(self, shard: int, index: int) -> np.void:
        number = index if self.chosen is None else int(self.chosen[index])
        return self.tables[shard][number - self.starts[shard]]

    def _read(self, shard: int, start: int, size: int, crc: int) -> bytes:
        try:
            if start + size > self.sizes[shard]:
                raise OSError(f"bytes {start} to {start + size} are beyond its {self.sizes[shard]} bytes")
            file = self._open(self.paths[shard], os.getpid())  # a process that is forked shares no place in a file
            file.seek(start)
            content = file.read(size)
        except OSError as error:
            raise BadSampleError(Issue.SHARD_DAMAGED, f"{self.paths[shard]}: {error}") from error
        if len(content) < size or zlib.crc32(content) != crc:
            detail = f"{self.paths[shard]}: bytes {start} to {start + size} are not what they were (CRC-32)"
            raise BadSampleError(Issue.SHARD_DAMAGED, detail)
        return content


class ShardOrder(torch.utils.data.Sampler[int]):
    """The order in which a process reads rows of shards: shuffled, and yet from few places at a time.

    Rows that lie side by side form blocks. All blocks are shuffled and dealt out to the processes in equal stretches;
    each process shuffles the rows of the next blocks, a window, among each other. Which row comes when depends on
    seed, epoch and number of processes alone, so a place in an epoch is a number. In an epoch every row comes once, on
    one process; as many as the number of processes does not divide are left out, other ones each time.

    Args:
        bounds: Number of the first row of each shard, and of all rows, (shards + 1,).
        seed: Seed of the order.
        process: Number of this process.
        processes: How many there are.
        block: Rows that are read from one place.
        window: Rows among which a process shuffles.

    Raises:
        ValueError: If there are no rows.
    """

    def __init__(
        self,
        bounds: np.ndarray,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
        block: int = BLOCK,
        window: int = WINDOW,
    ):
        if not len(bounds) or bounds[-1] == 0:
            raise ValueError("There is no row to bring into an order: give shards with pairs.")
        starts = [np.arange(start, end, block) for start, end in zip(bounds[:-1], bounds[1:], strict=True)]
        ends = [np.minimum(part + block, end) for part, end in zip(starts, bounds[1:], strict=True)]
        self.starts, self.ends = np.concatenate(starts), np.concatenate(ends)
        self.seed, self.process, self.window, self.epoch = seed, process, window, 0
        self.length = int(bounds[-1]) // processes

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Change the order; called by the data loader."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.starts))
        starts, ends = self.starts[order], self.ends[order]
        dealt = np.cumsum(ends - starts)  # rows up to the end of each block
        first, last = self.process * self.length, (self.process + 1) * self.length
        for number, begin in enumerate(range(first, last, self.window)):
            end = min(begin + self.window, last)
            blocks = slice(np.searchsorted(dealt, begin, "right"), np.searchsorted(dealt, end, "left") + 1)
            rows = np.concatenate([np.arange(*bounds) for bounds in zip(starts[blocks], ends[blocks], strict=True)])
            before = dealt[blocks.start] - (ends - starts)[blocks.start]
            rng = np.random.default_rng((self.seed, self.epoch, self.process, number))
            yield from rng.permutation(rows[begin - before : end - before]).tolist()


@dataclass
class LeftOut:
    """Members of tar files that make no pair, and tar files that cannot be read.

    Args:
        counts: How many there are for each reason.
        first: Name of the first of them for each reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count one, and note its name if it is the first."""
        self.counts[reason] += 1
        printable = "".join(character if character.isprintable() else "?" for character in encodable(name))
        self.first.setdefault(reason, printable[:200])

    def update(self, later: "LeftOut") -> None:
        """Add those of a later tar file."""
        self.counts.update(later.counts)
        self.first = later.first | self.first

    def __str__(self) -> str:
        """Each reason with its count and the first name."""
        return ", ".join(f"{reason} {self.counts[reason]} (first {name})" for reason, name in self.first.items())


def index_folder(
    folder: Path, workers: int = 0, expected: Mapping[str, int] | None = None, **more: Any
) -> dict[str, Any]:
    """Read all tar files of a folder and write an index of them; one that cannot be read is skipped and named.

    Args:
        folder: Where they are.
        workers: Processes that read; 0 reads in this one.
        expected: Number of pairs of each tar file, by its name, if that is known.
        more: What else there is to know; it goes into `index.json`.

    Returns:
        What `index.json` holds: `rows`, `shards` (each with `file`, `rows`, `bytes`, `sha256`), `left_out` (members of
        tar files that make no pair, by reason), `left_out_first` (name of the first of each), the size and SHA-256 of
        the `table`, and `more`.

    Raises:
        ValueError: If there is no pair, or a tar file has another number of pairs than is expected.
    """
    paths = sorted(folder.glob("*.tar"))
    read = results_of(_Indexing(paths), workers)
    tables, shards, left_out = [], [], LeftOut()
    for path, (table, shard, not_paired) in zip(paths, progress(read, "index", len(paths), unit="shard"), strict=True):
        left_out.update(not_paired)
        if shard is not None:
            tables.append(table)
            shards.append({"file": path.name, **shard})
    if expected is not None:
        _require_pairs({shard["file"]: shard["rows"] for shard in shards}, expected, folder)
    rows = sum(map(len, tables))
    if not rows:
        found = f" What was found: {left_out}." if left_out.counts else ""
        raise ValueError(
            f"No tar file in {folder} holds a picture and, under the same name, a .json or .txt caption.{found}"
        )
    more |= {"left_out": dict(left_out.counts), "left_out_first": left_out.first}
    with written_aside(folder / TABLE) as aside, aside.open("wb") as file:
        np.save(file, np.concatenate(tables))
    table = {"file": TABLE, "bytes": (folder / TABLE).stat().st_size, "sha256": digest(folder / TABLE)}
    index = {"rows": rows, **more, "table": table, "shards": shards}
    with written_aside(folder / INDEX) as aside:
        aside.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return index


def _require_pairs(found: dict[str, int], expected: Mapping[str, int], folder: Path) -> None:
    """Raise a `ValueError` where tar files have other numbers of pairs than they should."""
    wrong = [
        f"{name} has {found.get(name, 'no')} pairs instead of {expected.get(name, 'none')}"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        raise ValueError(
            f"{folder}: {'; '.join(wrong[:5])}{' ...' if wrong[5:] else ''}. Remove these files, and give the same "
            "command again to make them anew."
        )


def check_folder(folder: Path, workers: int = 0) -> list[str]:
    """What is wrong with the shards of a folder, compared with the index; all of them are read.

    Args:
        folder: Where they are.
        workers: Processes that read; 0 reads in this one.
    """
    index, _ = _read_index(folder)
    listed = [(folder / shard["file"], shard["bytes"], shard["sha256"]) for shard in index["shards"]]
    faults = progress(results_of(_Checking(listed), workers), "check", len(listed), unit="shard")
    return [fault for fault in faults if fault]


def results_of(work: torch.utils.data.Dataset, workers: int) -> Iterator[Any]:
    """The items of a dataset, in order, each made by one of so many processes; 0 makes them in this one."""
    settings = {"batch_size": None, "collate_fn": _as_it_is, "worker_init_fn": end_with_parent}
    return iter(torch.utils.data.DataLoader(work, num_workers=workers, **settings))


def end_with_parent(worker: int) -> None:
    """End this worker soon after its parent has ended, even if that was killed; a `worker_init_fn`."""
    parent = torch.multiprocessing.parent_process().pid

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _as_it_is(result: Any) -> Any:
    return result


def _open(path: Path, process: int) -> BinaryIO:
    if not path.is_file():  # to open a named pipe would wait for its writer
        raise FileNotFoundError("it is missing, or not a file")
    return path.open("rb")


def _read_index(folder: Path) -> tuple[dict[str, Any], np.ndarray]:
    """The index of a folder, and its table."""
    remedy = f"python train/prepare_shards.py --output_dir {folder} makes one of the tar files there."
    missing = [name for name in (INDEX, TABLE) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} has no {missing[0]}: {remedy}")
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        shards = index["shards"]
        _check_shards(shards)
        if digest(folder / TABLE) != index["table"]["sha256"]:
            raise ValueError(f"{TABLE} is not the one that {INDEX} speaks of")
        table = np.load(folder / TABLE, mmap_mode="r")
        is_table = isinstance(table, np.ndarray) and table.dtype == PLACE and table.ndim == 1
        if not is_table or len(table) != sum(shard["rows"] for shard in shards):
            raise ValueError(f"{TABLE} is not a table of these shards")
    except (OSError, ValueError, LookupError, TypeError, EOFError, RecursionError) as error:
        raise ValueError(f"The index of {folder} cannot be read ({error}): {remedy}") from error
    return index, table


def _check_shards(shards: Any) -> None:
    """Raise a `ValueError` unless this is what an index says of its shards."""
    if not isinstance(shards, list) or not shards:
        raise ValueError(f"{INDEX} lists no shards")
    for shard in shards:
        file, *numbers = (shard[name] for name in ("file", "rows", "bytes"))
        if not isinstance(file, str) or Path(file).name != file or file == ".." or "\0" in file:
            raise ValueError(f"{file!r} is not the name of a file in this folder")
        if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
            raise ValueError(f"rows and bytes of {file} are {numbers}")
        if not isinstance(shard["sha256"], str):
            raise ValueError(f"{file} has no SHA-256")


class _Checking(torch.utils.data.Dataset):
    """For each shard what is wrong with it, or nothing."""

    def __init__(self, listed: list[tuple[Path, int, str]]):
        self.listed = listed

    def __len__(self) -> int:
        return len(self.listed)

    def __getitem__(self, number: int) -> str:
        path, size, sha256 = self.listed[number]
        try:
            if not path.is_file():
                return f"{path} is missing, or not a file"
            if (present := path.stat().st_size) != size:
                return f"{path} has {present} bytes instead of {size}"
            return "" if digest(path) == sha256 else f"the content of {path} is not what it was (SHA-256)"
        except OSError as error:
            return f"{path} cannot be read: {error}"


class _Indexing(torch.utils.data.Dataset):
    """For each tar file its part of the table, its size and digest, and what makes no pair."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[np.ndarray, dict[str, Any] | None, LeftOut]:
        path, left_out = self.paths[number], LeftOut()
        rows: list[tuple] = []
        try:
            with _open(path, os.getpid()) as file:
                rows = _rows_of(file, path.name, left_out)
            shard = {"rows": len(rows), "bytes": path.stat().st_size, "sha256": digest(path)}
        except OSError as error:
            left_out.add("unreadable", f"{path.name}: {error}")
            return np.array([], PLACE), None, left_out
        return np.array(rows, PLACE), shard, left_out


def _rows_of(file: BinaryIO, name: str, left_out: LeftOut) -> list[tuple]:
    """Rows of the table, one for each pair of a tar file."""
    samples: dict[str, dict[str, tuple[str, tuple]]] = {}
    for member in _members(file, name, left_out):
        key, kind = _split(member.name)
        part, place = _part(file, member, kind) if key else ("hidden", None)
        if place is None:
            left_out.add(part, f"{name}: {member.name}")
        elif part in samples.setdefault(key, {}):
            left_out.add("duplicate", f"{name}: {member.name}")
        else:
            samples[key][part] = (member.name, place)
    rows = []
    for parts in samples.values():
        text = parts.get("json") or parts.get("txt")
        if "image" in parts and text:
            rows.append((*parts["image"][1], *text[1], "json" in parts))
            continue
        for member_name, _ in parts.values():
            left_out.add("no_caption" if "image" in parts else "no_picture", f"{name}: {member_name}")
    return rows


def _split(name: str) -> tuple[str, str]:
    """The key of a member and its kind, what comes behind the last dot; no key for a file that starts with a dot.

    webdataset ends a key at the first dot. For `KEY.jpg` that is the same, and a key may have dots itself here. Files
    that start with a dot are no members to it either: macOS writes `._KEY.jpg` beside `KEY.jpg`.
    """
    folder, _, file = name.rpartition("/")
    key, dot, kind = file.rpartition(".")
    if not dot:
        return f"{folder}/{file}", ""
    return "" if file.startswith(".") else f"{folder}/{key}", kind.lower()


def _members(file: BinaryIO, name: str, left_out: LeftOut) -> Iterator[tarfile.TarInfo]:
    """The files in a tar file, beyond holes and headers that make no sense too."""
    size, start, found, failed = os.fstat(file.fileno()).st_size, 0, False, False
    for _ in range(BAD_HEADERS):
        tar = None
        try:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
                while member := tar.next():
                    found = True
                    tar.members = []  # which would keep all of them
                    if member.issparse() or not (member.isfile() or member.isdir()):
                        left_out.add("not_a_file", f"{name}: {member.name}")
                    elif member.size < 0 or member.offset_data + member.size > size:
                        left_out.add("truncated", f"{name}: {member.name}")
                        tar.offset = member.offset_data  # where the next header is looked for; never further back
                    elif member.isfile():
                        yield member
            break
        except Exception as error:  # tarfile raises whatever its parsing of garbage does
            failed = True
            start = (tar.offset if tar else start) + tarfile.BLOCKSIZE
            left_out.add("header_unreadable", f"{name}: byte {start - tarfile.BLOCKSIZE}, {error}")
            if start >= size:
                break
    file.seek(0)
    if not found and not failed and any(file.read(tarfile.BLOCKSIZE)):  # an empty one consists of zeros
        left_out.add("not_a_tar_file", name)


def _part(file: BinaryIO, member: tarfile.TarInfo, kind: str) -> tuple[str, tuple[int, int, int] | None]:
    """What a member is to a pair, with its place and CRC-32; the reason, and no place, where it is nothing."""
    is_picture = f".{kind}" in Image.registered_extensions()
    if not (is_picture or kind in ("json", "txt")):
        return "unknown_kind", None
    if member.size >= 1 << 32:  # beyond what a place has room for
        return "too_large", None
    place = file.tell()
    file.seek(member.offset_data)
    content = file.read(member.size)
    file.seek(place)
    if len(content) < member.size:
        return "truncated", None
    if kind == "json" and not _has_caption(content):
        return "json_without_caption", None
    return "image" if is_picture else kind, (member.offset_data, member.size, zlib.crc32(content))


def _has_caption(content: bytes) -> bool:
    try:
        return any(isinstance(text, str) for text in flatten_texts(json.loads(content)["caption"]))
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
