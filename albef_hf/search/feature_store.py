"""Features of images on a disk, mapped to memory.

A shard is a safetensors file of `features` (images, width), `ids` (images,), `stamps`, which are the fingerprints
(images, 2), and `references` (images, texts, 2), with the keys of the images in its metadata. No file is ever changed.
New files are written under a temporary name, synchronized and renamed, and count once `manifest.json` is replaced by
one that names them. So a process that is killed at any moment leaves the old state or the new one.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..calibration_albef import reference_file_content, texts_sha256
from ..compatibility_albef import follow_umask
from ..modeling_albef import AlbefImageTextModel
from ..utils.dtypes import dtype_name
from ..utils.files import atomic_write, file_problem, file_record, size_problem, write_errors_named
from .faiss_index import read_index
from .image_sources import Fingerprint, Key
from .manifest import INDEX_PATTERNS, MANIFEST, Manifest, are_keys, to_absolute, to_relative

SHARD_ROWS = 2**16  # at most in a shard, except for what a build computes between two writes
UNKNOWN: dict[str, Any] = {"bytes": None, "sha256": None}  # of a file that the manifest does not list
REBUILD_HINT = "Build the index again; intact features are kept."


@dataclass
class Shard:
    """Features of images.

    Args:
        keys: One for each image.
        ids: Ids in the index, ascending, (images,), int64.
        fingerprints: (images, 2), int64; see `albef_hf.search.image_sources`.
        features: Unit length, (images, width), float32.
        references: Log-odds and cosines with the nearest reference texts of the index, (images, texts, 2), float32.
    """

    keys: list[Key]
    ids: torch.Tensor
    fingerprints: torch.Tensor
    features: torch.Tensor
    references: torch.Tensor

    def select(self, mask: torch.Tensor) -> "Shard":
        """Return the images that a mask selects."""
        keys = [key for key, is_selected in zip(self.keys, mask.tolist(), strict=True) if is_selected]
        return Shard(
            keys,
            ids=self.ids[mask],
            fingerprints=self.fingerprints[mask],
            features=self.features[mask],
            references=self.references[mask],
        )

    @classmethod
    def join(cls, shards: "list[Shard]") -> "Shard":
        """Concatenate shards."""
        return cls(
            keys=[key for shard in shards for key in shard.keys],
            ids=torch.cat([shard.ids for shard in shards]),
            fingerprints=torch.cat([shard.fingerprints for shard in shards]),
            features=torch.cat([shard.features for shard in shards]),
            references=torch.cat([shard.references for shard in shards]),
        )

    def is_valid(self) -> bool:
        """Return True if types and shapes are those of a shard."""
        dtypes = (self.ids.dtype, self.fingerprints.dtype, self.features.dtype, self.references.dtype)
        if dtypes != (torch.int64, torch.int64, torch.float32, torch.float32):
            return False
        if not are_keys(self.keys) or self.features.ndim != 2 or self.references.ndim != 3:
            return False
        count = len(self.keys)
        shapes = (self.ids.shape, self.fingerprints.shape, self.features.shape[:1], self.references.shape[::2])
        return shapes == ((count,), (count, 2), (count,), (count, 2))


class FeatureStore:
    """Read and write the files of an index.

    Args:
        folder: Folder of the index.
        manifest: The files that count.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest
        self.saved_names = manifest.file_names  # of the manifest on the disk

    @classmethod
    def open(cls, folder: Path) -> "FeatureStore":
        """Read the manifest of a folder.

        Raises:
            ValueError: If there is none, or it is invalid.
        """
        try:
            content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            manifest = Manifest.from_json(content)
        except FileNotFoundError as error:
            raise ValueError(
                f"{folder} contains no index. Build one: albef index build FOLDER --model ID --index {folder}"
            ) from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{folder / MANIFEST} cannot be read ({error}). Remove {folder} and build the index again."
            ) from error
        if not manifest.shards and not manifest.parts:  # no image has been matched with them
            manifest.reference_texts = None
        return cls(folder, manifest)

    @property
    def root(self) -> Path | None:
        """Absolute path of the folder of the images."""
        return None if self.manifest.root is None else Path(to_absolute(self.manifest.root, self.folder))

    @property
    def model_name(self) -> str | None:
        """Absolute path of the folder of the model, or its name on the Hub."""
        name = self.manifest.model["name"]
        return to_absolute(name, self.folder) if name and name.startswith(".") else name

    @property
    def broken(self) -> dict[Key, str]:
        """Reason for each image that could not be read."""
        return {key: reason for key, reason, _ in self.manifest.broken}

    def broken_summary(self) -> str:
        """Count the images that could not be read by reason, with an example of each."""
        first = {reason: key for key, reason in reversed(self.broken.items())}
        counts = Counter(self.broken.values())
        return ", ".join(f"{reason} {count} (first {first[reason]})" for reason, count in counts.items()) or "none"

    @property
    def dtype(self) -> str | None:
        """Name of the dtype of the weights that computed the features; None for an index of an earlier version."""
        return self.manifest.model.get("dtype")

    def require_dtype(self, model: AlbefImageTextModel) -> None:
        """Refuse a model in another precision than that of the features, which would be mixed with its own."""
        if self.dtype not in (None, dtype_name(model.dtype)):
            raise ValueError(
                f"The features in {self.folder} were computed in {self.dtype}, but the model is in "
                f"{dtype_name(model.dtype)}: load it in {self.dtype}, or build an index in another folder."
            )

    def require_weights(self, model: AlbefImageTextModel) -> None:
        """Refuse a model with other weights than those that the index was built with; more bits are the same ones."""
        built_with = self.manifest.model
        weights = {"weights": weights_sha256(contrast_parts(model), self.dtype)}
        if self.manifest.reference_texts:
            weights["matching"] = weights_sha256(matching_parts(model), self.dtype)
        if not weights.items() <= built_with.items():
            revision = f", revision {built_with['revision']}" if built_with["revision"] else ""
            raise ValueError(
                f"The index in {self.folder} was built with other weights than those of this model, those of "
                f"{self.model_name or 'a model without a name'}{revision}: load that one (in the same precision), or "
                "build an index in another folder."
            )

    def check_sha256(self, name: str) -> str | None:
        """Return what is wrong with the size or content of a file, or None; this reads the whole file."""
        return file_problem(self.folder / name, self.manifest.files.get(name, UNKNOWN))

    def read(self, name: str) -> Shard:
        """Map a shard to memory; its features are read from the disk when they are used.

        Raises:
            ValueError: If it is damaged.
        """
        problem = size_problem(self.folder / name, self.manifest.files.get(name, UNKNOWN)["bytes"])
        if problem:
            raise _damaged(problem)
        try:
            shard = _read_shard(self.folder / name)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(f"{self.folder / name} cannot be read ({error})") from error
        if not shard.is_valid():
            raise _damaged(f"{self.folder / name} has keys, ids and features that do not belong together")
        return shard

    def read_all(self) -> list[Shard]:
        """Map all shards to memory, including those that an interrupted build has left."""
        return [self.read(name) for name in (*self.manifest.shards, *self.manifest.parts)]

    def write_shard(self, shard: Shard) -> str:
        """Write a shard, which counts once the manifest names it, and return its name."""
        tensors = {"ids": shard.ids, "stamps": shard.fingerprints, "features": shard.features}
        if shard.references.shape[1]:  # earlier versions have none
            tensors["references"] = shard.references
        metadata = {"keys": json.dumps(shard.keys)}

        def save(path: Path) -> None:
            save_file(tensors, path, metadata)
            follow_umask([path])

        return self.write("features", "safetensors", save)

    def reference_texts(self) -> list[str]:
        """Read the reference texts of the index.

        Raises:
            ValueError: If they are damaged.
        """
        name = self.manifest.reference_texts
        if name is None:
            return []
        problem = self.check_sha256(name)
        if problem:
            raise ValueError(f"The index is damaged: {problem}. Build it again with the same reference texts.")
        return json.loads((self.folder / name).read_bytes())

    @property
    def reference_texts_sha256(self) -> str | None:
        """SHA-256 of the reference texts, None if there are none."""
        return self.manifest.files.get(self.manifest.reference_texts or "", UNKNOWN)["sha256"]

    def set_reference_texts(self, texts: list[str], model: AlbefImageTextModel) -> None:
        """Write the reference texts that images are matched with by a model; `save` makes them count.

        Raises:
            ValueError: If images of the index have been matched with others, or with none.
        """
        content = reference_file_content(texts)
        is_same = self.reference_texts_sha256 == texts_sha256(texts)
        if (self.manifest.shards or self.manifest.parts) and not is_same:
            built_with = "other reference texts" if self.manifest.reference_texts else "no reference texts"
            raise ValueError(f"The index in {self.folder} was built with {built_with}: choose another folder.")
        if not is_same or self.check_sha256(self.manifest.reference_texts or ""):
            self.manifest.reference_texts = self.write("references", "json", partial(Path.write_bytes, data=content))
            self.manifest.model["matching"] = weights_sha256(matching_parts(model))

    def write(self, kind: str, suffix: str, write: Callable[[Path], object]) -> str:
        """Write a file with a new name and return the name."""
        name = f"{kind}_{self.manifest.next_file:06}.{suffix}"
        self.manifest.next_file += 1
        path = self.folder / name
        self._write_atomically(path, write)
        self.manifest.files[name] = file_record(path)
        return name

    def add_part(
        self, keys: list[Key], fingerprints: list[Fingerprint], features: torch.Tensor, references: torch.Tensor
    ) -> None:
        """Write features that have been computed; `save` makes them count."""
        ids = torch.arange(len(keys)) + self.manifest.next_id
        self.manifest.next_id += len(keys)
        pairs = torch.tensor(fingerprints, dtype=torch.int64).view(-1, 2)
        shard = Shard(keys, ids=ids, fingerprints=pairs, features=features, references=references)
        self.manifest.parts.append(self.write_shard(shard))

    def compact(self, ids: Iterable[int]) -> list[Shard]:
        """Keep only the images of these ids, and join small shards.

        Returns:
            The shards of the manifest from now on.
        """
        kept_ids = torch.as_tensor(np.fromiter(ids, dtype=np.int64)).sort().values
        groups: list[list[tuple[str | None, Shard]]] = []  # a name stands for a file that can stay as it is
        for name in (*self.manifest.shards, *self.manifest.parts):
            shard = self.read(name)
            mask = torch.isin(shard.ids, kept_ids, assume_unique=True)
            member = (name, shard) if mask.all() else (None, shard.select(mask))
            if groups and sum(len(other.keys) for _, other in (*groups[-1], member)) <= SHARD_ROWS:
                groups[-1].append(member)
            else:
                groups.append([member])
        names = []
        for group in groups:
            unchanged = group[0][0] if len(group) == 1 else None
            names.append(unchanged or self.write_shard(Shard.join([shard for _, shard in group])))
        self.manifest.shards = names
        self.manifest.parts = []
        return [self.read(name) for name in names]

    def save(self) -> None:
        """Replace the manifest on the disk, and remove the files that it does not name."""
        manifest = self.manifest
        names = manifest.file_names
        manifest.files = {name: entry for name, entry in manifest.files.items() if name in names}
        content = json.dumps(manifest.to_json(), indent=1) + "\n"
        self._write_atomically(self.folder / MANIFEST, lambda path: path.write_text(content, encoding="utf-8"))
        self.saved_names = names
        self.remove_unused_files()

    def remove_unused_files(self) -> None:
        """Remove the files of the index that the manifest on the disk does not name."""
        for pattern in INDEX_PATTERNS:
            for path in self.folder.glob(pattern):
                if path.name not in self.saved_names:
                    with contextlib.suppress(OSError):  # it is removed after the next change
                        path.unlink()

    def _write_atomically(self, path: Path, write: Callable[[Path], object]) -> None:
        """Write a file; after an error, such as a full disk, remove everything that the saved manifest does not name.

        Raises:
            OSError: If the file cannot be written; the message names the file.
        """
        with write_errors_named(path):
            try:
                with atomic_write(path) as temporary_path:
                    write(temporary_path)
            except (OSError, SafetensorError):
                self.remove_unused_files()
                raise


