"""Score the candidates of a search with the matching head (ITM), which reads image and text together."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import torch
from transformers.utils import logging

from ..calibration_albef import matching_log_odds
from ..retrieval_albef import MAX_CACHED_VALUES, TextFeatures, batches, evaluation_mode, match_images
from .encoder import FeatureEncoder, ReadImage, UnreadableImage
from .image_sources import Fingerprint, ImageRows, ImageSource, Key

logger = logging.get_logger(f"transformers.{__name__}")

BATCH_SIZE = 16  # candidates, whose keys and values in all layers are large


class Reranker:
    """Match candidates with a text; several threads may do so.

    Args:
        encoder: Encodes candidates that are not cached.

    Attributes:
        cache: LRU cache of the hidden states of recently reranked images, with the fingerprints that they had when
            they were encoded. It holds at most `MAX_CACHED_VALUES` numbers.
    """

    def __init__(self, encoder: FeatureEncoder):
        self.encoder = encoder
        self.cache: OrderedDict[Key, tuple[Fingerprint, torch.Tensor]] = OrderedDict()
        self.lock = threading.Lock()

    def match(
        self,
        keys: Sequence[Key],
        text: TextFeatures,
        source: ImageSource,
        recorded: Mapping[Key, Fingerprint],
    ) -> dict[Key, float]:
        """Return the log-odds of a match for the candidates that can be read.

        Args:
            keys: Keys of the candidates.
            text: From `encode_texts`, one text.
            source: Where the images are read from.
            recorded: Fingerprints of the images in the index.

        Raises:
            ValueError: If a row is not the image that was indexed.
        """
        scores: dict[Key, float] = {}
        for batch, states in self._hidden_states(keys, source, recorded):
            with evaluation_mode(self.encoder.model):
                log_odds = matching_log_odds(match_images(self.encoder.model, states, text))
            scores.update(zip(batch, log_odds.tolist(), strict=True))
        return scores

    def drop_changed(self, current: Mapping[Key, Fingerprint | None]) -> None:
        """Remove images from the cache that have another fingerprint now."""
        with self.lock:
            for key, fingerprint in current.items():
                if key in self.cache and self.cache[key][0] != fingerprint:
                    del self.cache[key]

    def clear(self) -> None:
        """Empty the cache."""
        with self.lock:
            self.cache.clear()

    def _hidden_states(
        self, keys: Sequence[Key], source: ImageSource, recorded: Mapping[Key, Fingerprint]
    ) -> Iterator[tuple[list[Key], torch.Tensor]]:
        """Yield keys and hidden states, (images, patches + 1, width), of batches of candidates; first cached ones."""
        with self.lock:
            cached = {key: self.cache[key][1] for key in keys if key in self.cache}
            for key in cached:
                self.cache.move_to_end(key)
        for batch in batches(list(cached), BATCH_SIZE):
            yield list(batch), torch.cat([cached[key] for key in batch])
        others = [key for key in keys if key not in cached]
        for images in self.encoder.read(source, others, BATCH_SIZE):
            readable = []
            for image in images:
                if isinstance(source, ImageRows):
                    _require_same_row(image, recorded)
                if isinstance(image, UnreadableImage):
                    logger.warning_once(f"{image.key} cannot be read any more and is skipped: {image.error}.")
                else:
                    readable.append(image)
            if readable:
                states = self.encoder.encode(torch.cat([image.pixel_values for image in readable]))[0]
                self._store(readable, states)
                yield [image.key for image in readable], states

    def _store(self, images: Sequence[ReadImage], states: torch.Tensor) -> None:
        """Put hidden states into the cache and remove those that were used least recently."""
        with self.lock:
            for image, one in zip(images, states.split(1), strict=True):
                self.cache[image.key] = image.fingerprint, one.to("cpu", copy=True)  # a copy can be freed by itself
            while len(self.cache) * states[0].numel() > MAX_CACHED_VALUES:
                self.cache.popitem(last=False)


def _require_same_row(image: ReadImage | UnreadableImage, recorded: Mapping[Key, Fingerprint]) -> None:
    if isinstance(image, UnreadableImage) or image.fingerprint != recorded[image.key]:
        raise ValueError(f"Row {image.key} is missing or not the image that was indexed. {ImageRows.remedy}")
