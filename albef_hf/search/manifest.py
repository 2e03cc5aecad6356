"""The manifest of an index: which files belong to it, and what was indexed with which model."""

import fnmatch
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..utils.dtypes import DTYPES
from .image_sources import Fingerprint, Key

MANIFEST = "manifest.json"
FORMAT = 1
SIX_DIGITS = "[0-9]" * 6
FEATURES_PATTERN = f"features_{SIX_DIGITS}.safetensors"
VECTORS_PATTERN = f"vectors_{SIX_DIGITS}.faiss"
REFERENCES_PATTERN = f"references_{SIX_DIGITS}.json"
FILE_PATTERNS = (FEATURES_PATTERN, VECTORS_PATTERN, REFERENCES_PATTERN)
UNFINISHED_PATTERNS = tuple(f".{name}.unfinished" for name in (*FILE_PATTERNS, MANIFEST))
INDEX_PATTERNS = (*FILE_PATTERNS, *UNFINISHED_PATTERNS)  # files of an index beside the manifest
MAX_ID = 2**62  # so that ids fit into int64
JSON_NAMES = {"index_factory": "factory", "external_keys": "elsewhere"}  # fields with another name in the file


def to_relative(path: str | os.PathLike, folder: Path) -> str:
    """Return a path relative to a folder, such as `../photos`.

    The two can be moved together, and the relative path discloses little about the machine. A path on another drive
    stays absolute.
    """
    try:
        relative = Path(os.path.relpath(path, os.path.realpath(folder))).as_posix()
    except ValueError:
        return os.path.abspath(path)
    return relative if relative.startswith("..") else f"./{relative}"  # no name on the Hub begins with a dot


def to_absolute(path: str, folder: Path) -> str:
    """Return the absolute path for a result of `to_relative`."""
    return os.path.normpath(os.path.join(os.path.realpath(folder), path))


@dataclass
class Manifest:
    """Describe the content of an index.

    Args:
        model: `name`, `revision`, `dtype` and `weights`, a hash, of the model that computed the features. The name of
            a folder is relative to the index. With reference texts, `matching`, another hash.
        root: Folder of the images, relative to the index; None for a list or dataset.
        index_factory: The string that was requested for faiss; None to choose by the number of images.
        built: The string of the faiss index in `vectors`.
        vectors: File of the faiss index.
        shards: Files of the features that are in the faiss index.
        parts: Files of features that an interrupted build has left and the faiss index lacks.
        files: Size in bytes and SHA-256 of each file.
        broken: Key, reason and fingerprint of each image that could not be read.
        removed: Keys that `remove` was called with; `build` skips them.
        external_keys: Keys of images outside of the folder, from `add`.
        reference_texts: File of the texts that all images are matched with, for normalized scores.
        next_id: Id of the next image.
        next_file: Number in the name of the next file.
    """

    model: dict[str, str | None]
    root: str | None
    index_factory: str | None = None
    built: str | None = None
    vectors: str | None = None
    shards: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: list[tuple[Key, str, Fingerprint | None]] = field(default_factory=list)
    removed: list[Key] = field(default_factory=list)
    external_keys: list[Key] = field(default_factory=list)
    reference_texts: str | None = None
    next_id: int = 0
    next_file: int = 0

    @classmethod
    def from_json(cls, content: Any) -> "Manifest":
        """Create a manifest from the content of its file, which may have been tampered with.

        Raises:
            ValueError: If it has another format or an invalid value.
            TypeError: If it has other fields; KeyError and AttributeError if it is no object with a format.
        """
        content = dict(content.items())
        if content.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}; it was written by another version of albef_hf")
        for name, json_name in JSON_NAMES.items():
            if json_name in content:
                content[name] = content.pop(json_name)
        manifest = cls(**content)
        manifest.check()
        return manifest

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        content = {JSON_NAMES.get(name, name): value for name, value in asdict(self).items()}
        if self.reference_texts is None:
            del content["reference_texts"]  # which earlier versions do not know
        return {"format": FORMAT, **content}

    @property
    def file_names(self) -> set[str]:
        """Names of the files that the manifest refers to."""
        single = [name for name in (self.vectors, self.reference_texts) if name is not None]
        return {*self.shards, *self.parts, *single}

    def check(self) -> None:
        """Refuse values that this package does not write, above all paths outside of the index."""
        vectors = [] if self.vectors is None else [self.vectors]
        references = [] if self.reference_texts is None else [self.reference_texts]
        texts = (self.root, self.index_factory, self.built)
        counters = (self.next_id, self.next_file)
        entries = self.files.values() if isinstance(self.files, dict) else [None]
        valid = {
            "model": _is_model(self.model),
            "root, factory or built": all(text is None or isinstance(text, str) for text in texts),
            "shards or parts": _are_names(self.shards, FEATURES_PATTERN) and _are_names(self.parts, FEATURES_PATTERN),
            "vectors": _are_names(vectors, VECTORS_PATTERN),
            "reference_texts": _are_names(references, REFERENCES_PATTERN),
            "files": all(_is_file_entry(entry) for entry in entries),
            "broken": _is_list(self.broken, _is_broken_entry) and are_keys([entry[0] for entry in self.broken]),
            "removed": _is_list(self.removed, _is_key) and len({type(key) for key in self.removed}) < 2,
            "elsewhere": _is_list(self.external_keys, lambda key: isinstance(key, str) and os.path.isabs(key)),
            "next_id or next_file": all(type(counter) is int and 0 <= counter < MAX_ID for counter in counters),
        }
        invalid = [name for name, is_valid in valid.items() if not is_valid]
        if invalid:
            raise ValueError(f"invalid value of {invalid[0]}")


def are_keys(values: Any) -> bool:
    """Return True for a list of distinct keys of one kind, either paths or indices of rows."""
    return _is_list(values, _is_key) and len({type(key) for key in values}) < 2 and len({*values}) == len(values)


def _is_list(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(is_valid(item) for item in value)


def _is_key(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _is_model(value: Any) -> bool:
    if not isinstance(value, dict) or not {"name", "revision", "weights"} <= value.keys():
        return False
    if value.get("dtype") not in (None, *DTYPES, "float64"):
        return False
    return all(text is None or isinstance(text, str) for text in value.values())


def _is_file_entry(value: Any) -> bool:
    return isinstance(value, dict) and type(value.get("bytes")) is int and isinstance(value.get("sha256"), str)


def _is_broken_entry(entry: Any) -> bool:
    if not isinstance(entry, (list, tuple)) or len(entry) != 3:
        return False
    key, reason, fingerprint = entry
    is_pair = _is_list(fingerprint, lambda number: type(number) is int) and len(fingerprint) == 2
    return _is_key(key) and isinstance(reason, str) and (fingerprint is None or is_pair)


def _are_names(names: Any, pattern: str) -> bool:
    """Return True for names of files of an index, which contain no folder."""
    return _is_list(names, lambda name: isinstance(name, str) and fnmatch.fnmatchcase(name, pattern))