class FingerprintTable(Mapping[Key, Fingerprint]):
    """Map keys to fingerprints, which take less memory in an array than in a dictionary.

    Args:
        positions: Row of each key.
        fingerprints: (images, 2), int64.
    """

    def __init__(self, positions: dict[Key, int], fingerprints: np.ndarray):
        self.positions = positions
        self.fingerprints = fingerprints

    def __getitem__(self, key: Key) -> Fingerprint:
        first, second = self.fingerprints[self.positions[key]].tolist()
        return first, second

    def __iter__(self) -> Iterator[Key]:
        return iter(self.positions)

    def __len__(self) -> int:
        return len(self.positions)


class MappedIndex:
    """Map an index to memory and check that its files belong together.

    Args:
        store: Files of the index.
        width: Width of the features.

    Attributes:
        vectors: Index of faiss.
        shards: Features; images are in the order of their ids.
        ids: Ids of all images, ascending, (images,).
        keys: Keys of all images.
        fingerprints: Fingerprints by key.
        has_references: Whether images were matched with reference texts.

    Raises:
        ValueError: If a build was interrupted before it was finished, or the index is damaged.
    """

    def __init__(self, store: FeatureStore, width: int):
        manifest = store.manifest
        if manifest.vectors is None:
            raise ValueError(f"The index in {store.folder} is not finished: build it again to resume.")
        self.vectors_name = manifest.vectors
        self.has_references = manifest.reference_texts is not None
        # All of the file is checked, because faiss may crash on invalid content. Invalid features cannot do harm.
        problem = store.check_sha256(self.vectors_name)
        if problem:
            raise _damaged(problem)
        self.vectors = read_index(store.folder / self.vectors_name)
        self.shards = [store.read(name) for name in manifest.shards]
        self.ids = concatenate_ids(self.shards)
        self._check(width)
        sizes = [len(shard.keys) for shard in self.shards]
        self.starts = np.cumsum([0, *sizes])[:-1]  # position of the first image of each shard
        self.keys = [key for shard in self.shards for key in shard.keys]
        columns = [shard.fingerprints.numpy() for shard in self.shards]
        positions = {key: position for position, key in enumerate(self.keys)}
        self.fingerprints = FingerprintTable(positions, np.concatenate([np.zeros((0, 2), np.int64), *columns]))

    def _check(self, width: int) -> None:
        if self.vectors.ntotal != len(self.ids):
            raise _damaged(f"{self.vectors_name} has {self.vectors.ntotal} vectors for {len(self.ids)} images")
        widths = {self.vectors.d, *(shard.features.shape[1] for shard in self.shards)}
        counts = {shard.references.shape[1] for shard in self.shards if shard.keys}
        belong_together = all((count > 0) == self.has_references for count in counts) and len(counts) < 2
        if widths != {width} or not belong_together or np.any(np.diff(self.ids) <= 0):
            raise _damaged("its files do not belong together")

    def positions(self, ids: np.ndarray) -> list[int]:
        """Return the positions of images by their ids."""
        positions = np.searchsorted(self.ids, ids)
        if not np.array_equal(self.ids[np.minimum(positions, len(self.ids) - 1)], ids):
            raise _damaged(f"{self.vectors_name} has ids of other images")
        return positions.tolist()

    def features(self, positions: list[int]) -> torch.Tensor:
        """Read the unit features of images, (images, projection)."""
        features = [self.shards[shard].features[row] for shard, row in self._rows(positions)]
        stacked = torch.stack(features) if features else torch.zeros(0, self.vectors.d)
        if not stacked.isfinite().all():
            raise _damaged("features are not finite")
        return stacked

    def references(self, keys: Sequence[Key]) -> torch.Tensor:
        """Read log-odds and cosines of images with the reference texts nearest to them, (images, texts, 2)."""
        rows = self._rows([self.fingerprints.positions[key] for key in keys])
        stacked = torch.stack([self.shards[shard].references[row] for shard, row in rows])
        if not stacked.isfinite().all():
            raise _damaged("scores of reference texts are not finite")
        return stacked

    def _rows(self, positions: list[int]) -> Iterator[tuple[int, int]]:
        """Yield shard and row of each position."""
        shards = np.searchsorted(self.starts, positions, side="right") - 1
        return zip(shards.tolist(), (positions - self.starts[shards]).tolist(), strict=True)


