"""Encode the images of a source; threads read the next batch while the model encodes one."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image

from ..data.row_errors import InvalidSampleError
from ..modeling_albef import AlbefImageTextModel
from ..processing_albef import AlbefProcessor
from ..retrieval_albef import TextFeatures, batches, encode_texts, evaluation_mode, match_reference_texts
from ..utils.progress import progress
from .image_sources import Fingerprint, ImageSource, Key

READERS = min(8, os.cpu_count() or 1)  # threads


@dataclass
class ReadImage:
    """An image that has been read.

    Args:
        key: Key of the image.
        fingerprint: Its fingerprint when it was read.
        pixel_values: (1, 3, height, width).
    """

    key: Key
    fingerprint: Fingerprint
    pixel_values: torch.Tensor


@dataclass
class UnreadableImage:
    """An image that cannot be read, and the reason."""

    key: Key
    error: InvalidSampleError


@dataclass
class EncodedBatch:
    """Features of a batch of images.

    Args:
        keys: Images that could be read.
        fingerprints: One for each of them.
        features: Unit features of them, (images, projection).
        references: Log-odds and cosines with the reference texts nearest to each, (images, texts, 2).
        unreadable: The other images.
    """

    keys: list[Key]
    fingerprints: list[Fingerprint]
    features: torch.Tensor
    references: torch.Tensor
    unreadable: list[UnreadableImage]


class FeatureEncoder:
    """Encode images in evaluation mode.

    Args:
        model: Has the image encoder and the joint space.
        processor: Its processor.
    """

    def __init__(self, model: AlbefImageTextModel, processor: AlbefProcessor):
        self.model = model
        self.processor = processor
        self.references: tuple[list[str], TextFeatures] | None = None  # encoded once for several additions

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Return the pixels of an image, (1, 3, height, width)."""
        return self.processor(images=[image], return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden states, (images, patches + 1, width), and unit features, (images, projection), of pixels."""
        with evaluation_mode(self.model):
            outputs = self.model.get_image_features(pixel_values.to(self.model.device), return_dict=True)
        return outputs.last_hidden_state, outputs.pooler_output.float().cpu()

    def read(
        self, source: ImageSource, keys: Sequence[Key], batch_size: int
    ) -> Iterator[list[ReadImage | UnreadableImage]]:
        """Read batches of images, one batch ahead of the caller."""

        def read_one(key: Key) -> ReadImage | UnreadableImage:
            try:
                fingerprint, image = source.read(key)
            except InvalidSampleError as error:
                return UnreadableImage(key, error)
            return ReadImage(key, fingerprint, self.preprocess(image))

        with ThreadPoolExecutor(READERS) as pool:
            submitted: list[Future[ReadImage | UnreadableImage]] = []
            try:
                for batch in (*batches(keys, batch_size), ()):
                    previous = submitted
                    submitted = [pool.submit(read_one, key) for key in batch]
                    if previous:
                        yield [future.result() for future in previous]
            finally:
                pool.shutdown(cancel_futures=True)

    def encode_references(self, texts: list[str], batch_size: int) -> TextFeatures:
        """Encode reference texts with a progress bar; the ones of before are kept."""

        def track(batches: Sequence[torch.Tensor]) -> Iterable[torch.Tensor]:
            return progress(batches, "encode reference texts", leave=False)

        if self.references is None or self.references[0] != texts:
            self.references = texts, encode_texts(self.model, self.processor, texts, batch_size, track)
        return self.references[1]

    @torch.no_grad()
    def match_references(
        self, hidden_states: torch.Tensor, features: torch.Tensor, references: TextFeatures
    ) -> torch.Tensor:
        """Match images with the reference texts nearest to them.

        Args:
            hidden_states: (images, patches + 1, width).
            features: Unit features, (images, projection).
            references: From `encode_texts`.

        Returns:
            Log-odds and cosines, (images, texts, 2), in float32.

        Raises:
            ValueError: If one is not finite.
        """
        embeds = features.to(references.embeds)
        with evaluation_mode(self.model):
            nearest = match_reference_texts(self.model, enumerate(hidden_states.split(1)), embeds, references)
        scores = torch.stack(nearest.features(), dim=-1).float()
        if not scores.isfinite().all():
            raise ValueError("Scores of reference texts are not finite: set dtype float32, or train the model again.")
        return scores

    def encode_images(
        self, source: ImageSource, keys: Sequence[Key], batch_size: int, reference_texts: list[str]
    ) -> Iterator[EncodedBatch]:
        """Read and encode images, and match them with reference texts, with a progress bar."""
        references = self.encode_references(reference_texts, batch_size) if keys and reference_texts else None
        with progress(total=len(keys), desc="encode images", unit="image", disable=not keys) as bar:
            for batch in self.read(source, keys, batch_size):
                readable = [image for image in batch if isinstance(image, ReadImage)]
                features = torch.zeros(0, self.model.config.projection_dim)
                nearest = torch.zeros(len(readable), 0, 2)
                if readable:
                    states, features = self.encode(torch.cat([image.pixel_values for image in readable]))
                    if references:
                        nearest = self.match_references(states, features, references)
                yield EncodedBatch(
                    keys=[image.key for image in readable],
                    fingerprints=[image.fingerprint for image in readable],
                    features=features,
                    references=nearest,
                    unreadable=[image for image in batch if isinstance(image, UnreadableImage)],
                )
                bar.update(len(batch))
