"""An index of images, which is searched by text or by image.

A search has two steps, as in the paper. The cosines of image and text features (ITC), computed by faiss, select the
best candidates. The matching head (ITM), which reads image and text together, orders them.
"""

import contextlib
import copy
import math
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from PIL import Image
from transformers.utils import logging

from ..calibration_albef import MatchCalibration
from ..compatibility_albef import renamed_arguments, renamed_attribute, warn_of_old_name
from ..data.captions import is_blank
from ..data.images import load_image
from ..data.row_errors import InvalidSampleError, SkipReason
from ..modeling_albef import AlbefImageTextModel
from ..processing_albef import AlbefProcessor
from ..retrieval_albef import MAX_TOKENS, TextFeatures, as_int, encode_texts
from ..utils.dtypes import dtype_name
from .encoder import FeatureEncoder
from .faiss_index import check_index_factory, search
from .feature_store import FeatureStore, MappedIndex, contrast_parts, model_origin, weights_sha256
from .image_sources import (
    Fingerprint,
    ImageFiles,
    ImageRows,
    Images,
    ImageSource,
    Key,
    are_files,
    make_source,
    materialize,
)
from .manifest import INDEX_PATTERNS, MANIFEST, Manifest, to_relative
from .reference_texts import checked_references, warn_of_other_references
from .reranker import Reranker
from .writer import IndexWriter

logger = logging.get_logger(f"transformers.{__name__}")

LOCK = ".lock"  # in the folder of an index
_RENAMED = {"PictureIndex": "ImageIndex"}


@dataclass
class Hit:
    """A search result.

    Args:
        key: Path relative to the folder that was indexed, or index of the row.
        similarity: Cosine of the features (ITC).
        match: Probability that image and text match (ITM), calibrated if the model is (see `MatchCalibration`); None
            if the image was not reranked.
        score: Hits are ordered by it. For reranked images, which come first, it is the log-odds of a match, as in the
            evaluation, plus the weighted cosine, or the normalized logit if the index has reference texts (see
            `MatchCalibration.normalized_logit`); for the others the cosine.
    """

    key: Key
    similarity: float
    match: float | None
    score: float


@dataclass
class Changes:
    """Differences between an index and its source: keys of new, changed and missing images."""

    new: list[Key]
    changed: list[Key]
    missing: list[Key]

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.missing)

    def __str__(self) -> str:
        kinds = {"new": self.new, "changed": self.changed, "missing": self.missing}
        return ", ".join(f"{len(keys)} {name} (first {keys[0]})" for name, keys in kinds.items() if keys) or "none"


