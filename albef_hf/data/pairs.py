"""Datasets of image-text pairs. Invalid pairs are skipped, counted by reason and replaced by others."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..processing_albef import clean_caption
from .augmentation import Augmentation
from .captions import valid_captions
from .image_states import ImageRecorder, ImageStates
from .images import load_image
from .row_errors import InvalidSampleError, SkipReason

if TYPE_CHECKING:
    import datasets

ATTEMPTS = 1000  # consecutive invalid pairs after which the whole data must be wrong


class PairReader:
    """Convert a row to a sample: pixels and a cleaned caption.

    A row has `image` (see `load_image`) and `caption`, a text or a list of texts from which one is drawn. It may also
    have `mirrored_caption`, which is true of the mirrored image.

    Args:
        augmentation: Converts an image to pixels.
        image_root: Folder that paths are relative to.
        max_words: Words of a caption that are kept.
        kept_tokens: Tokens that cleaning does not change; see `albef_hf.processing_albef.added_tokens`.
        image_states: States of a frozen image encoder, which take the place of pixels; nothing is augmented.
        keep_case: Clean only white space; the setting of the `AlbefProcessor`.
        replacements: The setting of the `AlbefProcessor`.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        image_root: str | None = None,
        max_words: int = 30,
        kept_tokens: Sequence[str] = (),
        image_states: ImageStates | ImageRecorder | None = None,
        keep_case: bool = False,
        replacements: dict[str, str] | None = None,
    ):
        self.augmentation = augmentation
        self.image_root = image_root
        self.max_words = max_words
        self.kept_tokens = kept_tokens
        self.image_states = image_states
        self.keep_case = keep_case
        self.replacements = replacements

    def __call__(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Read one row.

        Returns:
            `pixel_values` of 0 to 255, uint8, (3, height, width), which the `normalize` of the augmentation turns into
            a model's input, or states (1 + patches, width); `caption`, `seed` for the masking, `issues` (a list of
            `SkipReason`).

        Raises:
            InvalidSampleError: If the pair cannot be used.
        """
        captions = valid_captions(row["caption"])
        choice = int(rng.integers(len(captions)))
        if self.image_states:
            pixel_values = self.image_states.read(row["image"], self.image_root)
            flipped = False
        else:
            pixel_values, flipped = self.augmentation.augment(load_image(row["image"], self.image_root), rng)
        if flipped and row.get("mirrored_caption") is not None:
            captions = valid_captions(row["mirrored_caption"])
        settings = (self.kept_tokens, self.keep_case, self.replacements)
        whole_caption = clean_caption(captions[choice], 10**9, *settings)
        caption = clean_caption(captions[choice], self.max_words, *settings)
        issues = [SkipReason.CAPTION_CUT] if len(caption) < len(whole_caption) else []
        return {"pixel_values": pixel_values, "caption": caption, "seed": int(rng.integers(2**62)), "issues": issues}


class ImageTextPairs(torch.utils.data.Dataset):
    """Indexable pairs. A sample depends only on the seed, the epoch and its index.

    Args:
        rows: Dictionaries that can be indexed, such as a `datasets.Dataset`. The `read_ahead` of `Shards` is called
            before a row is read.
        reader: Converts a row to a sample.
        seed: Seed of augmentation, choice of caption and masking.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], reader: PairReader, seed: int = 0):
        self.rows = rows
        self.reader = reader
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change

    @property
    def epoch(self) -> int:
        """Return the epoch, in this process and in its workers."""
        return int(self._epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which changes the random choices; the data loader calls this."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the sample of a row; an invalid row is replaced by a random one.

        Replacing it here keeps the number of batches equal on all processes.

        Raises:
            ValueError: If 1,000 rows in a row are invalid.
        """
        rng = np.random.default_rng((self.seed, self.epoch, index))
        issues: list[SkipReason] = []
        if hasattr(self.rows, "read_ahead"):  # not for a replacement, whose neighbors are not read soon
            self.rows.read_ahead(index)
        while len(issues) < ATTEMPTS:
            try:
                sample = self.reader(self.rows[index], rng)
            except InvalidSampleError as error:
                issues.append(error.reason)
                index = int(rng.integers(len(self.rows)))
                last_error = error
            else:
                sample["issues"] += issues
                return sample
        raise _all_invalid(last_error)


class ImageTextStream(torch.utils.data.IterableDataset):
    """Pairs that can only be read in order. The stream is endless: it starts over when it is exhausted.

    Args:
        rows: A `datasets.IterableDataset`, already divided among the processes.
        reader: Converts a row to a sample.
        seed: Seed of augmentation, choice of caption and masking.
        rank: Index of this process, so that each process makes other random choices.
    """

    def __init__(self, rows: "datasets.IterableDataset", reader: PairReader, seed: int = 0, rank: int = 0):
        self.rows = rows
        self.reader = reader
        self.seed = seed
        self.rank = rank

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self.seed, self.rank, worker.id if worker else 0))
        issues: list[SkipReason] = []
        epoch = 0
        while True:
            self.rows.set_epoch(epoch)
            epoch += 1
            has_rows = False
            for row in self.rows:
                has_rows = True
                try:
                    sample = self.reader(row, rng)
                except InvalidSampleError as error:
                    issues.append(error.reason)
                    if len(issues) >= ATTEMPTS:
                        raise _all_invalid(error) from error
                else:
                    sample["issues"] += issues
                    issues = []
                    yield sample
            if not has_rows:  # there are more workers than shards, and none is left for this one
                return


def _all_invalid(last_error: InvalidSampleError) -> ValueError:
    return ValueError(
        f"{ATTEMPTS} pairs in a row cannot be used; the last one: {last_error}. "
        "Check the image root, and the columns or keys of image, text and label."
    )
