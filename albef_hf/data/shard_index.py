"""Index the tar files of a folder, so that `Shards` can read any pair, and compare them with their index."""

import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from ..processing_albef import replace_surrogates
from ..utils.files import atomic_write, file_problem, file_record
from ..utils.progress import progress
from .row_values import flatten_texts
from .shards import INDEX, PLACE, TABLE, open_shard, read_index
from .workers import run_in_workers

MAX_BAD_HEADERS = 100  # of a tar file, after which the rest of it is not read


@dataclass
class SkippedMembers:
    """Members of tar files that are not part of a pair, and tar files that cannot be read.

    Args:
        counts: Number for each reason.
        first: Name of the first one for each reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count one member, and remember its name if it is the first."""
        self.counts[reason] += 1
        printable = "".join(character if character.isprintable() else "?" for character in replace_surrogates(name))
        self.first.setdefault(reason, printable[:200])

    def update(self, later: "SkippedMembers") -> None:
        """Add the members of a later tar file."""
        self.counts.update(later.counts)
        self.first = later.first | self.first

    def __str__(self) -> str:
        """Format each reason with its count and the first name."""
        return ", ".join(f"{reason} {self.counts[reason]} (first {name})" for reason, name in self.first.items())


def index_folder(
    folder: Path,
    workers: int = 0,
    expected_pairs: Mapping[str, int] | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Read all tar files of a folder and write an index of them; unreadable files are skipped and named.

    Args:
        folder: Folder with tar files.
        workers: Processes that read; 0 reads in this process.
        expected_pairs: Number of pairs in each tar file, by its name, if that is known.
        about: Further entries of `index.json`.

    Returns:
        The content of `index.json`: `rows`, `shards` (each with `file`, `rows`, `bytes`, `sha256`), `left_out`
        (number of skipped members by reason), `left_out_first` (name of the first one), the size and SHA-256 of the
        `table`, and the entries of `about`.

    Raises:
        ValueError: If there is no pair, or a tar file has an unexpected number of pairs.
    """
    paths = sorted(folder.glob("*.tar"))
    results = progress(run_in_workers(_IndexingJob(paths), workers), "index", len(paths), unit="shard")
    tables = []
    shards = []
    skipped = SkippedMembers()
    for path, (table, shard, skipped_here) in zip(paths, results, strict=True):
        skipped.update(skipped_here)
        if shard is not None:
            tables.append(table)
            shards.append({"file": path.name, **shard})
    if expected_pairs is not None:
        _require_pairs({shard["file"]: shard["rows"] for shard in shards}, expected_pairs, folder)
    rows = sum(map(len, tables))
    if not rows:
        hint = f" Skipped: {skipped}." if skipped.counts else ""
        raise ValueError(
            f"No tar file in {folder} contains an image and, under the same name, a .json or .txt caption.{hint}"
        )
    with atomic_write(folder / TABLE) as unfinished, unfinished.open("wb") as file:
        np.save(file, np.concatenate(tables))
    index = {
        "rows": rows,
        **(about or {}),
        "left_out": dict(skipped.counts),
        "left_out_first": skipped.first,
        "table": {"file": TABLE, **file_record(folder / TABLE)},
        "shards": shards,
    }
    with atomic_write(folder / INDEX) as unfinished:
        unfinished.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return index


def _require_pairs(actual: Mapping[str, int], expected: Mapping[str, int], folder: Path) -> None:
    """Raise a `ValueError` if tar files have an unexpected number of pairs."""
    wrong = [
        f"{name} has {actual.get(name, 'no')} pairs instead of {expected.get(name, 'none')}"
        for name in sorted({*actual, *expected})
        if actual.get(name) != expected.get(name)
    ]
    if wrong:
        raise ValueError(
            f"{folder}: {'; '.join(wrong[:5])}{' ...' if wrong[5:] else ''}. Remove these files, and run the same "
            "command again to rewrite them."
        )


def check_folder(folder: Path, workers: int = 0) -> list[str]:
    """Read all shards of a folder, and describe those that differ from the index.

    Args:
        folder: Folder with shards and an index.
        workers: Processes that read; 0 reads in this process.
    """
    index, _ = read_index(folder)
    job = _CheckingJob(folder, index["shards"])
    problems = progress(run_in_workers(job, workers), "check", len(job), unit="shard")
    return [problem for problem in problems if problem]


class _CheckingJob(torch.utils.data.Dataset):
    """Compare one shard per item with its index entry; the item is a description of the difference, or None."""

    def __init__(self, folder: Path, entries: list[dict[str, Any]]):
        self.folder = folder
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> str | None:
        path = self.folder / self.entries[index]["file"]
        try:
            return file_problem(path, self.entries[index])
        except OSError as error:
            return f"{path} cannot be read: {error}"


class _IndexingJob(torch.utils.data.Dataset):
    """Index one tar file per item: its part of the table, its size and SHA-256, and its skipped members."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, Any] | None, SkippedMembers]:
        path = self.paths[index]
        skipped = SkippedMembers()
        try:
            with open_shard(path) as file:
                rows = _table_rows(file, path.name, skipped)
            shard = {"rows": len(rows), **file_record(path)}
        except OSError as error:
            skipped.add("unreadable", f"{path.name}: {error}")
            return np.array([], PLACE), None, skipped
        return np.array(rows, PLACE), shard, skipped


def _table_rows(file: BinaryIO, file_name: str, skipped: SkippedMembers) -> list[tuple]:
    """Return the rows of the table, one for each pair of a tar file."""
    samples: dict[str, dict[str, tuple[str, tuple]]] = {}
    for member in _members(file, file_name, skipped):
        key, extension = _split(member.name)
        part, place = _classify(file, member, extension) if key else ("hidden", None)
        if place is None:
            skipped.add(part, f"{file_name}: {member.name}")
        elif part in samples.setdefault(key, {}):
            skipped.add("duplicate", f"{file_name}: {member.name}")
        else:
            samples[key][part] = (member.name, place)
    rows = []
    for parts in samples.values():
        text = parts.get("json") or parts.get("txt")
        if "image" in parts and text:
            _, image_place = parts["image"]
            _, text_place = text
            rows.append((*image_place, *text_place, "json" in parts))
            continue
        reason = "no_caption" if "image" in parts else "no_picture"  # counted under these names in saved indexes
        for member_name, _ in parts.values():
            skipped.add(reason, f"{file_name}: {member_name}")
    return rows


def _split(name: str) -> tuple[str, str]:
    """Split the name of a member into its key and its extension; the key of a hidden file is empty.

    webdataset ends a key at the first dot. Here a key may contain dots; for `KEY.jpg` both are the same. webdataset
    skips hidden files too: macOS writes `._KEY.jpg` beside `KEY.jpg`.
    """
    folder, _, file = name.rpartition("/")
    key, dot, extension = file.rpartition(".")
    if not dot:
        return f"{folder}/{file}", ""
    return "" if file.startswith(".") else f"{folder}/{key}", extension.lower()


def _members(file: BinaryIO, file_name: str, skipped: SkippedMembers) -> Iterator[tarfile.TarInfo]:
    """Yield the files in a tar file, including those behind holes and invalid headers."""
    size = os.fstat(file.fileno()).st_size
    start = 0
    has_members = has_failed = False
    for _ in range(MAX_BAD_HEADERS):
        tar = None
        try:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
                while member := tar.next():
                    has_members = True
                    tar.members = []  # type: ignore[attr-defined]  # which would collect all of them
                    if member.issparse() or not (member.isfile() or member.isdir()):
                        skipped.add("not_a_file", f"{file_name}: {member.name}")
                    elif member.size < 0 or member.offset_data + member.size > size:
                        skipped.add("truncated", f"{file_name}: {member.name}")
                        tar.offset = member.offset_data  # look for the next header here, never further back
                    elif member.isfile():
                        yield member
            break
        except Exception as error:  # tarfile raises many kinds of errors on garbage
            has_failed = True
            start = (tar.offset if tar else start) + tarfile.BLOCKSIZE
            skipped.add("header_unreadable", f"{file_name}: byte {start - tarfile.BLOCKSIZE}, {error}")
            if start >= size:
                break
    file.seek(0)
    if not has_members and not has_failed and any(file.read(tarfile.BLOCKSIZE)):  # an empty tar file is all zeros
        skipped.add("not_a_tar_file", file_name)


def _classify(file: BinaryIO, member: tarfile.TarInfo, extension: str) -> tuple[str, tuple[int, int, int] | None]:
    """Return "image", "json" or "txt" with start, size and CRC-32; or the reason to skip a member, and None."""
    is_image = f".{extension}" in Image.registered_extensions()
    if not (is_image or extension in ("json", "txt")):
        return "unknown_kind", None
    if member.size >= 1 << 32:  # the table has 32 bits for it
        return "too_large", None
    position = file.tell()
    file.seek(member.offset_data)
    content = file.read(member.size)
    file.seek(position)
    if len(content) < member.size:
        return "truncated", None
    if extension == "json" and not _has_caption(content):
        return "json_without_caption", None
    return "image" if is_image else extension, (member.offset_data, member.size, zlib.crc32(content))


def _has_caption(content: bytes) -> bool:
    try:
        return any(isinstance(text, str) for text in flatten_texts(json.loads(content)["caption"]))
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
