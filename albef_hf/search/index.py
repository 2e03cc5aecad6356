"""Search of one's own pictures: an index of their features, asked by text or by picture.

    python -m albef_hf.search.index build FOLDER --model you/albef
    python -m albef_hf.search.index search "two dogs in the snow" --html page.html

Two steps, as in the paper: the cosines of image and text features (ITC), through faiss, name the best candidates, and
the matching head (ITM), which reads picture and text together, orders them.
"""

import argparse
import contextlib
import copy
import hashlib
import math
import operator
import os
import sys
import tempfile
import threading
import time
import webbrowser
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from transformers import pipeline
from transformers.utils import logging

from ..data import BadSampleError, Issue, load_upright, says_something
from ..modeling_albef import AlbefAlignedModel
from ..processing_albef import AlbefProcessor, encodable
from ..retrieval_albef import KEPT_VALUES, MAX_TOKENS, TextFeatures, encode_texts, evaluation_mode, match_pictures
from ..utils.progress import log_library_progress, progress
from .faiss_index import (
    changed_vectors,
    check_factory,
    default_factory,
    find,
    make_vectors,
    read_vectors,
    write_vectors,
)
from .feature_store import ANEW, MANIFEST, OUR_FILES, FeatureStore, Manifest, Shard, seen_from
from .html_report import results_page
from .image_sources import Files, Key, Rows, Stamp

logger = logging.get_logger(f"transformers.{__name__}")

Pictures = str | os.PathLike | Iterable[Any]  # a folder, a `datasets.Dataset`, a list of paths, or of PIL pictures
Reading = tuple[Stamp, torch.Tensor] | BadSampleError  # of a picture: stamp and pixels, or what is wrong with it
LOCK = ".lock"  # of the folder of an index
Encoded = tuple[dict[Key, Stamp | BadSampleError], torch.Tensor | None]  # a batch, and features of those that are good
PART_SECONDS = 30  # of work at most that an interrupted build loses
READERS = min(8, os.cpu_count() or 1)  # threads that read pictures while the model is at work
ENCODED_TOGETHER = 16  # candidates: their keys and values in all layers are large


@dataclass
class Hit:
    """A picture that has been found.

    Args:
        key: Path, relative to the folder that was indexed, or number of the row.
        similarity: Cosine of the features (ITC).
        match: Probability that picture and text match (ITM); None where that has not been asked.
        score: What the hits are ordered by: of those that were matched, which come first, the log-odds of a match, as
            in the evaluation, and the cosine as far as it counts; of the others the cosine.
    """

    key: Key
    similarity: float
    match: float | None
    score: float


@dataclass
class Changes:
    """What is not in the index as it is on the disk: keys of new, changed and missing pictures."""

    new: list[Key]
    changed: list[Key]
    missing: list[Key]

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.missing)

    def __str__(self) -> str:
        found = {"new": self.new, "changed": self.changed, "missing": self.missing}
        return ", ".join(f"{len(keys)} {name} (first {keys[0]})" for name, keys in found.items() if keys) or "none"


class _Stamps(Mapping):
    """The stamps of the pictures in an index, by their keys, as it is at the moment."""

    def __init__(self, index: "PictureIndex"):
        self.index = index

    def __getitem__(self, key: Key) -> Stamp:
        return self.index._stamp(self.index.place[key])

    def __iter__(self) -> Iterator[Key]:
        return iter(self.index.place)

    def __len__(self) -> int:
        return len(self.index.place)