def concatenate_ids(shards: Sequence[Shard]) -> np.ndarray:
    """Return the ids of all images in shards, (images,), int64."""
    return np.concatenate([np.zeros(0, np.int64), *(shard.ids.numpy() for shard in shards)])


def contrast_parts(model: AlbefImageTextModel) -> tuple[nn.Module, ...]:
    """Return what cosines depend on: both encoders and the joint space."""
    return model.albef.vision_model, model.albef.text_model, model.contrastive_head


def matching_parts(model: AlbefImageTextModel) -> tuple[nn.Module, ...]:
    """Return what log-odds depend on beside the encoders."""
    return model.albef.multimodal_model, model.itm_head


def weights_sha256(parts: Iterable[nn.Module], dtype: str | None = None) -> str:
    """Return the SHA-256 of the weights of parts of a model, in a dtype."""
    digest = hashlib.sha256()
    for part in parts:
        for name, weight in part.state_dict().items():
            if dtype is not None and weight.is_floating_point():
                weight = weight.to(getattr(torch, dtype))
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def model_origin(model: AlbefImageTextModel, folder: Path) -> dict[str, str | None]:
    """Return name and revision of a model; the name of a folder is relative to the folder of the index."""
    name = model.config.name_or_path
    name = to_relative(name, folder) if name and Path(name).exists() else name
    return {"name": name, "revision": getattr(model.config, "_commit_hash", None)}


def _read_shard(path: Path) -> Shard:
    with safe_open(path, "pt") as file:
        keys: Any = json.loads(file.metadata()["keys"])
        has_references = "references" in file.keys()  # noqa: SIM118, a method of safetensors
        return Shard(
            keys,
            ids=file.get_tensor("ids"),
            fingerprints=file.get_tensor("stamps"),
            features=file.get_tensor("features"),
            references=file.get_tensor("references") if has_references else torch.zeros(len(keys), 0, 2),
        )


def _damaged(problem: str) -> ValueError:
    return ValueError(f"The index is damaged: {problem}. {REBUILD_HINT}")
