"""The references of a retrieval: other images and their captions, by which its scores are normalized."""

from collections import Counter
from collections.abc import Sequence

from PIL import Image

from ..data import EvaluationImages
from ..utils.progress import progress
from .exchanged_images import fingerprints


class References(Sequence):
    """Images that are not evaluated, with captions.

    Args:
        found: The images that could be read.
        evaluated: The images to evaluate; the same ones are left out of the references, whatever they are named.

    Raises:
        ValueError: If no image is left.
    """

    def __init__(self, found: EvaluationImages, evaluated: Sequence[Image.Image]):
        same = frozenset().union(
            *(fingerprints([image]) for image in progress(evaluated, "compare images", leave=False))
        )
        self.found = found
        self.kept = [
            index
            for index, image in enumerate(progress(found, "compare references", leave=False))
            if same.isdisjoint(fingerprints([image]))
        ]
        self.captions = [found.captions[index] for index in self.kept]
        if not self.kept:
            raise ValueError(f"reference_files: there is no image to use ({self.describe()}). Check image_root.")

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]  # slices are not supported
        return self.found[self.kept[index]]

    def describe(self) -> str:
        """Return how many there are, and how many were left out and why."""
        reasons = Counter(error.reason.name.lower() for error in self.found.bad_rows.values())
        reasons["evaluated, too"] = len(self.found) - len(self.kept)
        left_out = "".join(f", {count} left out ({reason})" for reason, count in reasons.items() if count)
        return f"{len(self):,} images and {sum(map(len, self.captions)):,} texts{left_out}"