class ImageIndex:
    """Search images by text or by image; create an index with `build` or `load`.

    Features, the faiss index and a manifest are in one folder. `add` and `remove` are on the disk when they return;
    if they fail, the index stays as it was. Several processes may search one index; one at a time may change it.

    Example:
        ```python
        index = ImageIndex.build(model, processor, "photos", "photos.index")
        for hit in index.search("two dogs in the snow"):
            print(hit.key, hit.match)
            index.image(hit.key).show()
        ```
    """

    mapped: MappedIndex

    def __init__(
        self, model: AlbefImageTextModel, processor: AlbefProcessor, store: FeatureStore, source: ImageSource
    ):
        self.model = model
        self.processor = processor
        self.store = store
        self.source = source
        self.encoder = FeatureEncoder(model, processor)
        self.reranker = Reranker(self.encoder)
        self.lock = threading.Lock()
        self._map()

    @classmethod
    @renamed_arguments(pictures="images", factory="index_factory")
    def build(
        cls,
        model: AlbefImageTextModel,
        processor: AlbefProcessor,
        images: Images,
        folder: str | os.PathLike,
        index_factory: str | None = None,
        batch_size: int = 64,
        reference_texts: Iterable[str] | None = None,
    ) -> "ImageIndex":
        """Index images, resume a build that was interrupted, or update an index.

        Unchanged images are not encoded again; images that are no longer in the source are removed. Images that were
        added to the index of a folder from elsewhere stay while they are unchanged. Otherwise they count as unreadable
        until `add` names them again, because an index from somebody else could name any file. A folder may have moved
        if most of its images are unchanged.

        Args:
            model: Model with the joint space and the matching head, `AlbefForRetrieval` or `AlbefForPreTraining`.
            processor: Its processor.
            images: A folder, which is searched with its subfolders; a `datasets.Dataset` with a column of images; a
                list of paths or images; or an iterator over these, such as `Path.glob`.
            folder: Folder of the index.
            index_factory: String of faiss's `index_factory`; by default `Flat`, above a million images `IVF...,Flat`.
                See `albef_hf.search.faiss_index` for unsupported ones.
            batch_size: Images that are encoded at a time.
            reference_texts: Captions of other images, for a model that was calibrated with references. Each image is
                matched with those nearest to it, so that one that matches nearly every text does not rank above the
                right ones (see `MatchCalibration.normalized_logit`). An index keeps the ones that it was built with.

        Raises:
            ValueError: If no image can be read, or the folder contains something else, an index of other images, or
                one that was built with other weights or reference texts.
            OSError: If a file cannot be written, as on a full disk.
        """
        require_joint_space(model)
        batch_size = as_int("batch_size", batch_size, minimum=1)
        references = checked_references(reference_texts, MatchCalibration.from_config(model.config))
        collection = materialize(images)
        if index_factory is not None:
            check_index_factory(index_factory, model.config.projection_dim)
        source = make_source(collection)
        keys = source.keys(collection)
        folder = Path(folder)
        _require_no_other_files(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            store = _open_or_create(folder, model, source)
            if references is not None:
                store.set_reference_texts(references, model)
            warn_of_other_references(store.reference_texts_sha256, MatchCalibration.from_config(model.config))
            writer = IndexWriter(store, FeatureEncoder(model, processor), source)
            writer.discard_damaged()
            recorded = writer.fingerprints()
            if isinstance(source, ImageFiles):
                source.recorded = recorded  # external images are read only if they are unchanged
                keys += store.manifest.external_keys
            removed = {*recorded, *store.broken}.difference(keys)
            writer.encode_resumably(keys, batch_size)
            if not {*writer.fingerprints()}.difference(removed, store.broken):
                raise ValueError(f"None of the {len(keys)} images can be read: {store.broken_summary()}.")
            writer.commit(removed, index_factory)
            return cls(model, processor, store, source)

    @classmethod
    @renamed_arguments(pictures="images")
    def load(
        cls,
        folder: str | os.PathLike,
        model: AlbefImageTextModel,
        processor: AlbefProcessor,
        images: Images | None = None,
        dtype: str | None = None,
    ) -> "ImageIndex":
        """Open an index.

        Args:
            folder: Folder of the index.
            model: The model that it was built with, in the precision that it was built in, or a higher one.
            processor: Its processor.
            dtype: float32, bfloat16 or float16, to which the model is converted for the queries, once its weights have
                been compared; by default it stays as it is. Such an index cannot be changed.
            images: What the index was built from, if it was a dataset or a list of images; without them, such an index
                supports only `rerank_k=0`. Or the folder of the images, if it has moved. Without a folder, only files
                with the size and modification time that they had when they were indexed are read, so that an index
                from somebody else discloses none of your images.

        Raises:
            ValueError: If there is no finished index, it was built with other weights, or it is damaged.
        """
        require_joint_space(model)
        collection = None if images is None else materialize(images)
        store = FeatureStore.open(Path(folder))
        store.require_weights(model)
        if dtype is not None:
            model.to(getattr(torch, dtype))
        if store.dtype not in (None, dtype_name(model.dtype)):
            logger.warning(
                f"The features of the index were computed in {store.dtype} and those of queries in "
                f"{dtype_name(model.dtype)}: cosines differ slightly from those of one precision."
            )
        source = ImageFiles(store.root, root_is_named=False) if collection is None else make_source(collection)
        index = cls(model, processor, store, source)
        if index.mapped.has_references and not index.is_normalized:
            logger.warning(
                "The index has reference texts, but the model has no weight for them: scores are not normalized. "
                "Calibrate it with reference_files."
            )
        warn_of_other_references(store.reference_texts_sha256, index.calibration)
        if collection is None and index.keys and isinstance(index.keys[0], int):
            used = {*index.keys, *index.broken, *store.manifest.removed}
            index.source = ImageRows(start=max(int(row) for row in used) + 1)  # the rows are not there; ids are unique
        elif collection is not None and source.root is None:  # rows, or a list of files
            source.keys(collection)
        return index

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def keys(self) -> list[Key]:
        """Keys of all images."""
        return self.mapped.keys

    @property
    def broken(self) -> dict[Key, str]:
        """Reason for each image that could not be read and is not in the index."""
        return self.store.broken

    @property
    def calibration(self) -> MatchCalibration:
        """The calibration of the model, which makes probabilities of its scores."""
        return MatchCalibration.from_config(self.model.config)

    @property
    def is_normalized(self) -> bool:
        """Return True if scores are normalized: the index has reference texts, and the model a weight for them."""
        return self.mapped.has_references and bool(self.calibration.reference_weight)

    def broken_counts(self) -> dict[str, int]:
        """Count the images that could not be read by reason."""
        return dict(Counter(self.broken.values()))

    def broken_summary(self) -> str:
        """Return the counts with an example of each reason."""
        return self.store.broken_summary()

    @renamed_arguments(pictures="images")
    def add(self, images: Images, batch_size: int = 64) -> int:
        """Index more images of the same kind, files or rows; images that are in the index are read again if changed.

        Unlike an interrupted `build`, an interrupted `add` keeps nothing.

        Args:
            images: As in `build`; the indices of rows continue after the last one.
            batch_size: Images that are encoded at a time.

        Returns:
            The number of images by which the index has grown.
        """
        batch_size = as_int("batch_size", batch_size, minimum=1)
        collection = materialize(images)
        with self._changing() as writer:
            before = len(self)
            if are_files(collection) != isinstance(self.source, ImageFiles):
                raise ValueError(
                    "An index has either files or rows: add what it was built from, or build another one."
                )
            keys = self.source.keys(collection)
            manifest = self.store.manifest
            added = set(keys)
            manifest.removed = [key for key in manifest.removed if key not in added]
            if self.source.root is not None:
                outside = [key for key in keys if os.path.isabs(str(key))]
                manifest.external_keys = list(dict.fromkeys([*manifest.external_keys, *outside]))
            writer.encode_at_once(keys, batch_size)
            writer.commit(removed=set())
        return len(self) - before

    def remove(self, keys: Iterable[Key]) -> None:
        """Remove images from the index; `build` skips them from now on, until `add` names them.

        Raises:
            ValueError: If a key is not in the index.
        """
        if isinstance(keys, str):
            raise ValueError(f"keys are {keys!r:.100}: give a list of keys.")
        removed = dict.fromkeys(keys)
        with self._changing() as writer:
            self._require_known(removed.keys() - self.broken.keys())
            manifest = self.store.manifest
            external_keys = set(manifest.external_keys)
            manifest.removed += [key for key in removed if key not in external_keys]
            manifest.external_keys = [key for key in manifest.external_keys if key not in removed]
            writer.commit(set(removed))

    def changes(self) -> Changes:
        """Compare the index with its source: which images are new there, have changed, or are missing."""
        recorded = self.mapped.fingerprints
        known = {*recorded, *self.broken, *self.store.manifest.removed}
        current = {key: self.source.fingerprint(key) for key in recorded}
        return Changes(
            new=[key for key in self.source.current_keys() if key not in known],
            changed=[key for key, fingerprint in current.items() if fingerprint not in (None, recorded[key])],
            missing=[key for key, fingerprint in current.items() if fingerprint is None],
        )

    def image(self, key: Key) -> Image.Image:
        """Read an image of the index as RGB.

        Raises:
            ValueError: If it is not in the index, or cannot be read any more.
        """
        self._require_known([key])
        try:
            return self.source.read(key)[1]
        except InvalidSampleError as error:
            remedy = "" if error.reason is SkipReason.IMAGE_OUTSIDE_ROOT else f" {self.source.remedy}"
            raise ValueError(f"{key!r} cannot be read any more: {error}.{remedy}") from error

    def picture(self, key: Key) -> Image.Image:
        """Call `image`, which is its new name."""
        warn_of_old_name("ImageIndex.picture", "image")
        return self.image(key)

    @renamed_arguments(k="top_k", rerank="rerank_k")
    def search(
        self, query: str | Image.Image, top_k: int = 10, rerank_k: int = 128, itc_weight: float | None = None
    ) -> list[Hit]:
        """Find images.

        Files that are missing are skipped with a warning; those that have changed are kept with a warning.

        Args:
            query: A text, whose first 30 tokens are read; or an image, to find similar ones.
            top_k: Number of images to find, at most.
            rerank_k: Candidates with the highest cosine (ITC) that are matched with the text (ITM) and ordered by
                that. 0 orders by the cosines alone, and so does an image as query.
            itc_weight: Weight of the cosine beside the log-odds of a match. By default that of the model's
                calibration, which orders by probability, or 0 as in the paper if it is not calibrated. If it is given,
                reference texts have no effect.

        Returns:
            The best first. Images that are not among the `rerank_k` candidates follow by their cosines.

        Raises:
            ValueError: If the text has no word, or an argument is invalid.
        """
        top_k = as_int("top_k", top_k, minimum=1)
        rerank_k = as_int("rerank_k", rerank_k, minimum=0)
        itc_weight = None if itc_weight is None else as_weight("itc_weight", itc_weight)
        features, text = self._encode_query(query)
        if text is None:
            rerank_k = 0
        mapped = self.mapped  # which another thread may replace
        hits = self._nearest(mapped, features, max(top_k, rerank_k))
        if text is None or rerank_k == 0:
            return hits[:top_k]
        reranked = self._rerank(mapped, hits[:rerank_k], text, itc_weight)
        return (reranked + hits[rerank_k:])[:top_k]

    def _encode_query(self, query: str | Image.Image) -> tuple[torch.Tensor, TextFeatures | None]:
        """Return the unit features of a query, (projection,), and the text features of a text."""
        if isinstance(query, Image.Image):
            pixel_values = self.encoder.preprocess(load_image(query, exif_transpose=True))
            return self.encoder.encode(pixel_values)[1][0], None
        require_words(query)
        tokens = len(self.processor.encode_whole(query))
        longest = min(MAX_TOKENS, self.model.config.text.max_tokens)
        if tokens > longest:
            logger.warning_once(f"Only the first {longest} of the {tokens} tokens of the query are read.")
        text = encode_texts(self.model, self.processor, [query])
        return text.embeds[0].float().cpu(), text

    def _nearest(self, mapped: MappedIndex, features: torch.Tensor, count: int) -> list[Hit]:
        """Return the images with the highest cosines, best first."""
        with self.lock:  # the search changes how many lists faiss searches
            ids = search(mapped.vectors, features.numpy(), count)
        positions = mapped.positions(ids)
        present = self._present(mapped, [mapped.keys[position] for position in positions])
        positions = [position for position in positions if mapped.keys[position] in present]
        cosines = mapped.features(positions) @ features
        order = cosines.argsort(descending=True, stable=True).tolist()  # faiss may have compared compressed vectors
        hits = []
        for row in order:
            cosine = cosines[row].item()
            hits.append(Hit(mapped.keys[positions[row]], similarity=cosine, match=None, score=cosine))
        return hits

    def _rerank(
        self, mapped: MappedIndex, candidates: list[Hit], text: TextFeatures, itc_weight: float | None
    ) -> list[Hit]:
        """Return the candidates that can be read, ordered by how well they match the text."""
        by_key = {hit.key: hit for hit in candidates}
        log_odds = self.reranker.match(list(by_key), text, self.source, mapped.fingerprints)
        reranked = [by_key[key] for key in log_odds]
        features = torch.tensor([*log_odds.values()]), torch.tensor([hit.similarity for hit in reranked])
        if itc_weight is None and self.is_normalized and reranked:
            levels = self.calibration.level(*mapped.references([*log_odds]).unbind(-1))
            scores = self.calibration.normalized_logit(*features, levels)
        else:
            scores = features[0] + (self.calibration.itc_weight if itc_weight is None else itc_weight) * features[1]
        probabilities = self.calibration.probability(*features)
        for hit, probability, score in zip(reranked, probabilities.tolist(), scores.tolist(), strict=True):
            hit.match = probability
            hit.score = score
        return sorted(reranked, key=lambda hit: hit.score, reverse=True)

    def _present(self, mapped: MappedIndex, keys: list[Key]) -> set[Key]:
        """Return the keys of files that still exist, and warn of missing and changed ones."""
        if isinstance(self.source, ImageRows):
            return set(keys)
        recorded = mapped.fingerprints
        current: dict[Key, Fingerprint | None] = {key: self.source.fingerprint(key) for key in keys}
        missing = [key for key in keys if current[key] is None]
        changed = [key for key in keys if current[key] not in (None, recorded[key])]
        for status, affected in (("missing and are skipped", missing), ("changed since they were indexed", changed)):
            if affected:
                logger.warning(
                    f"{len(affected)} of the {len(keys)} best candidates are {status} (first {affected[0]}): "
                    "build the index again to update it."
                )
        self.reranker.drop_changed({key: current[key] for key in changed})
        return {*keys}.difference(missing)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[IndexWriter]:
        """Hold the lock and yield a writer to the index as it is on the disk; restore that index after an error."""
        self.store.require_dtype(self.model)
        with _lock(self.store.folder):
            self._reopen()
            source = copy.copy(self.source)
            try:
                yield IndexWriter(self.store, self.encoder, self.source)
                self._map()
            except BaseException:
                self.source = source
                self._reopen()
                raise

    def _reopen(self) -> None:
        """Read what is on the disk now, where another process may have changed it."""
        self.store = FeatureStore.open(self.store.folder)
        self.store.require_weights(self.model)
        self._map()

    def _map(self) -> None:
        """Map the index to memory; again if another process removes files because it replaces them meanwhile."""
        while True:
            try:
                self.mapped = MappedIndex(self.store, self.model.config.projection_dim)
                break
            except ValueError:
                newest = FeatureStore.open(self.store.folder)
                if newest.manifest == self.store.manifest:
                    raise
                self.store = newest
        self.reranker.clear()
        if isinstance(self.source, ImageFiles):
            self.source.recorded = self.mapped.fingerprints

    def _require_known(self, keys: Iterable[Key]) -> None:
        for key in keys:
            if key not in self.mapped.fingerprints:
                example = repr(self.keys[0]) if self.keys else "none, as it is empty"
                raise ValueError(f"{key!r} is not in the index. Example of its keys: {example}.")


def as_weight(name: str, value: Any) -> float:
    """Return a number as a Python float.

    Raises:
        ValueError: If it is not a finite number.
    """
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r:.100}: give a finite number, such as 0 or 1.")
    return float(value)


