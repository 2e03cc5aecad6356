"""Features of pictures on a disk, memory-mapped: shards, and the manifest that says which of them count.

A shard is a safetensors file of `features` (pictures, width), `ids` (pictures,) and `stamps` (pictures, 2), with the
pictures' keys in its metadata. No file is ever changed: new ones are written aside, flushed and named, and count from
the moment that `manifest.json` is replaced by one which names them. So whatever moment a process is killed at, what is
read afterwards is the old state or the new one.
"""

import contextlib
import fnmatch
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..compatibility_albef import follow_umask
from ..utils.files import digest, write_errors_named, written_aside
from .image_sources import Key, Stamp

MANIFEST = "manifest.json"
NUMBER = "[0-9]" * 6
OUR_FILES = (f"features_{NUMBER}.safetensors", f"vectors_{NUMBER}.faiss")  # beside the manifest
OUR_FILES += tuple(f".{name}.unfinished" for name in (*OUR_FILES, MANIFEST))
FORMAT = 1
MOST = 2**62  # of numbers, which int64 has to hold
SHARD_ROWS = 2**16  # of a shard at most, but for what is computed between two writes of a build
ANEW = "Build the index again: what is whole is kept."


def seen_from(path: str | os.PathLike, folder: Path) -> str:
    """A path as it is seen from a folder, such as `../Pictures`: the two can be moved together, and who is sent the
    folder learns little of where it was. On another drive there is no such path, and it stays whole.
    """
    try:
        seen = Path(os.path.relpath(path, os.path.realpath(folder))).as_posix()
    except ValueError:
        return os.path.abspath(path)
    return seen if seen.startswith("..") else f"./{seen}"  # which no name on the Hub begins with


def from_folder(path: str, folder: Path) -> str:
    """The whole path of what `seen_from` has named."""
    return os.path.normpath(os.path.join(os.path.realpath(folder), path))


@dataclass
class Manifest:
    """What an index consists of.

    Args:
        model: `name`, `revision` and `weights`, a digest, of the model that made the features. A model in a folder is
            named as that is seen from the index.
        root: Folder of the pictures as it is seen from the index, None where they come from a list or a dataset.
        factory: What somebody wants faiss to build; None: what fits the number of pictures.
        built: What faiss has built.
        vectors: File of faiss.
        shards: Files of the features that are in it.
        parts: Files of features that are not in it yet: a build has been interrupted.
        files: Bytes and SHA-256 of each file.
        broken: Key, reason and stamp of each picture that could not be read.
        removed: Keys of pictures that somebody has removed and that are not to come back by themselves.
        elsewhere: Keys of pictures outside of the folder that somebody has added.
        next_id: Number of the next picture.
        next_file: Number of the next file.
    """

    model: dict[str, str | None]
    root: str | None
    factory: str | None = None
    built: str | None = None
    vectors: str | None = None
    shards: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: list[tuple[Key, str, Stamp]] = field(default_factory=list)
    removed: list[Key] = field(default_factory=list)
    elsewhere: list[Key] = field(default_factory=list)
    next_id: int = 0
    next_file: int = 0

    def check(self) -> None:
        """Refuse what this module has not written, above all names of files outside of the index's folder.

        Raises:
            ValueError: If something is not what it should be.
        """
        vectors = [] if self.vectors is None else [self.vectors]
        texts = (self.root, self.factory, self.built)
        entries = self.files.values() if isinstance(self.files, dict) else [None]
        valid = {
            "model": isinstance(self.model, dict)
            and {"name", "revision", "weights"} <= self.model.keys()
            and all(text is None or isinstance(text, str) for text in self.model.values()),
            "root, factory or built": all(text is None or isinstance(text, str) for text in texts),
            "shards or parts": _are_ours(self.shards, OUR_FILES[0]) and _are_ours(self.parts, OUR_FILES[0]),
            "vectors": _are_ours(vectors, OUR_FILES[1]),
            "files": all(_is_entry(entry) for entry in entries),
            "broken": _is_list(self.broken, _is_broken) and _are_keys([entry[0] for entry in self.broken]),
            "removed": _is_list(self.removed, _is_key) and len({type(key) for key in self.removed}) < 2,
            "elsewhere": _is_list(self.elsewhere, lambda key: isinstance(key, str) and os.path.isabs(key)),
            "next_id or next_file": all(
                type(number) is int and 0 <= number < MOST for number in (self.next_id, self.next_file)
            ),
        }
        if wrong := [name for name, is_valid in valid.items() if not is_valid]:
            raise ValueError(f"its {wrong[0]} cannot be right")


