"""Sources of the images to search: files, or the rows of a dataset or list.

Each image has a key and a fingerprint, which changes when the image does: size and modification time of a file, or a
hash of the content of a row.
"""

import bisect
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.utils import logging

from ..data.images import load_image
from ..data.row_errors import InvalidSampleError, SkipReason

logger = logging.get_logger(f"transformers.{__name__}")

Key = str | int  # path, relative to the folder of the images if there is one, or index of a row
Fingerprint = tuple[int, int]
Images = str | os.PathLike | Iterable[Any]  # a folder, a `datasets.Dataset`, a list of paths, or of PIL images
# Of phones and cameras; plugins of Pillow read some of them.
CAMERA_SUFFIXES = {".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"}
TIME_TOLERANCE = 2 * 10**9  # nanoseconds between a file and its copy, because archives and FAT round times


def image_suffixes() -> set[str]:
    """Return the file name extensions of all image formats that Pillow and its plugins can read."""
    formats = Image.registered_extensions().items()
    return {suffix for suffix, name in formats if name in Image.OPEN and Image.MIME.get(name, "").startswith("image/")}


class ImageFiles:
    """Images in files.

    Two kinds of files are read: those that the caller has named, by their folder or in a list, and those that an index
    names and that have not changed since they were indexed. So an index from somebody else discloses no private
    image, because it would have to contain the size and modification time of that file. A link in the folder that
    leads out of it counts as named only if `keys` has listed it, as when the index is built.

    Args:
        root: Folder that keys are relative to. The key of an image outside of it is its absolute path.
        root_is_named: Whether the caller has named the folder, rather than an index.
        recorded: Fingerprints of the images in the index.
    """

    remedy = "Build the index again to update it."

    def __init__(
        self,
        root: str | os.PathLike | None = None,
        root_is_named: bool = True,
        recorded: Mapping[Key, Fingerprint] | None = None,
    ):
        self.root = None if root is None else Path(os.path.abspath(root))
        self.root_is_named = root_is_named
        self.recorded = recorded or {}
        self.named: frozenset[Key] = frozenset()

    def keys(self, images: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Key]:
        """Return the keys of the images in a folder and its subfolders, sorted, or of a list of files, each once.

        Files and folders whose names start with a dot are skipped, and so are links to folders.

        Raises:
            ValueError: If there is no such folder, or no image in it.
        """
        if isinstance(images, (str, os.PathLike)):
            keys = self._keys_in_folder(Path(images).absolute())
        else:
            keys = list(dict.fromkeys(self._key(Path(path).absolute()) for path in images))
        self.named |= frozenset(keys)
        return [*keys]

    def _keys_in_folder(self, folder: Path) -> list[str]:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder: give a folder, or a list of images.")
        suffixes = image_suffixes()
        paths = [*_walk(folder)]
        keys = [self._key(path) for path in paths if path.suffix.lower() in suffixes]
        foreign = Counter(path.suffix.lower() for path in paths)
        skipped = [f"{foreign[suffix]} {suffix}" for suffix in CAMERA_SUFFIXES - suffixes if foreign[suffix]]
        if skipped:
            logger.warning_once(
                f"{folder} has photographs that Pillow cannot read, which are skipped: {', '.join(sorted(skipped))}. "
                "Save them as JPEG to index them."
            )
        if not keys:
            raise ValueError(
                f"There is no image in {folder} or its subfolders: no file name ends in .jpg, .png or another of the "
                f"{len(suffixes)} extensions that Pillow can read."
            )
        return sorted(keys)

    def current_keys(self) -> list[Key]:
        """Return the keys of the images that are in the folder now.

        Return an empty list without a folder, or if only the index names it and it holds other files.
        """
        if self.root is None or not (self.root_is_named or self.holds_recorded()):
            return []
        try:
            return ImageFiles(self.root).keys(self.root)
        except ValueError:
            return []

    def holds_recorded(self) -> bool:
        """Return True if most recorded images of the folder are in it unchanged: it is the one that was indexed."""
        inside = [key for key in self.recorded if self._is_inside(key)]
        unchanged = sum(self._is_as_recorded(key, _file_fingerprint(self.path(key))) for key in inside)
        return 2 * unchanged > len(inside)

    def path(self, key: Key) -> Path:
        """Return the path of an image."""
        return (self.root or Path()) / str(key)

    def fingerprint(self, key: Key) -> Fingerprint | None:
        """Return size in bytes and modification time in nanoseconds; None for a missing or private file."""
        fingerprint = _file_fingerprint(self.path(key))
        return fingerprint if self._is_inside(key) or self._may_be_read(key, fingerprint) else None

    def read(self, key: Key) -> tuple[Fingerprint, Image.Image]:
        """Read an image as RGB, turned upright by its EXIF orientation, and its fingerprint.

        Raises:
            InvalidSampleError: If it is missing, broken, or not the file that was indexed.
        """
        fingerprint = _file_fingerprint(self.path(key))
        if fingerprint is None:
            raise InvalidSampleError(SkipReason.IMAGE_MISSING, str(self.path(key)))
        if not self._may_be_read(key, fingerprint):
            remedy = "add it to index it"
            if not self.root_is_named and self._is_inside(key):
                remedy = "name its folder"
            detail = f"{key} is not the file that was indexed: {remedy}"
            raise InvalidSampleError(SkipReason.IMAGE_OUTSIDE_ROOT, detail)
        return fingerprint, load_image(self.path(key), exif_transpose=True)

    def _may_be_read(self, key: Key, fingerprint: Fingerprint | None) -> bool:
        is_named = key in self.named or (self.root_is_named and self._is_inside(key) and self._resolves_inside(key))
        return is_named or self._is_as_recorded(key, fingerprint)

    def _is_as_recorded(self, key: Key, fingerprint: Fingerprint | None) -> bool:
        recorded = self.recorded.get(key)
        if fingerprint is None or recorded is None:
            return False
        return fingerprint[0] == recorded[0] and abs(fingerprint[1] - recorded[1]) <= TIME_TOLERANCE

    def _is_inside(self, key: Key) -> bool:
        """Return True if the path of a key, without following links, is below the folder."""
        return self.root is not None and Path(os.path.normpath(self.path(key))).is_relative_to(self.root)

    def _resolves_inside(self, key: Key) -> bool:
        """Return True if the file is below the folder after following all links."""
        try:
            return Path(os.path.realpath(self.path(key))).is_relative_to(os.path.realpath(self.root or ""))
        except ValueError:  # a null byte
            return False

    def _key(self, path: Path) -> str:
        path = Path(os.path.normpath(path))
        return path.relative_to(self.root).as_posix() if self.root and path.is_relative_to(self.root) else str(path)


