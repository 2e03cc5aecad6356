"""Choices between a right and wrong captions of an image, in the forms in which benchmarks publish them.

SugarCrepe (arXiv 2306.14610): an object of rows by id, a file for each category. ARO (2210.01936): a list of rows,
each about a box of its image. VL-CheckList (2207.00221): a list of image and `{"POS": texts, "NEG": texts}`.
Winoground (2204.03162): two images, each with its caption, which is wrong for the other image.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from .annotations import read_json
from .captions import valid_captions, valid_text
from .images import load_image
from .row_errors import InvalidSampleError, SkipReason

# What a row has, under the names of the benchmarks; two names are those of two images and their captions.
IMAGE = (("image",), ("filename",), ("image_path",), ("image_0", "image_1"))
CAPTION = (("caption",), ("true_caption",), ("caption_0", "caption_1"))
WRONG = (("wrong_caption",), ("negative_caption",), ("false_caption",))
CATEGORY = (("category",), ("relation_name",), ("collapsed_tag",))
BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
IMAGE_NAMES = (*(name for names in IMAGE for name in names), *BOX)
NAMES = (*IMAGE_NAMES, *(name for part in (CAPTION, WRONG, CATEGORY) for names in part for name in names))


class PairChoice(NamedTuple):
    """The images of a row, one or two, and its captions, those of the images first."""

    images: list[Image.Image]
    captions: list[str]
    category: str


def read_pair_choices(files: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of JSON files in any of the forms; those without a category have the name of their file.

    Files of equal names have that of their folder before it.

    Raises:
        ValueError: If a file has another form, or some rows have one image and others two.
    """
    stems = [Path(file).stem for file in files]
    rows = []
    for file, stem in zip(files, stems, strict=True):
        is_unique = stems.count(stem) == 1
        rows += _read_file(file, stem if is_unique else f"{Path(file).absolute().parent.name}/{stem}")
    if len({len(_find(row, IMAGE)) for row in rows}) > 1:
        raise ValueError(f"{', '.join(files)} have rows with one image and rows with two: evaluate them separately.")
    return rows


def _read_file(file: str, category: str) -> list[dict[str, Any]]:
    content = read_json(file)
    rows = [*content.values()] if isinstance(content, dict) else content
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file} contains no list of choices, and no object of them.")
    if all(isinstance(row, list) and len(row) == 2 and isinstance(row[1], dict) for row in rows):
        rows = [row for image, texts in rows for row in _checklist_rows(file, image, texts)]
    named = []
    for row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"A choice in {file} is {row!r:.60}: it must be an object with image and captions.")
        require_names(row, file)
        named.append(row if _find(row, CATEGORY) else {**row, "category": category})
    return named


def require_names(names: Collection[str], source: str) -> None:
    """Raise a `ValueError` if image, caption or wrong caption is missing."""
    image = _find(names, IMAGE)
    for part, known in (("image", IMAGE), ("caption", CAPTION), ("wrong caption", WRONG)):
        if not _find(names, known) and (part != "wrong caption" or len(image) == 1):
            choices = ", or ".join(" and ".join(names) for names in known)
            raise ValueError(f"{source} has {', '.join(sorted(names))}, but no {part}: it must be called {choices}.")


def captions_of(row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the captions of a row, one for each image, and the wrong ones, which two images do not need.

    Raises:
        InvalidSampleError: If there is none.
    """
    wrong = _find(row, WRONG)
    captions = [valid_text(caption) for caption in _values(row, CAPTION)]
    return captions, valid_captions(row[wrong[0]]) if wrong and row[wrong[0]] is not None else []


def load_pair_choice(row: Mapping[str, Any], image_root: str | None = None) -> PairChoice:
    """Load a row; an image with a box is cropped to it, as in ARO's own code.

    Raises:
        InvalidSampleError: If an image or a caption cannot be used, or their numbers do not fit.
    """
    images = [load_image(image, image_root) for image in _values(row, IMAGE)]
    captions, wrong = captions_of(row)
    if len(images) != len(captions) or (len(images) == 1) != bool(wrong):
        found = f"{len(images)} images with {len(captions)} captions and {len(wrong)} wrong ones"
        needed = "an image needs a caption and wrong ones, two images need two captions"
        raise InvalidSampleError(SkipReason.CAPTION_EMPTY, f"{found}: {needed}")
    if {*BOX} <= {*row} and None not in (box := [row[name] for name in BOX]):
        images = [_crop(image, box) for image in images]
    category = _values(row, CATEGORY)
    return PairChoice(images, captions + wrong, str(category[0]) if category else "")


def _crop(image: Image.Image, box: Sequence[Any]) -> Image.Image:
    try:
        left, top, width, height = map(float, box)
        cropped = image.crop((left, top, left + width, top + height))
    except (TypeError, ValueError) as error:
        raise InvalidSampleError(SkipReason.IMAGE_BROKEN, f"box {box}: {error}") from error
    if 0 in cropped.size:
        raise InvalidSampleError(SkipReason.IMAGE_BROKEN, f"box {box} is empty")
    return cropped


def _checklist_rows(file: str, image: Any, texts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each pair of a right and a wrong text of VL-CheckList."""
    right, wrong = texts.get("POS"), texts.get("NEG")
    if not isinstance(right, list) or not isinstance(wrong, list) or len(right) != len(wrong):
        raise ValueError(f"A choice in {file} has {texts!r:.60}: POS and NEG must be lists of equal length.")
    return [{"image": image, "caption": pos, "wrong_caption": neg} for pos, neg in zip(right, wrong, strict=True)]


def _find(names: Collection[str], known: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """Return the first known names that are all there."""
    return next((choice for choice in known if {*choice} <= {*names}), ())


def _values(row: Mapping[str, Any], known: tuple[tuple[str, ...], ...]) -> list[Any]:
    return [row[name] for name in _find(row, known)]
