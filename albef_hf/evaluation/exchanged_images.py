"""Exchange images among the rows of an evaluation: what a model reaches then, it reaches without looking."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image


def fingerprints(images: Sequence[Image.Image]) -> frozenset[bytes]:
    """Return a digest of each image, to tell which rows show the same one under whatever name."""
    return frozenset(
        hashlib.blake2b(image.tobytes(), digest_size=16, salt=b"%dx%d" % image.size).digest() for image in images
    )


def exchange(images: Mapping[int, frozenset[bytes]], seed: int) -> dict[int, int]:
    """Draw for each row another one, whose images it is to be shown.

    No row is shown an image that it has. The images of each row are shown once, unless one image belongs to more than
    half of the rows; then some are shown several times.

    Args:
        images: Digests of the images of each row, by its number.
        seed: Another seed gives another exchange.

    Returns:
        The row that each row gets its images from. A row that shares an image with all others is missing.
    """
    rng = np.random.default_rng(seed)
    givers = dict(zip(images, rng.permutation([*images]).tolist(), strict=True))
    for row in images if len({*images.values()}) > 1 else ():
        if images[row].isdisjoint(images[givers[row]]):
            continue
        others = rng.permutation([*images]).tolist()
        for other in others:
            mine, its = givers[other], givers[row]
            if images[row].isdisjoint(images[mine]) and images[other].isdisjoint(images[its]):
                givers[row], givers[other] = mine, its
                break
        else:
            givers[row] = next((other for other in others if images[row].isdisjoint(images[other])), row)
    return {row: giver for row, giver in givers.items() if images[row].isdisjoint(images[giver])}


class ExchangedRows(Sequence):
    """Rows with the images of others.

    Args:
        rows: Supply everything but images; those of a dataset should be without images, which cost time to read.
        image_rows: Supply the images.
        columns: Say which image it is, or belong to it.
        givers: From `exchange`.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        image_rows: Sequence[Mapping[str, Any]],
        columns: Sequence[str],
        givers: Mapping[int, int],
    ):
        self.rows, self.image_rows, self.columns, self.givers = rows, image_rows, columns, givers

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        own, other = self.rows[row], self.image_rows[self.givers[row]]
        kept = {name: value for name, value in own.items() if name not in self.columns}
        return kept | {name: other[name] for name in self.columns if name in other}
