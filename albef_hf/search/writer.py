"""Change an index: encode new images, write their features, and commit the result."""

import time
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from transformers.utils import logging

from ..data.row_errors import SkipReason
from .encoder import EncodedBatch, FeatureEncoder, UnreadableImage
from .faiss_index import build_index, default_index_factory, faiss, read_index, update_index, write_index
from .feature_store import FeatureStore, Shard, concatenate_ids
from .image_sources import Fingerprint, ImageSource, Key

logger = logging.get_logger(f"transformers.{__name__}")

PART_SECONDS = 30  # of work that an interrupted build loses at most
MISSING = SkipReason.IMAGE_MISSING.name.lower()


class IndexWriter:
    """Write to an index, whose lock the caller holds. Nothing is part of the index before `commit`.

    Args:
        store: Files of the index.
        encoder: Encodes images.
        source: Where they are read from.
    """

    def __init__(self, store: FeatureStore, encoder: FeatureEncoder, source: ImageSource):
        self.store = store
        self.encoder = encoder
        self.source = source

    def discard_damaged(self) -> None:
        """Drop damaged files from the manifest, so that their content is computed again."""
        manifest = self.store.manifest
        for names in (manifest.shards, manifest.parts, [manifest.vectors] if manifest.vectors else []):
            for name in list(names):
                problem = self.store.check_sha256(name)
                if problem:
                    logger.warning(f"{problem}: it is computed again.")
                    names.remove(name)
                    manifest.vectors = None

    def fingerprints(self) -> dict[Key, Fingerprint]:
        """Return the fingerprints of all images with features on the disk, including those not committed yet."""
        fingerprints: dict[Key, Fingerprint] = {}
        for shard in self.store.read_all():
            for key, (first, second) in zip(shard.keys, shard.fingerprints.tolist(), strict=True):
                fingerprints[key] = first, second
        return fingerprints

    def outdated(self, keys: Sequence[Key]) -> list[Key]:
        """Return the keys of new and changed images, without those that `remove` was called with."""
        manifest = self.store.manifest
        known: dict[Key, Fingerprint | None] = {
            key: None if fingerprint is None else (fingerprint[0], fingerprint[1])
            for key, reason, fingerprint in manifest.broken
            if reason != MISSING  # which is tried again every time
        }
        known |= self.fingerprints()
        removed = set(manifest.removed)
        candidates = [key for key in keys if key not in removed]
        return [key for key in candidates if key not in known or known[key] != self.source.fingerprint(key)]

    def encode_resumably(self, keys: Sequence[Key], batch_size: int) -> None:
        """Encode new and changed images, and write features regularly and when something interrupts."""
        done: list[EncodedBatch] = []
        written = time.monotonic()
        try:
            for batch in self._encode(keys, batch_size):
                done.append(batch)
                if time.monotonic() - written > PART_SECONDS:
                    self._save_part(done)
                    done = []
                    written = time.monotonic()
        finally:
            self._save_part(done)

    def encode_at_once(self, keys: Sequence[Key], batch_size: int) -> None:
        """Encode new and changed images; only `commit` saves the result."""
        self._add_part(list(self._encode(keys, batch_size)))

    def _encode(self, keys: Sequence[Key], batch_size: int) -> Iterator[EncodedBatch]:
        references = self.store.reference_texts()
        return self.encoder.encode_images(self.source, self.outdated(keys), batch_size, references)

    def _save_part(self, done: Sequence[EncodedBatch]) -> None:
        """Save what has been encoded, so that another process can resume from it."""
        if done:
            self._add_part(done)
            self.store.save()

    def _add_part(self, done: Sequence[EncodedBatch]) -> None:
        manifest = self.store.manifest
        keys = [key for batch in done for key in batch.keys]
        unreadable = [image for batch in done for image in batch.unreadable]
        tried = {*keys, *(image.key for image in unreadable)}
        manifest.broken = [entry for entry in manifest.broken if entry[0] not in tried]
        manifest.broken += [self._broken_entry(image) for image in unreadable]
        if keys:
            fingerprints = [fingerprint for batch in done for fingerprint in batch.fingerprints]
            readable = [batch for batch in done if batch.keys]  # others do not tell how many references there are
            features = torch.cat([batch.features for batch in readable])
            references = torch.cat([batch.references for batch in readable])
            self.store.add_part(keys, fingerprints, features, references)

    def _broken_entry(self, image: UnreadableImage) -> tuple[Key, str, Fingerprint | None]:
        return image.key, image.error.reason.name.lower(), self.source.fingerprint(image.key)

    def commit(self, removed: set[Key], index_factory: str | None = None) -> None:
        """Make what has been encoded the index, without those that are removed.

        Args:
            removed: Keys of images to leave out.
            index_factory: String for faiss, which stays the one of the index; None keeps that one.
        """
        manifest = self.store.manifest
        ids_before = concatenate_ids([self.store.read(name) for name in manifest.shards])
        ids: dict[Key, int] = {}
        for shard in self.store.read_all():
            ids.update(zip(shard.keys, shard.ids.tolist(), strict=True))  # the later one of a changed image
        manifest.broken = [entry for entry in manifest.broken if entry[0] not in removed]
        skipped = removed | {key for key, _, _ in manifest.broken}
        shards = self.store.compact([id for key, id in ids.items() if key not in skipped])
        manifest.index_factory = index_factory or manifest.index_factory
        vectors = self._make_vectors(shards, ids_before)
        manifest.vectors = self.store.write("vectors", "faiss", partial(write_index, vectors))
        self.store.save()

    def _make_vectors(self, shards: Sequence[Shard], ids_before: np.ndarray) -> faiss.Index:
        """Update the faiss index if possible, and build it again otherwise."""
        manifest = self.store.manifest
        ids_after = concatenate_ids(shards)
        wanted = manifest.index_factory or default_index_factory(len(ids_after))
        if manifest.index_factory is None and manifest.built and len(ids_after) <= len(ids_before):
            wanted = manifest.built  # removing an image is no reason to train another kind of index
        vectors = None
        if manifest.vectors and wanted == manifest.built:
            vectors = read_index(self.store.folder / manifest.vectors, mapped=False)
            old_ids = torch.from_numpy(ids_before)
            added = [_block(shard.select(~torch.isin(shard.ids, old_ids))) for shard in shards]
            vectors = update_index(vectors, removed=np.setdiff1d(ids_before, ids_after), added=added)
        if vectors is None:
            width = self.encoder.model.config.projection_dim
            vectors = build_index(wanted, [_block(shard) for shard in shards], width)
        manifest.built = wanted
        return vectors


def _block(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    return shard.ids.numpy(), shard.features.numpy()
