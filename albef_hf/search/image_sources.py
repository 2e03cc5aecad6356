"""Where pictures that are searched come from: files, or the rows of a dataset or a list.

Each picture has a key, and a stamp that tells whether it is still the one that was read: size and time of change of a
file, a digest of what is in a row.
"""

import bisect
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.utils import logging

from ..data.pairs import BadSampleError, Issue, load_upright

logger = logging.get_logger(f"transformers.{__name__}")

Key = str | int  # path, relative to the folder where there is one, or number of a row
Stamp = tuple[int, int]


def picture_suffixes() -> set[str]:
    """Endings of the names of files that Pillow, with whatever plugins it has, takes for pictures."""
    kinds = Image.registered_extensions().items()
    return {suffix for suffix, kind in kinds if kind in Image.OPEN and Image.MIME.get(kind, "").startswith("image/")}


TIME_TOLERANCE = 2 * 10**9  # nanoseconds, which a copy's time may differ by: archives and FAT round it


class Files:
    """Pictures in files.

    Read are those that the caller has named, by their folder or in a list. Of others, which only an index names, those
    alone that are what the index has recorded of them, so that an index of somebody else shows no private image: it
    would have to know size and time of that file. A link in the folder that leads out of it is such another one,
    unless `keys_of` has listed it, as when the index is built.

    Args:
        root: Folder that keys are relative to. A picture elsewhere has its absolute path as key.
        root_is_named: Whether the caller has named the folder; otherwise an index has.
        recorded: Stamps of the pictures in the index.
    """

    def __init__(
        self,
        root: str | os.PathLike | None = None,
        root_is_named: bool = True,
        recorded: Mapping[Key, Stamp] | None = None,
    ):
        self.root = None if root is None else Path(os.path.abspath(root))
        self.root_is_named = root_is_named
        self.recorded = recorded or {}
        self.named: frozenset[Key] = frozenset()  # keys of files that the caller has named

    def keys_of(self, pictures: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Key]:
        """Keys of the pictures in a folder and below, in order, or of a list of files, each once.

        Files and folders whose names start with a dot are left out, as are links to folders.

        Raises:
            ValueError: If there is no such folder, or no picture in it.
        """
        if not isinstance(pictures, (str, os.PathLike)):
            keys = list(dict.fromkeys(self._key(Path(path).absolute()) for path in pictures))
            if not keys:
                raise ValueError("There is no picture: the list is empty.")
            self.named |= frozenset(keys)
            return keys
        folder = Path(pictures).absolute()
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; give one, or a list of pictures.")
        suffixes = picture_suffixes()
        found = [self._key(path) for path in _walk(folder) if path.suffix.lower() in suffixes]
        if not found:
            raise ValueError(
                f"There is no picture in {folder} or below: no name ends in .jpg, .png or another of the "
                f"{len(suffixes)} endings that Pillow knows."
            )
        self.named |= frozenset(found)
        return sorted(found)

    def listed(self) -> list[Key]:
        """Keys of what is in the folder now, where there is one, and it is not an index alone that says so."""
        if self.root is None or not (self.root_is_named or self._holds_what_is_recorded()):
            return []
        try:
            return Files(self.root).keys_of(self.root)
        except ValueError:
            return []

    def path(self, key: Key) -> Path:
        """Where a picture is."""
        return (self.root or Path()) / str(key)

    def stamp(self, key: Key) -> Stamp | None:
        """Size in bytes and time of change in nanoseconds; None where there is no file, or none to be read."""
        stamp = _stamp_of_file(self.path(key))
        return stamp if self._is_inside(key) or self._may_be_read(key, stamp) else None

    def refuses(self, key: Key) -> bool:
        """Return True for a file outside of the folder that is there, but neither named nor what was recorded."""
        return self.stamp(key) is None and _stamp_of_file(self.path(key)) is not None

    def _is_inside(self, key: Key) -> bool:
        """Whether a key names something below the folder, as those that are not in `elsewhere` do."""
        return self.root is not None and Path(os.path.normpath(self.path(key))).is_relative_to(self.root)

    def _leads_inside(self, key: Key) -> bool:
        """Return True if the file itself is below the folder, after all links."""
        try:
            return Path(os.path.realpath(self.path(key))).is_relative_to(os.path.realpath(self.root))
        except ValueError:  # a null byte
            return False

    def _may_be_read(self, key: Key, stamp: Stamp | None) -> bool:
        if key in self.named or (self.root_is_named and self._is_inside(key) and self._leads_inside(key)):
            return True
        recorded = self.recorded.get(key)
        if stamp is None or recorded is None:
            return False
        return stamp[0] == recorded[0] and abs(stamp[1] - recorded[1]) <= TIME_TOLERANCE

    def _holds_what_is_recorded(self) -> bool:
        """Whether most of the pictures in an index are in the folder, so that it is the one that was indexed."""
        inside = [key for key in self.recorded if self._is_inside(key)]
        same = sum(self._may_be_read(key, _stamp_of_file(self.path(key))) for key in inside)
        return 2 * same > len(inside)

    def read(self, key: Key) -> tuple[Stamp, Image.Image]:
        """A picture as RGB, upright, and its stamp.

        Raises:
            BadSampleError: If it is missing or broken.
        """
        stamp = self.stamp(key)
        if self.refuses(key) or stamp is not None and not self._may_be_read(key, stamp):
            remedy = "add it, if you want it indexed"
            if not self.root_is_named and self._is_inside(key):
                remedy = "name its folder"
            raise BadSampleError(Issue.IMAGE_OUTSIDE_ROOT, f"{key} is not the file that was indexed: {remedy}")
        if stamp is None:
            raise BadSampleError(Issue.IMAGE_MISSING, str(self.path(key)))
        return stamp, load_upright(self.path(key))

    def _key(self, path: Path) -> str:
        path = Path(os.path.normpath(path))
        return path.relative_to(self.root).as_posix() if self.root and path.is_relative_to(self.root) else str(path)