def require_words(query: Any) -> None:
    """Refuse a query that is not a text or has no word."""
    if not isinstance(query, str):
        raise ValueError(f"The query is of type {type(query).__name__}: give a text or a PIL image.")
    if is_blank(query):
        raise ValueError(f"The query {query!r:.100} has no word: pass a text with at least one word.")


def require_joint_space(model: AlbefImageTextModel) -> None:
    """Refuse a model without the joint space or the matching head."""
    if not (hasattr(model, "contrastive_head") and hasattr(model, "itm_head")):
        raise ValueError(f"{type(model).__name__} cannot search: load the model as AlbefForRetrieval.")


def _require_no_other_files(folder: Path) -> None:
    """Refuse to write a new index among other files."""
    if (folder / MANIFEST).exists() or not folder.exists():
        return
    allowed = (MANIFEST, LOCK, *INDEX_PATTERNS)
    others = [path for path in folder.iterdir() if not any(path.match(pattern) for pattern in allowed)]
    if others:
        raise ValueError(f"{folder} contains other files, such as {others[0].name}: choose another folder.")


def _open_or_create(folder: Path, model: AlbefImageTextModel, source: ImageSource) -> FeatureStore:
    """Open the index of these images, or create one in memory."""
    root = None if source.root is None else to_relative(source.root, folder)
    if not (folder / MANIFEST).exists():
        weights = weights_sha256(contrast_parts(model))
        identity: dict[str, str | None] = {"weights": weights, "dtype": dtype_name(model.dtype)}
        return FeatureStore(folder, Manifest(model_origin(model, folder) | identity, root))
    store = FeatureStore.open(folder)
    store.require_dtype(model)
    store.require_weights(model)
    if store.root != source.root and not _is_moved(store, source):
        raise ValueError(
            f"{folder} contains an index of {store.root or 'a list or dataset'}, not of {source.root or 'one'}: "
            "choose another folder for this one, or add the images to that one."
        )
    store.manifest.root = root
    if model.config.name_or_path:  # the same weights, which may have moved
        store.manifest.model |= model_origin(model, folder)
    return store


def _is_moved(store: FeatureStore, source: ImageSource) -> bool:
    """Return True if the folder that was indexed is gone and another one holds its images."""
    if store.root is None or source.root is None or store.root.exists():
        return False
    recorded: dict[Key, Any] = {}
    for name in (*store.manifest.shards, *store.manifest.parts):
        with contextlib.suppress(ValueError):  # a damaged shard
            shard = store.read(name)
            recorded.update(zip(shard.keys, shard.fingerprints.tolist(), strict=True))
    return ImageFiles(source.root, recorded=recorded).holds_recorded()


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock the index against other processes."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise ValueError(f"Another process is changing the index in {folder}: wait until it has finished.") from error


def __getattr__(name: str) -> Any:
    return renamed_attribute(globals(), _RENAMED, name)