class ImageRows:
    """Images in the rows of datasets, or in lists.

    Args:
        start: Index of the first row.
    """

    root = None
    remedy = "Load the index with images=..., what it was built from; without them, rerank_k=0 finds row indices."

    def __init__(self, start: int = 0):
        self.start = start
        self.end = start
        self.starts: list[int] = []
        self.parts: list[Sequence[Any]] = []
        self.lock = threading.Lock()  # neither Pillow nor Arrow guarantee that several threads may read

    def keys(self, images: Sequence[Any]) -> list[Key]:
        """Append a `datasets.Dataset`, or a sequence of images or of rows with a column `image`; return its keys.

        Raises:
            ValueError: If a dataset has no column of images.
        """
        self.parts = [*self.parts, _undecoded_images(images)]  # a new list, because a copy of this object shares it
        self.starts = [*self.starts, self.end]
        self.end += len(images)
        return list(range(self.starts[-1], self.end))

    def current_keys(self) -> list[Key]:
        """Return the keys of all rows."""
        return list(range(self.start, self.end))

    def fingerprint(self, key: Key) -> Fingerprint | None:
        """Return a hash of the content of a row; None if there is no such row, or nothing in it."""
        try:
            with self.lock:
                return _row_fingerprint(self._value(key))
        except InvalidSampleError:
            return None

    def read(self, key: Key) -> tuple[Fingerprint, Image.Image]:
        """Read an image as `ImageFiles.read` does."""
        with self.lock:
            value = self._value(key)
            return _row_fingerprint(value), load_image(value, exif_transpose=True)

    def _value(self, key: Key) -> Any:
        row = int(key)
        if not self.start <= row < self.end:
            raise InvalidSampleError(SkipReason.IMAGE_MISSING, f"row {key}")
        part = bisect.bisect_right(self.starts, row) - 1
        value = self.parts[part][row - self.starts[part]]
        return value.get("image") if isinstance(value, Mapping) and "image" in value else value


