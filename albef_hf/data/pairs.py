"""Datasets of image-text pairs that survive bad ones: each is skipped, counted by reason and replaced."""

import enum
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..images_albef import ImageTooLargeError, read_image
from ..processing_albef import clean_caption
from .augmentation import Augmentation
from .row_values import (
    TEXT_KEYS,
    address_problem,
    decode_base64_image,
    flatten_texts,
    is_address,
    unknown_keys,
)

ATTEMPTS = 1000  # unreadable pairs in a row after which the data, not the pair, is at fault
LONGEST_DETAIL = 300  # characters


class Issue(enum.IntEnum):
    """What can be wrong with a pair, or another row. All but the last one skip it."""

    IMAGE_MISSING = 0
    IMAGE_OUTSIDE_ROOT = 1
    IMAGE_BROKEN = 2
    IMAGE_TOO_LARGE = 3
    CAPTION_EMPTY = 4
    LABEL_UNKNOWN = 5
    SHARD_DAMAGED = 6
    CAPTION_CUT = 7


class BadSampleError(ValueError):
    """A pair that cannot be used, and why."""

    def __init__(self, issue: Issue, detail: str):
        detail = detail if len(detail) <= LONGEST_DETAIL else f"{detail[:LONGEST_DETAIL]}..."  # an image as base64
        super().__init__(issue, detail)  # both, so that processes can tell each other
        self.issue, self.detail = issue, detail

    def __str__(self) -> str:
        return f"{self.issue.name.lower()}: {self.detail}"


def resolve_path(path: str, image_root: str | None) -> Path:
    """The file of a picture; with an image root, nothing outside of it is ever read."""
    if image_root is None:
        return Path(path)
    root = Path(image_root).resolve()
    try:
        resolved = (root / path).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # NUL bytes, lone surrogates, links in a circle
        raise BadSampleError(Issue.IMAGE_MISSING, repr(path)[:100]) from error
    if not resolved.is_relative_to(root):
        raise BadSampleError(Issue.IMAGE_OUTSIDE_ROOT, path)
    return resolved


def image_file(value: Any, image_root: str | None = None) -> Path | io.BytesIO:
    """Where a picture that is not decoded yet can be read; see `load_image`."""
    content = value.get("bytes") if isinstance(value, Mapping) else None
    path = value.get("path") if isinstance(value, Mapping) else value
    content = path if content is None else content
    if isinstance(content, (str, bytes)):
        try:
            decoded = decode_base64_image(content)
        except ValueError as error:
            raise BadSampleError(Issue.IMAGE_BROKEN, str(error)) from error
        if decoded is not None or isinstance(content, bytes):
            return io.BytesIO(content if decoded is None else decoded)
    if is_address(path):
        raise BadSampleError(Issue.IMAGE_MISSING, address_problem(path))
    if isinstance(value, Mapping) and not {"path", "bytes"} & {*value}:
        raise BadSampleError(Issue.IMAGE_MISSING, unknown_keys(value, ("path", "bytes")))
    if not isinstance(path, (str, os.PathLike)):
        raise BadSampleError(Issue.IMAGE_MISSING, repr(value)[:100])
    return resolve_path(os.fspath(path), image_root)