def _is_list(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(is_valid(item) for item in value)


def _is_key(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _are_keys(values: Any) -> bool:
    """Return True for paths or numbers of rows, not both, each once."""
    return _is_list(values, _is_key) and len({type(key) for key in values}) < 2 and len({*values}) == len(values)


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and type(value.get("bytes")) is int and isinstance(value.get("sha256"), str)


def _is_broken(entry: Any) -> bool:
    if not isinstance(entry, (list, tuple)) or len(entry) != 3:
        return False
    key, reason, stamp = entry
    is_stamp = stamp is None or (_is_list(stamp, lambda number: type(number) is int) and len(stamp) == 2)
    return _is_key(key) and isinstance(reason, str) and is_stamp


def _fit(keys: Any, ids: torch.Tensor, stamps: torch.Tensor, features: torch.Tensor) -> bool:
    """Whether they are what a shard holds."""
    kinds = (ids.dtype, stamps.dtype, features.dtype) == (torch.int64, torch.int64, torch.float32)
    if not (kinds and _are_keys(keys) and features.ndim == 2):
        return False
    return ids.shape == (len(keys),) and stamps.shape == (len(keys), 2) and len(features) == len(keys)


def _are_ours(names: Any, pattern: str) -> bool:
    """Whether they are names of files that this module writes, none of which lies outside of the folder."""
    return _is_list(names, lambda name: isinstance(name, str) and fnmatch.fnmatchcase(name, pattern))


@dataclass
class Shard:
    """Some pictures.

    Args:
        keys: Of each.
        ids: Their numbers in the index, rising, (pictures,), int64.
        stamps: (pictures, 2), int64; see `albef_hf.search.image_sources`.
        features: Unit length, (pictures, width), float32.
    """

    keys: list[Key]
    ids: torch.Tensor
    stamps: torch.Tensor
    features: torch.Tensor

    def select(self, rows: torch.Tensor) -> "Shard":
        """Some of its pictures, by a mask."""
        keys = [key for key, chosen in zip(self.keys, rows.tolist(), strict=True) if chosen]
        return Shard(keys, self.ids[rows], self.stamps[rows], self.features[rows])

    @classmethod
    def join(cls, shards: "list[Shard]") -> "Shard":
        """The pictures of several, one after the other."""
        keys = [key for shard in shards for key in shard.keys]
        columns = [(shard.ids, shard.stamps, shard.features) for shard in shards]
        return cls(keys, *(torch.cat(column) for column in zip(*columns, strict=True)))


class FeatureStore:
    """The files of an index.

    Args:
        folder: Where they are.
        manifest: What counts of them.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: Path) -> "FeatureStore":
        """Read the manifest of a folder.

        Raises:
            ValueError: If there is none, or it cannot be understood.
        """
        try:
            content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError(f"it has another format than {FORMAT}, by another version of albef_hf")
            manifest = Manifest(**content)
            manifest.check()
            return cls(folder, manifest)
        except FileNotFoundError as error:
            raise ValueError(
                f"{folder} holds no index. Make one: python -m albef_hf.search.index build FOLDER --model ID --index "
                f"{folder}"
            ) from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{folder / MANIFEST} cannot be read ({error}). Remove {folder}, and build the index anew."
            ) from error

    @property
    def root(self) -> Path | None:
        """Folder of the pictures, as a whole path."""
        return None if self.manifest.root is None else Path(from_folder(self.manifest.root, self.folder))

    @property
    def model_name(self) -> str | None:
        """Folder of the model, as a whole path, or its name on the Hub."""
        name = self.manifest.model["name"]
        return from_folder(name, self.folder) if name and name.startswith(".") else name

    def fault(self, name: str) -> str | None:
        """What is wrong with a file as far as its size tells, or None."""
        path, expected = self.folder / name, self.manifest.files.get(name, {}).get("bytes")
        if not path.is_file():
            return f"{path} is missing"
        size = path.stat().st_size
        return None if size == expected else f"{path} has {size} bytes instead of {expected}"

    def deep_fault(self, name: str) -> str | None:
        """What is wrong with a file, every byte of which is read."""
        fault = self.fault(name)
        if fault is None and digest(self.folder / name) != self.manifest.files[name]["sha256"]:
            fault = f"the content of {self.folder / name} is not what was written (SHA-256)"
        return fault

    def read(self, name: str) -> Shard:
        """Map a shard into memory; its features are read from the disk when they are needed.

        Raises:
            ValueError: If it is damaged.
        """
        fault = self.fault(name)
        if fault is None:
            try:
                with safe_open(self.folder / name, "pt") as file:
                    keys = json.loads(file.metadata()["keys"])
                    columns = [file.get_tensor(column) for column in ("ids", "stamps", "features")]
                if _fit(keys, *columns):
                    return Shard(keys, *columns)
                fault = f"{self.folder / name} does not hold as many numbers, stamps and features as keys"
            except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
                fault = f"{self.folder / name} cannot be read ({error})"
        raise ValueError(f"The index is damaged: {fault}. {ANEW}")

    def write_shard(self, shard: Shard) -> str:
        """Write a shard, which counts as soon as the manifest names it; returns its name."""
        tensors = {"ids": shard.ids, "stamps": shard.stamps, "features": shard.features}
        keys = {"keys": json.dumps(shard.keys)}

        def save(path: Path) -> None:
            save_file(tensors, path, keys)
            follow_umask([path])

        return self.write("features", "safetensors", save)

    def write(self, kind: str, suffix: str, write: Callable[[Path], None]) -> str:
        """Write a file under a new name; returns the name."""
        name = f"{kind}_{self.manifest.next_file:06}.{suffix}"
        self.manifest.next_file += 1
        path = self.folder / name
        self._put(path, write)
        self.manifest.files[name] = {"bytes": path.stat().st_size, "sha256": digest(path)}
        return name

    def add_part(self, keys: list[Key], stamps: list[Stamp], features: torch.Tensor) -> None:
        """Keep features that have been computed; with `save` they outlast this process."""
        ids = torch.arange(len(keys)) + self.manifest.next_id
        self.manifest.next_id += len(keys)
        shard = Shard(keys, ids, torch.tensor(stamps, dtype=torch.int64).view(-1, 2), features)
        self.manifest.parts.append(self.write_shard(shard))

    def kept(self, ids: Iterable[int]) -> list[Shard]:
        """Make shards of some of the pictures and no parts, joining small ones.

        Returns:
            The shards, which are those of the manifest from now on.
        """
        ids = torch.as_tensor(np.fromiter(ids, dtype=np.int64)).sort().values
        groups: list[tuple[list[str], list[Shard]]] = []
        for name in (*self.manifest.shards, *self.manifest.parts):
            shard = self.read(name)
            rows = torch.isin(shard.ids, ids, assume_unique=True)
            if not rows.all():
                name, shard = "", shard.select(rows)
            if groups and sum(len(other.keys) for other in (*groups[-1][1], shard)) <= SHARD_ROWS:
                groups[-1][0].append(name)
                groups[-1][1].append(shard)
            else:
                groups.append(([name], [shard]))
        names = [
            names[0] if len(names) == 1 and names[0] else self.write_shard(Shard.join(shards))
            for names, shards in groups
        ]
        self.manifest.shards, self.manifest.parts = names, []
        return [self.read(name) for name in names]

    def save(self) -> None:
        """Let what the manifest says count, and remove the files that no longer do."""
        manifest = self.manifest
        named = {*manifest.shards, *manifest.parts, *([manifest.vectors] if manifest.vectors else [])}
        manifest.files = {name: entry for name, entry in manifest.files.items() if name in named}
        content = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1) + "\n"
        self._put(self.folder / MANIFEST, lambda path: path.write_text(content, encoding="utf-8"))
        ours = [path for pattern in OUR_FILES for path in self.folder.glob(pattern)]
        for path in ours:
            if path.name not in named:
                with contextlib.suppress(OSError):  # what cannot be removed now is removed the next time
                    path.unlink()

    @staticmethod
    def _put(path: Path, write: Callable[[Path], None]) -> None:
        with written_aside(path) as aside:
            try:
                with write_errors_named(path):
                    write(aside)
            except BaseException:
                aside.unlink(missing_ok=True)
                raise