ImageSource = ImageFiles | ImageRows


def materialize(images: Any) -> Any:
    """Return a folder as it is, and other images as a sequence; an iterator is consumed.

    Raises:
        ValueError: If there are no images, or they are of another type.
    """
    if isinstance(images, Iterator):
        images = list(images)
    if isinstance(images, Mapping) and images:  # such as a DatasetDict
        names = ", ".join(map(repr, images))
        raise ValueError(f"images is a {type(images).__name__}: give one of its {names:.200}.")
    is_path = isinstance(images, (str, os.PathLike))
    is_sized = isinstance(images, Sized) and hasattr(images, "__getitem__")
    if not is_path and (not is_sized or isinstance(images, (bytes, Mapping))):
        raise ValueError(
            f"images is of type {type(images).__name__}: give a folder, a datasets.Dataset, or a list of paths or of "
            "PIL images."
        )
    if isinstance(images, Sized) and not len(images):
        raise ValueError("There is no image: the list or dataset is empty.")
    return images


def are_files(images: Any) -> bool:
    """Return True for a folder or a list of paths, False for rows or images.

    Raises:
        ValueError: If a list has both.
    """
    if isinstance(images, (str, os.PathLike)):
        return True
    if not isinstance(images, (list, tuple)):
        return False
    are_paths = [isinstance(image, (str, os.PathLike)) for image in images]
    if any(are_paths) and not all(are_paths):
        raise ValueError("Some of the images are paths and others are not: give all of them in the same way.")
    return any(are_paths)


def make_source(images: Any) -> ImageSource:
    """Return an empty source for images of this kind."""
    is_folder = isinstance(images, (str, os.PathLike))
    return ImageFiles(images if is_folder else None) if are_files(images) else ImageRows()


def _file_fingerprint(path: str | os.PathLike) -> Fingerprint | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _walk(folder: Path) -> Iterator[Path]:
    def warn(error: OSError) -> None:
        logger.warning(f"{error.filename} cannot be listed and is skipped: {error.strerror}.")

    for parent, folders, names in os.walk(folder, onerror=warn):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        yield from (path for path in paths if path.is_file() or path.is_symlink())  # reading a pipe may never end


def _undecoded_images(rows: Any) -> Sequence[Any]:
    """Return a sequence as it is, and of a `datasets.Dataset` the column of images as `image`, not decoded."""
    if not hasattr(rows, "cast_column"):
        return rows
    import datasets

    columns = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    columns = columns or [name for name in rows.column_names if name == "image"]
    if not columns:
        raise ValueError(
            f"The dataset has no column of images, only {', '.join(rows.column_names)}: cast one of them with "
            'cast_column("...", datasets.Image()).'
        )
    rows = rows.select_columns(columns[:1]).cast_column(columns[0], datasets.Image(decode=False))
    return rows if columns[0] == "image" else rows.rename_column(columns[0], "image")


def _row_fingerprint(value: Any) -> Fingerprint:
    """Return a hash of a decoded or encoded image; of a path, the fingerprint of the file."""
    content: Any = value.get("bytes") if isinstance(value, Mapping) else value
    path = value.get("path") if isinstance(value, Mapping) and content is None else value
    if isinstance(path, (str, os.PathLike)):
        fingerprint = _file_fingerprint(os.fspath(path))
        if fingerprint is None:
            raise InvalidSampleError(SkipReason.IMAGE_MISSING, str(path))
        return fingerprint
    try:
        if isinstance(content, Image.Image):
            content = repr((content.mode, content.size)).encode() + content.tobytes()
        digest = hashlib.blake2b(content, digest_size=16).digest()
    except Exception as error:  # an image that is decoded only now may be broken, and the value may be no image
        raise InvalidSampleError(SkipReason.IMAGE_BROKEN, f"{value!r:.100}: {error}") from error
    return int.from_bytes(digest[:8], "big", signed=True), int.from_bytes(digest[8:], "big", signed=True)
