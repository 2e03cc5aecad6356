"""Read how well people found that captions describe images, in the published form of Flickr8k."""

import csv
from pathlib import Path
from typing import Any

RATING_RANGE = (1, 4)  # from "does not describe the image at all" to "describes the image"


def read_flickr8k_ratings(ratings: str, captions: str) -> list[dict[str, Any]]:
    """Return rows of `image`, `text` and `rating`, a list of numbers, one of each expert.

    Args:
        ratings: `ExpertAnnotations.txt`: image, caption id and the experts' ratings from 1 to 4, separated by tabs. A
            caption id is the image that the caption was written for, and `#` with its number.
        captions: `Flickr8k.token.txt`: caption id and caption, separated by a tab.

    Returns:
        The rows whose caption was not written for their image, as in the evaluations of SPICE (arXiv 1607.08822) and
        CLIPScore (arXiv 2104.08718).

    Raises:
        ValueError: If a file cannot be read, or a caption is missing.
    """
    texts = {name: text for name, text in _read_columns(captions, "a caption id and a caption", 2, 2)}
    own = {(name.partition("#")[0], text) for name, text in texts.items()}
    rows = []
    for image, name, *experts in _read_columns(ratings, "an image, a caption id and ratings", 3, 20):
        if name not in texts:
            raise ValueError(
                f"{captions} has no caption {name!r}, which {ratings} rates; use the files of one release."
            )
        if (image, texts[name]) not in own:
            rows.append(
                {"image": image, "text": texts[name], "rating": [_rating(ratings, value) for value in experts]}
            )
    return rows


def _read_columns(file: str, names: str, least: int, most: int) -> list[list[str]]:
    try:
        with Path(file).open(encoding="utf-8-sig", newline="") as lines:
            rows = [row for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    for number, row in enumerate(rows, start=1):
        if not least <= len(row) <= most:
            raise ValueError(f"Line {number} of {file} has {len(row)} columns, but needs {names}, separated by tabs.")
    return [[part.strip() for part in row] for row in rows]


def _rating(file: str, value: str) -> int:
    if value not in map(str, range(RATING_RANGE[0], RATING_RANGE[1] + 1)):
        raise ValueError(f"{file} has the rating {value!r}; ratings are from {RATING_RANGE[0]} to {RATING_RANGE[1]}.")
    return int(value)