def load_image(value: Any, image_root: str | None = None) -> Image.Image:
    """Read a picture as RGB; see `read_image`, which this names the reasons of.

    Args:
        value: A path, a Pillow image, an encoded picture as bytes, or the `{"bytes": ..., "path": ...}` of an
            undecoded `datasets.Image`.
        image_root: Folder that paths are relative to.

    Raises:
        BadSampleError: If the file is missing, outside the root, broken, or larger than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    return _read(value, image_root, exif_transpose=False)


def load_upright(value: Any, image_root: str | None = None) -> Image.Image:
    """As `load_image`, turned as the camera says in EXIF that it was held; EXIF that makes no sense turns nothing."""
    return _read(value, image_root, exif_transpose=True)


def _read(value: Any, image_root: str | None, exif_transpose: bool) -> Image.Image:
    named = value.get("path") if isinstance(value, Mapping) else value
    name = "encoded" if isinstance(named, bytes) or named is None else named
    source = value if isinstance(value, Image.Image) else image_file(value, image_root)
    try:
        return read_image(source, exif_transpose)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise BadSampleError(Issue.IMAGE_MISSING, str(name)) from error
    except ImageTooLargeError as error:
        raise BadSampleError(Issue.IMAGE_TOO_LARGE, f"{name}: {error}") from error
    except Exception as error:  # a decoder fed with garbage raises whatever it likes
        raise BadSampleError(Issue.IMAGE_BROKEN, f"{name}: {error}") from error


def brief(value: Any) -> str:
    """Return the beginning of what a value looks like."""
    try:
        return repr(value)[:100]
    except RecursionError:  # of lists in lists in lists
        return f"a {type(value).__name__} that is nested too deep"


def usable_captions(captions: Any) -> list[str]:
    """Return the texts of a row that are not blank; see `flatten_texts` for the forms in which a row may hold them.

    Raises:
        BadSampleError: If there is none.
    """
    texts = flatten_texts(captions)
    usable = [text for text in texts if isinstance(text, str) and says_something(text)]
    if not usable:
        unknown = next((text for text in texts if isinstance(text, Mapping)), None)
        detail = brief(captions) if unknown is None else unknown_keys(unknown, TEXT_KEYS)
        raise BadSampleError(Issue.CAPTION_EMPTY, detail)
    return usable


def usable_text(text: Any) -> str:
    """Return the one text of a row; see `usable_captions`.

    Raises:
        BadSampleError: If there is none, or more than one.
    """
    usable = usable_captions(text)
    if len(usable) > 1:
        raise BadSampleError(Issue.CAPTION_EMPTY, f"{brief(text)} are several texts instead of one")
    return usable[0]


def says_something(text: str) -> bool:
    """Whether anything is left of a text that could be read."""
    return any(character.isprintable() and not character.isspace() for character in clean_caption(text))


class PairReader:
    """Reads a row into a sample: pixels, a cleaned caption, and what was wrong on the way.

    A row has `image` (see `load_image`) and `caption`, a text or a list of texts of which one is drawn. It may have
    `mirrored_caption` too: what is true of the picture with left and right swapped.

    Args:
        augmentation: Makes pixels of a picture.
        image_root: Folder that paths are relative to.
        max_words: Words of a caption that are kept.
        kept_tokens: Tokens that cleaning leaves as they are; see `albef_hf.processing_albef.added_tokens`.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        image_root: str | None = None,
        max_words: int = 30,
        kept_tokens: Sequence[str] = (),
    ):
        self.augmentation, self.image_root = augmentation, image_root
        self.max_words, self.kept_tokens = max_words, kept_tokens

    def __call__(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Read one row.

        Returns:
            `pixel_values` (3, height, width), `caption`, `seed` for the masking, `issues` (a list).

        Raises:
            BadSampleError: If the pair cannot be used.
        """
        captions = usable_captions(row["caption"])
        choice = int(rng.integers(len(captions)))
        pixel_values, flipped = self.augmentation(load_image(row["image"], self.image_root), rng)
        if flipped and row.get("mirrored_caption") is not None:
            captions = usable_captions(row["mirrored_caption"])
        whole = clean_caption(captions[choice], 10**9, self.kept_tokens)
        caption = clean_caption(captions[choice], self.max_words, self.kept_tokens)
        issues = [Issue.CAPTION_CUT] if len(caption) < len(whole) else []
        return {"pixel_values": pixel_values, "caption": caption, "seed": int(rng.integers(2**62)), "issues": issues}


class ImageTextPairs(torch.utils.data.Dataset):
    """Pairs that can be indexed; what a sample looks like depends on seed, epoch and index alone.

    Args:
        rows: Anything with a length whose items are dictionaries, such as a `datasets.Dataset`. `Shards` are told what
            is read next.
        reader: Turns a row into a sample.
        seed: Seed of augmentation, choice of caption and masking.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], reader: PairReader, seed: int = 0):
        self.rows, self.reader, self.seed, self.epoch = rows, reader, seed, 0

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Change the random choices; called by the data loader."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample of a row, or of another one, drawn at random, where the row is bad.

        Replacing bad pairs on the spot keeps all processes at the same number of batches.

        Raises:
            ValueError: If a thousand rows in a row are bad.
        """
        rng = np.random.default_rng((self.seed, self.epoch, index))
        issues: list[Issue] = []
        if hasattr(self.rows, "read_ahead"):  # not for another one, whose neighbours nobody will ask for
            self.rows.read_ahead(index)
        for _ in range(ATTEMPTS):
            try:
                sample = self.reader(self.rows[index], rng)
            except BadSampleError as error:
                issues.append(error.issue)
                index = int(rng.integers(len(self.rows)))
                last = error
            else:
                sample["issues"] += issues
                return sample
        raise _unreadable(last)


class ImageTextStream(torch.utils.data.IterableDataset):
    """Pairs that can only be read in order, without end: a stream starts over when it is exhausted.

    Args:
        rows: A `datasets.IterableDataset`, already split between processes.
        reader: Turns a row into a sample.
        seed: Seed of augmentation, choice of caption and masking.
        process: Number of this process, so that each makes its own random choices.
    """

    def __init__(self, rows, reader: PairReader, seed: int = 0, process: int = 0):
        self.rows, self.reader, self.seed, self.process = rows, reader, seed, process

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self.seed, self.process, worker.id if worker else 0))
        issues: list[Issue] = []
        epoch = 0
        while True:
            self.rows.set_epoch(epoch)
            epoch, rows_seen = epoch + 1, 0
            for row in self.rows:
                rows_seen += 1
                try:
                    sample = self.reader(row, rng)
                except BadSampleError as error:
                    issues.append(error.issue)
                    if len(issues) >= ATTEMPTS:
                        raise _unreadable(error) from error
                else:
                    sample["issues"] += issues
                    issues = []
                    yield sample
            if rows_seen == 0:  # more workers than shards: this one has nothing to read
                return


def _unreadable(last: BadSampleError) -> ValueError:
    return ValueError(
        f"{ATTEMPTS} pairs in a row could not be used; the last one: {last}. "
        "Check the image root, and the columns or keys that hold picture, text and label."
    )