class PictureIndex:
    """Pictures that can be searched by text or by picture; made by `build` or `load`.

    Features, faiss's file and a manifest lie in one folder. What `add` and `remove` do is on the disk when they
    return, or has not happened. Several processes may search one index; one at a time may change it.

    Example:
        ```python
        index = PictureIndex.build(model, processor, "photographs", "photographs.index")
        for hit in index.search("two dogs in the snow"):
            print(hit.key, hit.match)
            index.picture(hit.key).show()
        ```
    """

    def __init__(self, model: AlbefAlignedModel, processor: AlbefProcessor, store: FeatureStore, source: Files | Rows):
        self.model, self.processor, self.store, self.source = model, processor, store, source
        # Candidates of late, each as it was when it was encoded; the latest ones last.
        self.encoded: OrderedDict[int, tuple[Stamp, torch.Tensor]] = OrderedDict()
        self.lock = threading.Lock()

    @classmethod
    def build(
        cls,
        model: AlbefAlignedModel,
        processor: AlbefProcessor,
        pictures: Pictures,
        folder: str | os.PathLike,
        factory: str | None = None,
        batch_size: int = 64,
    ) -> "PictureIndex":
        """Index pictures, or bring an index up to date; a build that was interrupted is gone on with.

        What is in the index and has not changed is not computed again; what is not among the pictures any more goes.
        What has been added to a folder's index from elsewhere stays as long as it does not change. If it is missing,
        it is counted with the broken pictures, and comes back when it does. If it has changed, or the shard that had
        recorded it is damaged, it is counted there until `add` names it: an index of somebody else could name any
        file. A folder may have moved, with its pictures.

        Args:
            model: With the joint space and the matching head, `AlbefForRetrieval` or `AlbefForPreTraining`.
            processor: Its processor.
            pictures: A folder, which is searched through; a `datasets.Dataset` with a column of pictures; a list of
                paths, or of pictures, or what yields one, such as `Path.glob`.
            folder: Where the index is, or is to be.
            factory: String of faiss's `index_factory`; by default `Flat`, above a million pictures `IVF...,Flat`. See
                `albef_hf.search.faiss_index` for those that cannot be taken.
            batch_size: Pictures encoded at a time.

        Raises:
            ValueError: If there is no picture that can be read, or the folder holds something else, an index of other
                pictures, or one made with other weights.
        """
        _require_joint_space(model)
        batch_size, pictures = _whole("batch_size", batch_size, 1), _in_hand(pictures)
        if factory is not None:
            check_factory(factory, model.config.projection_dim)
        source = _source(pictures)
        keys = source.keys_of(pictures)
        folder = Path(folder)
        _require_room(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            index = cls(model, processor, _open_or_make(folder, model, source), source)
            index._leave_out_damaged()
            elsewhere = index.store.manifest.elsewhere
            if elsewhere:  # not named by the caller: the manifest may be somebody else's
                source.recorded = index._recorded_stamps()
                keys += elsewhere
            gone = {*index._stamps_on_disk(), *index.broken} - {*keys}
            index._encode_new(keys, batch_size)
            if not index._stamps_on_disk().keys() - gone - index.broken.keys():
                raise ValueError(f"None of the {len(keys)} pictures can be read: {index.broken_told()}.")
            index._commit(gone, factory)
            if elsewhere:
                source.recorded = _Stamps(index)
        return index

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike,
        model: AlbefAlignedModel,
        processor: AlbefProcessor,
        pictures: Pictures | None = None,
    ) -> "PictureIndex":
        """Open an index.

        Args:
            folder: Where it is.
            model: The one that it was built with.
            processor: Its processor.
            pictures: What it was built of, if that was a dataset or a list of pictures; without them such an index
                answers with `rerank=0` only. Or the folder of the pictures, if they have moved. Without it, only files
                are read that are what they were when they were indexed, by size and time, so that an index of somebody
                else shows none of your images.

        Raises:
            ValueError: If there is no finished index, it was built with other weights, or it is damaged.
        """
        _require_joint_space(model)
        pictures = None if pictures is None else _in_hand(pictures)
        store = FeatureStore.open(Path(folder))
        _require_weights(store, model)
        source = Files(store.root, root_is_named=False) if pictures is None else _source(pictures)
        index = cls(model, processor, store, source)
        if isinstance(source, Files):
            source.recorded = _Stamps(index)
        index._use_newest()
        if pictures is None and index.keys and isinstance(index.keys[0], int):
            numbers = {*index.keys, *index.broken, *store.manifest.removed}
            index.source = Rows(start=max(numbers) + 1)  # none of them is there, and no number is given twice
        elif pictures is not None and source.root is None:  # rows, or a list of files
            source.keys_of(pictures)
        return index

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def broken(self) -> dict[Key, str]:
        """Why each picture that could not be read is not in the index."""
        return {key: reason for key, reason, _ in self.store.manifest.broken}

    def broken_counts(self) -> dict[str, int]:
        """How many pictures could not be read, by reason."""
        return dict(Counter(self.broken.values()))

    def broken_told(self) -> str:
        """The same with an example of each reason."""
        first = {reason: key for key, reason in reversed(self.broken.items())}
        counts = self.broken_counts()
        return ", ".join(f"{reason} {count} (first {first[reason]})" for reason, count in counts.items()) or "none"

    def add(self, pictures: Pictures, batch_size: int = 64) -> int:
        """Index more pictures, of the kind that there are already; those that are in the index are read if changed.

        All of them, or none: of an `add` that was interrupted nothing is kept, unlike of a `build`.

        Args:
            pictures: As in `build`; rows are numbered from the last one on.
            batch_size: Pictures encoded at a time.

        Returns:
            How many pictures there are more.
        """
        batch_size, pictures = _whole("batch_size", batch_size, 1), _in_hand(pictures)
        with _alone(self.store.folder):
            self._reopen()
            before = len(self)
            if _are_files(pictures) != isinstance(self.source, Files):
                raise ValueError("An index has either files or rows: add what it was built of, or build another one.")
            source = copy.copy(self.source)
            try:
                keys = self.source.keys_of(pictures)
                again = set(keys)
                manifest = self.store.manifest
                manifest.removed = [key for key in manifest.removed if key not in again]
                if source.root is not None:
                    outside = [key for key in keys if os.path.isabs(str(key))]
                    manifest.elsewhere = list(dict.fromkeys([*manifest.elsewhere, *outside]))
                self._write_part(list(self._encoded_batches(keys, batch_size)))  # all of it or nothing
                self._commit(set(), None)
            except BaseException:
                self.source = source
                self._reopen()
                raise
        return len(self) - before

    def remove(self, keys: Iterable[Key]) -> None:
        """Forget pictures; `build` leaves them out from now on, `add` takes them again.

        Raises:
            ValueError: If a key is not in the index.
        """
        if isinstance(keys, str):
            raise ValueError(f"keys are {keys!r:.100}; give a list of them.")
        keys = set(keys)
        with _alone(self.store.folder):
            self._reopen()
            self._require_known(keys - self.broken.keys())
            manifest = self.store.manifest
            manifest.removed += sorted(keys.difference(manifest.elsewhere))
            manifest.elsewhere = [key for key in manifest.elsewhere if key not in keys]
            self._commit(keys, None)

    def changes(self) -> Changes:
        """Compare the index with what it was made of: what is new there, what has changed, what is missing."""
        known = {*self.place, *self.broken, *self.store.manifest.removed}
        now = {key: self.source.stamp(key) for key in self.place}
        return Changes(
            new=[key for key in self.source.listed() if key not in known],
            changed=[key for key, stamp in now.items() if stamp not in (None, self._stamp(self.place[key]))],
            missing=[key for key, stamp in now.items() if stamp is None],
        )

    def picture(self, key: Key) -> Image.Image:
        """A picture of the index, as RGB.

        Raises:
            ValueError: If it is not in the index, or cannot be read any more.
        """
        self._require_known([key])
        try:
            return self.source.read(key)[1]
        except BadSampleError as error:
            remedy = "" if error.issue is Issue.IMAGE_OUTSIDE_ROOT else f" {self._remedy()}"
            raise ValueError(f"{key!r} cannot be read any more: {error}.{remedy}") from error

    def search(self, query: str | Image.Image, k: int = 10, rerank: int = 128, itc_weight: float = 0.0) -> list[Hit]:
        """Find pictures.

        Pictures that have gone since they were indexed are left out, which is told; so are changed ones, which stay.

        Args:
            query: A text, of which the first 30 tokens are read; or a picture, to find those that are like it.
            k: How many to find; all where there are fewer.
            rerank: How many candidates of the highest cosine (ITC) are matched with the text (ITM) and ordered by
                that; 0: none, the order is that of the cosines, as it always is for a picture.
            itc_weight: Weight of the cosine beside the log-odds of a match; 0: the paper.

        Returns:
            The best first. Of `k` hits those that are not among the `rerank` candidates follow by their cosines.

        Raises:
            ValueError: If the text has no word in it, or a number is not what it should be.
        """
        k, rerank, itc_weight = _checked_settings(k, rerank, itc_weight)
        if isinstance(query, Image.Image):
            texts, rerank = None, 0
            features = self._encode(self._pixels(load_upright(query)))[1]
        else:
            _require_words(query)
            self._tell_of_cut(query)
            texts = encode_texts(self.model, self.processor, [query])
            features = texts.embeds.float().cpu()
        with self.lock:  # faiss is told how many lists to look into before each search
            ids = find(self.vectors, features[0].numpy(), max(k, rerank))
        places = self._present(self._places(ids))
        cosines = self._features(places) @ features[0]
        order = cosines.argsort(descending=True, stable=True).tolist()  # faiss may have compared them compressed
        places, cosines = [places[row] for row in order], [cosines[row].item() for row in order]
        hits = {place: Hit(self.keys[place], x, None, x) for place, x in zip(places, cosines, strict=True)}
        if not rerank:
            return list(hits.values())[:k]
        candidates = list(hits)[:rerank]
        matched = []
        for place, (log_odds, probability) in self._match(candidates, texts).items():
            hit = hits[place]
            hit.match, hit.score = probability, log_odds + itc_weight * hit.similarity
            matched.append(hit)
        matched.sort(key=lambda hit: hit.score, reverse=True)
        return (matched + list(hits.values())[len(candidates) :])[:k]

    def _places(self, ids: np.ndarray) -> list[int]:
        """Where pictures are in the index, by their numbers."""
        places = np.searchsorted(self.ids, ids)
        if not np.array_equal(self.ids[np.minimum(places, len(self.ids) - 1)], ids):
            raise ValueError(f"The index is damaged: {self.store.manifest.vectors} has pictures of its own. {ANEW}")
        return places.tolist()

    def _features(self, places: list[int]) -> torch.Tensor:
        """Unit features of some pictures, (pictures, projection), read from the disk."""
        starts = np.searchsorted(self.starts, places, side="right") - 1
        places_in_shards = zip(starts, places - self.starts[starts], strict=True)
        rows = [self.shards[shard].features[row] for shard, row in places_in_shards]
        features = torch.stack(rows) if rows else torch.zeros(0, self.model.config.projection_dim)
        if not features.isfinite().all():
            raise ValueError(f"The index is damaged: not all of its features are numbers. {ANEW}")
        return features

    def _present(self, places: list[int]) -> list[int]:
        """Those of which there is still a file."""
        if isinstance(self.source, Rows):
            return places
        stamps = {place: self.source.stamp(self.keys[place]) for place in places}
        missing = [place for place in places if stamps[place] is None and not self.source.refuses(self.keys[place])]
        changed = [place for place in places if stamps[place] not in (None, self._stamp(place))]
        for what, found in (("missing, and left out", missing), ("not what they were when indexed", changed)):
            if found:
                logger.warning(
                    f"{len(found)} of the {len(places)} best candidates are {what} (first {self.keys[found[0]]}): "
                    "build the index again, and it is up to date."
                )
        with self.lock:
            for place in changed:
                if place in self.encoded and self.encoded[place][0] != stamps[place]:
                    del self.encoded[place]
        return [place for place in places if stamps[place] is not None]

    def _match(self, places: list[int], text: TextFeatures) -> dict[int, tuple[float, float]]:
        """Log-odds and probability of a match, of those candidates that can be read."""
        scores: dict[int, tuple[float, float]] = {}
        for some, states in self._hidden_states(places):
            with evaluation_mode(self.model):
                log_odds = match_pictures(self.model, states, text).float().diff(dim=1).squeeze(1)
            both = zip(log_odds.tolist(), log_odds.sigmoid().tolist(), strict=True)
            scores |= zip(some, both, strict=True)
        return scores

    def _hidden_states(self, places: list[int]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """States of some candidates after the others, (some, patches + 1, width); first of those encoded lately."""
        with self.lock:
            kept = {place: self.encoded[place][1] for place in places if place in self.encoded}
            for place in kept:
                self.encoded.move_to_end(place)
        for some in _batches(list(kept), ENCODED_TOGETHER):
            yield some, torch.cat([kept[place] for place in some])
        others = {self.keys[place]: place for place in places if place not in kept}
        for batch in self._read(list(others), ENCODED_TOGETHER):
            good = [(others[key], *reading) for key, reading in batch if self._is_readable(key, reading)]
            if good:
                some, stamps, pixels = zip(*good, strict=True)
                states = self._encode(torch.cat(pixels))[0]
                self._keep(some, stamps, states)
                yield list(some), states

    def _is_readable(self, key: Key, reading: Reading) -> bool:
        is_bad = isinstance(reading, BadSampleError)
        if isinstance(self.source, Rows) and (is_bad or reading[0] != self._stamp(self.place[key])):
            raise ValueError(f"Row {key} is not the picture that was indexed, or not there. {self._remedy()}")
        if is_bad:
            logger.warning_once(f"{key} cannot be read any more, and is left out: {reading}.")
        return not is_bad

    def _keep(self, places: Sequence[int], stamps: Sequence[Stamp], states: torch.Tensor) -> None:
        """Keep hidden states of pictures for other queries, at the expense of those that were not asked for lately."""
        with self.lock:
            for place, stamp, one in zip(places, stamps, states.split(1), strict=True):
                self.encoded[place] = stamp, one.to("cpu", copy=True)  # by itself, to be freed by itself
            while len(self.encoded) * states[0].numel() > KEPT_VALUES:
                self.encoded.popitem(last=False)

    def _tell_of_cut(self, query: str) -> None:
        tokens = len(self.processor.encode_whole(query))
        longest = min(MAX_TOKENS, self.model.config.text_config.max_position_embeddings)
        if tokens > longest:
            logger.warning_once(f"Of the {tokens} tokens of the query the first {longest} are read.")

    def _pixels(self, picture: Image.Image) -> torch.Tensor:
        return self.processor(images=[picture], return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def _encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states, (pictures, patches + 1, width), and unit features, (pictures, projection), of pixels."""
        with evaluation_mode(self.model):
            outputs = self.model.get_image_features(pixel_values.to(self.model.device), return_dict=True)
        return outputs.last_hidden_state, outputs.pooler_output.float().cpu()

    def _read(self, keys: Sequence[Key], batch_size: int) -> Iterator[list[tuple[Key, Reading]]]:
        """Stamp and pixels of each picture, or what is wrong with it; a batch is read while another is encoded."""

        def read(key: Key) -> tuple[Key, Reading]:
            try:
                stamp, picture = self.source.read(key)
            except BadSampleError as error:
                return key, error
            return key, (stamp, self._pixels(picture))

        with ThreadPoolExecutor(READERS) as pool:
            coming: list[Future] = []
            try:
                for batch in (*_batches(keys, batch_size), ()):
                    ready, coming = coming, [pool.submit(read, key) for key in batch]
                    if ready:
                        yield [reading.result() for reading in ready]
            finally:
                pool.shutdown(cancel_futures=True)

    def _encode_new(self, keys: Sequence[Key], batch_size: int) -> None:
        """Encode what is new or has changed, and write it down every while, and when something interrupts."""
        done, written = [], time.monotonic()
        try:
            for batch in self._encoded_batches(keys, batch_size):
                done.append(batch)
                if time.monotonic() - written > PART_SECONDS:
                    self._write_part(done)
                    done, written = [], time.monotonic()
        finally:
            self._write_part(done)

    def _encoded_batches(self, keys: Sequence[Key], batch_size: int) -> Iterator[Encoded]:
        """What is new or has changed, a batch after the other."""
        missing = Issue.IMAGE_MISSING.name.lower()  # which is read when it is back
        broken = {key: stamp and tuple(stamp) for key, why, stamp in self.store.manifest.broken if why != missing}
        seen = broken | self._stamps_on_disk()
        left_out = set(self.store.manifest.removed)
        new = [key for key in keys if key not in left_out]
        new = [key for key in new if key not in seen or seen[key] != self.source.stamp(key)]
        with progress(total=len(new), desc="encode pictures", unit="picture", disable=not new) as bar:
            for batch in self._read(new, batch_size):
                pixels = [reading[1] for _, reading in batch if not isinstance(reading, BadSampleError)]
                features = self._encode(torch.cat(pixels))[1] if pixels else None
                yield {key: r if isinstance(r, BadSampleError) else r[0] for key, r in batch}, features
                bar.update(len(batch))

    def _write_part(self, done: Sequence[Encoded]) -> None:
        """Put what has been computed on the disk, where another process can go on with it."""
        found = {key: result for batch, _ in done for key, result in batch.items()}
        if not found:
            return
        manifest = self.store.manifest
        has_bad = any(isinstance(result, BadSampleError) for result in found.values())
        recorded = self._recorded_stamps() if has_bad else {}
        manifest.broken = [entry for entry in manifest.broken if entry[0] not in found]
        good = []
        for key, result in found.items():
            if not isinstance(result, BadSampleError):
                good.append((key, result))
            else:
                absent = result.issue in (Issue.IMAGE_MISSING, Issue.IMAGE_OUTSIDE_ROOT)  # it may come back as it was
                stamp = recorded.get(key) if absent else self.source.stamp(key)
                manifest.broken.append((key, result.issue.name.lower(), stamp))
        if good:
            keys, stamps = zip(*good, strict=True)
            features = torch.cat([features for _, features in done if features is not None])
            self.store.add_part(list(keys), list(stamps), features)
        self.store.save()

    def _stamps_on_disk(self) -> dict[Key, Stamp]:
        """Of all pictures that have features, also of those that are not in the index yet."""
        manifest, stamps = self.store.manifest, {}
        for name in (*manifest.shards, *manifest.parts):
            shard = self.store.read(name)
            stamps.update(zip(shard.keys, map(tuple, shard.stamps.tolist()), strict=True))
        return stamps

    def _recorded_stamps(self) -> dict[Key, Stamp]:
        """Stamps of all pictures as they were last seen, also of those that cannot be read."""
        broken = {key: tuple(stamp) for key, _, stamp in self.store.manifest.broken if stamp}
        return broken | self._stamps_on_disk()

    def _leave_out_damaged(self) -> None:
        """Go on without files that are not what they were; what was in them is computed again."""
        manifest = self.store.manifest
        for names in (manifest.shards, manifest.parts, [manifest.vectors] if manifest.vectors else []):
            for name in list(names):
                fault = self.store.deep_fault(name)
                if fault:
                    logger.warning(f"{fault}: made anew.")
                    names.remove(name)
                    manifest.vectors = None

    def _commit(self, gone: set[Key], factory: str | None) -> None:
        """Let what has been computed be the index, without some pictures."""
        manifest, numbers = self.store.manifest, {}
        before = _ids_of([self.store.read(name) for name in manifest.shards])
        for name in (*manifest.shards, *manifest.parts):
            shard = self.store.read(name)
            numbers.update(zip(shard.keys, shard.ids.tolist(), strict=True))  # of a changed picture the later one
        manifest.broken = [entry for entry in manifest.broken if entry[0] not in gone]
        left_out = gone | self.broken.keys()
        shards = self.store.kept([number for key, number in numbers.items() if key not in left_out])
        after = _ids_of(shards)
        manifest.factory = factory or manifest.factory
        wanted = manifest.factory or default_factory(len(after))
        if manifest.factory is None and manifest.built and len(after) <= len(before):
            wanted = manifest.built  # nothing is trained anew because a picture has gone
        vectors = None
        if manifest.vectors and wanted == manifest.built:
            vectors = read_vectors(self.store.folder / manifest.vectors, mapped=False)
            new = [_block(shard.select(~torch.isin(shard.ids, torch.from_numpy(before)))) for shard in shards]
            vectors = changed_vectors(vectors, np.setdiff1d(before, after), new)
        if vectors is None:
            vectors = make_vectors(wanted, [_block(shard) for shard in shards], self.model.config.projection_dim)
        manifest.vectors = self.store.write("vectors", "faiss", partial(write_vectors, vectors))
        manifest.built = wanted
        self.store.save()
        self._use()

    def _reopen(self) -> None:
        """See what is on the disk now, where another process may have changed it."""
        self.store = FeatureStore.open(self.store.folder)
        _require_weights(self.store, self.model)
        self._use()

    def _use_newest(self) -> None:
        """Map the index as it is now, also while another process changes it and removes what it has replaced."""
        while True:
            try:
                return self._use()
            except ValueError:
                newest = FeatureStore.open(self.store.folder)
                if newest.manifest == self.store.manifest:
                    raise
                self.store = newest

    def _use(self) -> None:
        """Map the files of the index to memory."""
        store, manifest = self.store, self.store.manifest
        if manifest.vectors is None:
            raise ValueError(f"The index in {store.folder} is not finished: build it again, which goes on with it.")
        fault = store.deep_fault(manifest.vectors)  # faiss may crash on what it has not written; features do not
        if fault:
            raise ValueError(f"The index is damaged: {fault}. {ANEW}")
        self.vectors = read_vectors(store.folder / manifest.vectors)
        self.shards = [store.read(name) for name in manifest.shards]
        self.ids = _ids_of(self.shards)
        if self.vectors.ntotal != len(self.ids):
            raise ValueError(f"The index is damaged: {manifest.vectors} has {self.vectors.ntotal} vectors. {ANEW}")
        widths = {self.vectors.d, *(shard.features.shape[1] for shard in self.shards)}
        if widths != {self.model.config.projection_dim} or np.any(np.diff(self.ids) <= 0):
            raise ValueError(f"The index is damaged: its files do not belong together. {ANEW}")
        self.starts = np.cumsum([0, *(len(shard.keys) for shard in self.shards)])[:-1]
        self.keys = [key for shard in self.shards for key in shard.keys]
        self.place = {key: place for place, key in enumerate(self.keys)}
        self.stamps = np.concatenate([np.zeros((0, 2), np.int64), *(shard.stamps.numpy() for shard in self.shards)])
        self.encoded.clear()

    def _stamp(self, place: int) -> Stamp:
        return tuple(self.stamps[place].tolist())

    def _require_known(self, keys: Iterable[Key]) -> None:
        for key in keys:
            if key not in self.place:
                example = next(iter(self.place), "none at all")
                raise ValueError(f"{key!r} is not in the index; what is there is called such as {example!r}.")

    def _remedy(self) -> str:
        if isinstance(self.source, Files):
            return "Build the index again, and it is up to date."
        return "Load the index with pictures=..., what it was built of; without them rerank=0 finds row numbers."


def _ids_of(shards: Sequence[Shard]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(shard.ids.numpy() for shard in shards)])


def _block(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    return shard.ids.numpy(), shard.features.numpy()


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def weights_digest(model: AlbefAlignedModel) -> str:
    """SHA-256 of the weights that cosines depend on: both encoders and the joint space."""
    digest = hashlib.sha256()
    for part in (model.albef.vision_model, model.albef.text_model, model.contrastive_head):
        for name, weight in part.state_dict().items():
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _origin(model: AlbefAlignedModel, folder: Path) -> dict[str, str | None]:
    """Where a model is from, as it is seen from a folder."""
    name = model.config.name_or_path
    name = seen_from(name, folder) if name and Path(name).exists() else name
    return {"name": name, "revision": getattr(model.config, "_commit_hash", None)}


def _require_joint_space(model: AlbefAlignedModel) -> None:
    if not (hasattr(model, "contrastive_head") and hasattr(model, "itm_head")):
        raise ValueError(f"A {type(model).__name__} cannot search: load the model as AlbefForRetrieval.")


def _require_weights(store: FeatureStore, model: AlbefAlignedModel) -> None:
    built_with = store.manifest.model
    if built_with["weights"] != weights_digest(model):
        revision = f", revision {built_with['revision']}" if built_with["revision"] else ""
        raise ValueError(
            f"The index in {store.folder} was built with other weights than those of this model, those of "
            f"{store.model_name or 'a model without a name'}{revision}: load that one (in the same precision), or "
            "build an index in another folder."
        )


def _require_room(folder: Path) -> None:
    """Refuse to write an index among other things; what has come into one since is no harm."""
    if (folder / MANIFEST).exists():
        return
    ours = (MANIFEST, LOCK, *OUR_FILES)
    others = (
        [path for path in folder.iterdir() if not any(path.match(name) for name in ours)] if folder.exists() else []
    )
    if others:
        raise ValueError(f"{folder} holds other things, such as {others[0].name}: name another folder for the index.")


def _whole(name: str, value: int, least: int) -> int:
    """A count as Python's own integer, also of what NumPy or torch has counted."""
    with contextlib.suppress(TypeError):
        if operator.index(value) >= least:
            return operator.index(value)
    raise ValueError(f"{name} is {value!r:.100}; it has to be a whole number from {least}.")


def _checked_settings(k: int, rerank: int, itc_weight: float) -> tuple[int, int, float]:
    """Those of a search."""
    if not isinstance(itc_weight, Real) or not math.isfinite(itc_weight):
        raise ValueError(f"itc_weight is {itc_weight!r:.100}; it has to be a finite number, such as 0 or 1.")
    return _whole("k", k, 1), _whole("rerank", rerank, 0), float(itc_weight)


def _require_words(query: str) -> None:
    if not isinstance(query, str):
        raise ValueError(f"The query is a {type(query).__name__}; give a text or a PIL picture.")
    if not says_something(query):
        raise ValueError(f"The query {query!r:.100} has no word in it.")


def _in_hand(pictures: Pictures) -> Pictures:
    """Pictures that can be counted and looked up: what only yields them is asked for all."""
    if isinstance(pictures, Iterator):
        pictures = list(pictures)
    if isinstance(pictures, Mapping) and pictures:  # a DatasetDict, for one
        names = ", ".join(map(repr, pictures))
        raise ValueError(f"The pictures are a {type(pictures).__name__}: give one of its {names:.200}.")
    several = hasattr(pictures, "__len__") and hasattr(pictures, "__getitem__")
    if not isinstance(pictures, (str, os.PathLike)) and (not several or isinstance(pictures, (bytes, Mapping))):
        raise ValueError(
            f"The pictures are a {type(pictures).__name__}: give a folder, a datasets.Dataset, or a list of paths or "
            "of PIL pictures."
        )
    if several and not len(pictures):
        raise ValueError("There is no picture: the list or dataset is empty.")
    return pictures


def _are_files(pictures: Pictures) -> bool:
    """Whether they are a folder or paths, rather than rows or pictures."""
    if isinstance(pictures, (str, os.PathLike)):
        return True
    if not isinstance(pictures, (list, tuple)):
        return False
    paths = [isinstance(picture, (str, os.PathLike)) for picture in pictures]
    if any(paths) and not all(paths):
        raise ValueError("Some of the pictures are paths and others are not: give all of them in the same way.")
    return any(paths)


def _source(pictures: Pictures) -> Files | Rows:
    """What pictures are read from."""
    is_folder = isinstance(pictures, (str, os.PathLike))
    return Files(pictures if is_folder else None) if _are_files(pictures) else Rows()


def _open_or_make(folder: Path, model: AlbefAlignedModel, source: Files | Rows) -> FeatureStore:
    """What there is of an index of these pictures; nothing yet where there is none."""
    root = None if source.root is None else seen_from(source.root, folder)
    if not (folder / MANIFEST).exists():
        return FeatureStore(folder, Manifest(_origin(model, folder) | {"weights": weights_digest(model)}, root))
    store = FeatureStore.open(folder)
    _require_weights(store, model)
    if store.root != source.root and not _is_moved(store, source):
        raise ValueError(
            f"{folder} holds an index of {store.root or 'a list or dataset'}, not of {source.root or 'one'}: name "
            "another folder for this one, or add the pictures to that one."
        )
    store.manifest.root = root
    if model.config.name_or_path:  # the same weights, but they may have moved
        store.manifest.model |= _origin(model, folder)
    return store


def _is_moved(store: FeatureStore, source: Files | Rows) -> bool:
    """Whether the folder of an index is not where it was, and another one holds a picture of it, as it was."""
    if store.root is None or source.root is None or store.root.exists():
        return False
    elsewhere = set(store.manifest.elsewhere)
    for name in (*store.manifest.shards, *store.manifest.parts):
        with contextlib.suppress(ValueError):  # a damaged one
            shard = store.read(name)
            stamps = zip(shard.keys, map(tuple, shard.stamps.tolist()), strict=True)
            if any(key not in elsewhere and source.stamp(key) == stamp for key, stamp in stamps):
                return True
    return False


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let no other process change the index meanwhile."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise ValueError(f"Another process is changing the index in {folder}: wait until it has ended.") from error


def load_model(name: str, revision: str | None, device: str | None) -> tuple[AlbefAlignedModel, AlbefProcessor]:
    """A model and its processor, from a folder or the Hub, by transformers' pipeline, which checks that they fit.

    No code of the folder is run: an index, maybe of somebody else, may have named it.
    """
    settings = {"revision": revision, "device": device, "trust_remote_code": False}
    found = pipeline("image-text-retrieval", model=name, **settings)
    return found.model, found.processor


def _load(options: argparse.Namespace) -> PictureIndex:
    """The index that a command is about, with the model that it was built with."""
    store = FeatureStore.open(options.index)
    if not (options.model or store.model_name):
        raise ValueError("The index does not say which model it was built with: give it with --model.")
    revision = options.revision or (None if options.model else store.manifest.model["revision"])
    model = load_model(options.model or store.model_name, revision, options.device)
    return PictureIndex.load(options.index, *model, options.folder)


def _build(options: argparse.Namespace) -> None:
    _whole("batch_size", options.batch_size, 1)
    if not options.folder.is_dir():
        raise ValueError(f"{options.folder} is not a folder.")
    model, processor = load_model(options.model, options.revision, options.device)
    settings = (options.index, options.factory, options.batch_size)
    _say(_told(PictureIndex.build(model, processor, options.folder, *settings)))


def _add(options: argparse.Namespace) -> None:
    _whole("batch_size", options.batch_size, 1)
    absent = [path for path in options.pictures if not path.exists()]
    if absent:
        raise ValueError(f"{absent[0]} does not exist.")
    index = _load(options)
    folders = [path for path in options.pictures if path.is_dir()]
    files = [path for path in options.pictures if path not in folders]
    added = sum(index.add(pictures, options.batch_size) for pictures in (*folders, *([files] if files else [])))
    _say(f"{added} added. {_told(index)}")


def _remove(options: argparse.Namespace) -> None:
    index = _load(options)
    index.remove(options.keys)
    _say(_told(index))


def _info(options: argparse.Namespace) -> None:
    index = _load(options)
    manifest = index.store.manifest
    size = sum(entry["bytes"] for entry in manifest.files.values())
    faults = [fault for name in manifest.files if (fault := index.store.deep_fault(name))]
    _say(_told(index))
    _say(f"of: {index.store.root or 'a list or dataset'}")
    _say(f"built with: {index.store.model_name}, revision {manifest.model['revision'] or 'unknown'}")
    _say(f"faiss: {manifest.built}; {size / 1e6:.1f} MB on the disk")
    _say(f"changes since: {index.changes()}")
    _say(f"damage: {'; '.join(faults) or 'none'}")


def _search(options: argparse.Namespace) -> None:
    if (options.query is None) == (options.picture is None):
        raise ValueError("Give a text to search for, or a picture with --picture.")
    settings = _checked_settings(options.k, options.rerank, options.itc_weight)
    query = options.query if options.picture is None else load_upright(options.picture)
    if options.picture is None:
        _require_words(query)
    if options.html:
        _require_place(options.html)
    index = _load(options)  # which takes a while: what is wrong without it has been told
    if changes := index.changes():
        remedy, root = "build it again, and it is", index.source.root
        if root is not None and not root.exists():
            remedy = "the folder has moved: say where it is with --folder, or build the index of it again"
        print(encodable(f"The index is not up to date: {changes}; {remedy}."), file=sys.stderr)
    hits = index.search(query, *settings)
    print("  score   match  cosine  picture")
    for hit in hits:
        match = "      -" if hit.match is None else f"{hit.match:7.4f}"
        _say(f"{hit.score:+7.3f} {match} {hit.similarity:+7.4f}  {hit.key}")
    if options.html or options.open:
        path = options.html or Path(tempfile.mkdtemp(), "results.html")
        path.write_text(_page(index, query, hits, options.itc_weight), encoding="utf-8")
        print(f"{path} shows them.")
        if options.open:
            webbrowser.open(path.absolute().as_uri())


def _require_place(path: Path) -> None:
    """Refuse a file that cannot be written, before there is anything to write."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        wrong = "is a folder" if path.is_dir() else f"cannot be written: there is no folder {path.parent}"
        raise ValueError(f"{path} {wrong}. Give --html a file in a folder that exists.")


def _page(index: PictureIndex, query: str | Image.Image, hits: Sequence[Hit], itc_weight: float) -> str:
    def results() -> Iterator[tuple[str, dict[str, str], Image.Image | None]]:
        for hit in progress(hits, "draw heat maps", leave=False):
            picture = None
            try:
                picture = index.picture(hit.key)
            except ValueError as error:
                logger.warning(error)
            scores = {} if hit.match is None else {"score": f"{hit.score:+.3f}", "match (ITM)": f"{hit.match:.1%}"}
            yield str(hit.key), scores | {"cosine (ITC)": f"{hit.similarity:+.3f}"}, picture

    name = index.store.model_name
    name = Path(name).name if name and Path(name).is_absolute() else name  # the page may be sent to others
    score = "cosine (ITC)"
    if any(hit.match is not None for hit in hits):
        score = "log-odds of a match (ITM)" + (f" + {itc_weight:g} × {score}" if itc_weight else "")
    about = f"The best {len(hits)} of {len(index):,} pictures, by {name}. Score: {score}"
    return results_page(query, results(), about, index.model, index.processor)


def _say(text: str) -> None:
    """Print a line, whatever the names in it are."""
    print(encodable(text).replace("\n", "\\n"))


def _told(index: PictureIndex) -> str:
    counts = f"; not readable: {index.broken_told()}" if index.broken else ""
    return f"{len(index):,} pictures are in {index.store.folder}{counts}"


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--index", type=Path, default=Path("pictures.index"), help="folder of the index (%(default)s)")
    shared.add_argument("--revision", help="of the model on the Hub: a tag, branch or commit")
    shared.add_argument("--device", help="such as cpu or cuda:0; by default what there is")
    other = argparse.ArgumentParser(add_help=False)
    other.add_argument("--folder", type=Path, help="where the folder that was indexed is now, if it has moved")
    other.add_argument("--model", help="where the model of the index is now, if it has moved")
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m albef_hf.search.index", description=__doc__, formatter_class=formatter)
    parser.set_defaults(interrupted="")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_command(name: str, do: Callable, about: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=f"{about.capitalize()}.", parents=parents)
        command.set_defaults(do=do)
        return command

    about = "index the pictures of a folder, go on with an index that was interrupted, or bring one up to date"
    build = add_command("build", _build, about, shared)
    build.add_argument("folder", type=Path, help="of the pictures, which is searched through")
    build.add_argument("--model", required=True, help="folder or Hub name of a pretraining or retrieval model")
    build.add_argument("--factory", help="faiss index_factory string; by default Flat, above a million IVF...,Flat")
    build.set_defaults(interrupted="; the same command goes on")

    search = add_command("search", _search, "find pictures by a text or by a picture", shared, other)
    search.add_argument("query", nargs="?", help="what to search for, a text, in quotation marks")
    search.add_argument("--picture", type=Path, help="what to search for, a picture")
    search.add_argument("-k", type=int, default=10, help="how many pictures to find (%(default)s)")
    search.add_argument(
        "--rerank", type=int, default=128, help="best pictures by cosine that are matched; 0: none (%(default)s)"
    )
    search.add_argument(
        "--itc-weight", type=float, default=0.0, help="weight of the cosine beside the log-odds (%(default)s)"
    )
    search.add_argument("--html", type=Path, help="file to write a page to, with pictures and a heat map of each word")
    search.add_argument("--open", action="store_true", help="show that page in a browser")

    add = add_command("add", _add, "index more pictures, also from elsewhere", shared, other)
    add.add_argument("pictures", type=Path, nargs="+", help="files and folders")
    for command in (build, add):
        command.add_argument("--batch-size", type=int, default=64, help="pictures encoded at a time (%(default)s)")

    remove = add_command("remove", _remove, "forget pictures; their files stay", shared, other)
    remove.add_argument("keys", nargs="+", help="as search names them")
    add_command("info", _info, "tell what is in the index, and whether it is whole", shared, other)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = _parser().parse_args(arguments)
    log_library_progress()
    try:
        options.do(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted{options.interrupted}")


if __name__ == "__main__":
    main()
