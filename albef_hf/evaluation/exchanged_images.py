"""Exchange images among the rows of an evaluation: what a model still reaches, it reaches without looking."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image


def fingerprints(images: Sequence[Image.Image]) -> frozenset[bytes]:
    """Return a hash of each image, which shows that rows have the same image under whatever name."""
    return frozenset(
        hashlib.blake2b(image.tobytes(), digest_size=16, salt=b"%dx%d" % image.size).digest() for image in images
    )


def exchange(images: Mapping[int, frozenset[bytes]], seed: int) -> dict[int, int]:
    """Assign to each row the images of another row.

    No row is shown an image of its own. The images of each row are shown once, unless one image belongs to more than
    half of the rows; then some are shown several times.

    Args:
        images: Hashes of the images of each row, by row index.
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
        rows: Provide everything but images; rows of a dataset should have no image columns, which are slow to read.
        image_rows: Provide the images.
        columns: Columns of the image and of what belongs to it.
        givers: From `exchange`.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        image_rows: Sequence[Mapping[str, Any]],
        columns: Sequence[str],
        givers: Mapping[int, int],
    ):
        self.rows = rows
        self.image_rows = image_rows
        self.columns = columns
        self.givers = givers

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: Any) -> Any:
        own = self.rows[row]
        other = self.image_rows[self.givers[row]]
        kept = {name: value for name, value in own.items() if name not in self.columns}
        return kept | {name: other[name] for name in self.columns if name in other}