class Rows:
    """Pictures in the rows of datasets, or in lists.

    Args:
        start: Number of the first row.
    """

    root = None

    def __init__(self, start: int = 0):
        self.start = self.end = start
        self.starts: list[int] = []
        self.parts: list[Sequence[Any]] = []
        self.lock = threading.Lock()  # several threads read, and neither Pillow nor Arrow say that they may

    def keys_of(self, rows: Sequence[Any]) -> list[Key]:
        """Append a `datasets.Dataset`, or a sequence of pictures or of rows with `image`; returns the keys.

        Raises:
            ValueError: If there is none, or a dataset has no column with pictures.
        """
        if not len(rows):
            raise ValueError("There is no picture: the list or dataset is empty.")
        self.parts = [*self.parts, _encoded_pictures(rows)]  # not in place, so that a copy stays what it was
        self.starts = [*self.starts, self.end]
        self.end += len(rows)
        return list(range(self.starts[-1], self.end))

    def listed(self) -> list[Key]:
        """Keys of all rows that there are."""
        return list(range(self.start, self.end))

    def stamp(self, key: Key) -> Stamp | None:
        """Digest of what a row holds; None where there is no such row, or nothing in it."""
        try:
            with self.lock:
                return _stamp_of(self._value(key))
        except BadSampleError:
            return None

    def read(self, key: Key) -> tuple[Stamp, Image.Image]:
        """As that of files."""
        with self.lock:
            value = self._value(key)
            return _stamp_of(value), load_upright(value)

    def _value(self, key: Key) -> Any:
        if not self.start <= int(key) < self.end:
            raise BadSampleError(Issue.IMAGE_MISSING, f"row {key}")
        part = bisect.bisect_right(self.starts, int(key)) - 1
        value = self.parts[part][int(key) - self.starts[part]]
        return value.get("image") if isinstance(value, Mapping) and "image" in value else value


def _stamp_of_file(path: str | os.PathLike) -> Stamp | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _walk(folder: Path) -> Iterator[Path]:
    def tell(error: OSError) -> None:
        logger.warning(f"{error.filename} cannot be looked into and is left out: {error.strerror}.")

    for parent, folders, names in os.walk(folder, onerror=tell):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        yield from (path for path in paths if path.is_file() or path.is_symlink())  # of a pipe a read may never end


def _encoded_pictures(rows: Sequence[Any]) -> Sequence[Any]:
    """The rows; of a `datasets.Dataset` their pictures alone, as `image`, not yet decoded."""
    if not hasattr(rows, "cast_column"):
        return rows
    import datasets

    columns = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    columns = columns or [name for name in rows.column_names if name == "image"]
    if not columns:
        raise ValueError(
            f"The dataset has no column of pictures, only {', '.join(rows.column_names)}: cast one of them with "
            'cast_column("...", datasets.Image()).'
        )
    rows = rows.select_columns(columns[:1]).cast_column(columns[0], datasets.Image(decode=False))
    return rows if columns[0] == "image" else rows.rename_column(columns[0], "image")


def _stamp_of(value: Any) -> Stamp:
    """Digest of a picture in memory or encoded; of a path, what `Files` says of it."""
    content = value.get("bytes") if isinstance(value, Mapping) else value
    path = value.get("path") if isinstance(value, Mapping) and content is None else value
    if isinstance(path, (str, os.PathLike)):
        stamp = _stamp_of_file(os.fspath(path))
        if stamp is None:
            raise BadSampleError(Issue.IMAGE_MISSING, str(path))
        return stamp
    try:
        if isinstance(content, Image.Image):
            content = repr((content.mode, content.size)).encode() + content.tobytes()
        digest = hashlib.blake2b(content, digest_size=16).digest()
    except Exception as error:  # of a picture that is decoded only now, or of what is none
        raise BadSampleError(Issue.IMAGE_BROKEN, f"{value!r:.100}: {error}") from error
    return int.from_bytes(digest[:8], "big", signed=True), int.from_bytes(digest[8:], "big", signed=True)
