"""Accuracy of the predicted boxes of expressions; `grounding_eval` in the original's `dataset/utils.py`."""

import math
from collections.abc import Sequence

IOU_THRESHOLD = 0.5  # inclusive

Box = Sequence[float]  # left, top, width and height in pixels, as in COCO


def box_iou(first: Box, second: Box) -> float:
    """Compute the intersection over union of two boxes, like `computeIoU` in the original's `dataset/utils.py`.

    The original treats boxes as inclusive ranges of pixels. This cancels out in the areas, but has one effect, which
    this function reproduces: boxes that share at most one column or one row of pixels do not intersect, so that even
    equal boxes of one pixel have an IoU of 0.

    Args:
        first: Left, top, width and height in pixels.
        second: Likewise.

    Returns:
        0 to 1.

    Raises:
        ValueError: If a box is not four finite numbers, or its size is negative.
    """
    for box in (first, second):
        _check_box(box)
    width, height = (
        min(first[axis] + first[axis + 2], second[axis] + second[axis + 2]) - max(first[axis], second[axis])
        for axis in (0, 1)
    )
    if width <= 1 or height <= 1:
        return 0.0
    intersection = width * height
    return intersection / (first[2] * first[3] + second[2] * second[3] - intersection)


def grounding_accuracy(
    predictions: Sequence[Box],
    references: Sequence[Box],
    points: Sequence[Sequence[float]] | None = None,
    splits: Sequence[str] | None = None,
) -> dict[str, float | dict[str, dict[str, float]]]:
    """Compute the share of boxes with an IoU of at least 0.5 with the true ones, and of points inside the true boxes.

    Args:
        predictions: One box per expression: left, top, width and height in pixels.
        references: The true boxes, likewise.
        points: The hottest pixel of each expression, x and y. It is inside a box if left <= x < left + width and
            top <= y < top + height.
        splits: The split of each expression.

    Returns:
        `accuracy`; with points also `pointing`; with splits also `per_split`, from split to these; in percent.

    Raises:
        ValueError: If there is no expression, a box is not four finite numbers or its size is negative, a point is not
            two finite numbers, or lengths differ.
    """
    optional = {"points": points, "splits": splits}
    given = {name: values for name, values in optional.items() if values is not None}
    _check(predictions, {"references": references, **given})
    boxes = zip(predictions, references, strict=True)
    correct = {"accuracy": [box_iou(predicted, true) >= IOU_THRESHOLD for predicted, true in boxes]}
    if points is not None:
        correct["pointing"] = [_is_inside(point, box) for point, box in zip(points, references, strict=True)]
    results: dict[str, float | dict[str, dict[str, float]]] = {**_shares(correct, range(len(predictions)))}
    if splits is not None:
        members: dict[str, list[int]] = {}
        for index, split in enumerate(splits):
            members.setdefault(split, []).append(index)
        results["per_split"] = {split: _shares(correct, indices) for split, indices in members.items()}
    return results


def _shares(correct: dict[str, list[bool]], indices: Sequence[int]) -> dict[str, float]:
    """Return the share of correct values among some of them, in percent."""
    return {name: 100 * sum(values[index] for index in indices) / len(indices) for name, values in correct.items()}


def _is_inside(point: Sequence[float], box: Box) -> bool:
    if len(point) != 2 or not all(map(math.isfinite, point)):
        raise ValueError(f"A point is {point}: give x and y in pixels.")
    return all(box[axis] <= point[axis] < box[axis] + box[axis + 2] for axis in (0, 1))


def _check_box(box: Box) -> None:
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f"A box is {box}: give left, top, width and height in pixels.")
    if min(box[2], box[3]) < 0:
        raise ValueError(f"A box is {box}, of negative size: give left, top, width and height, not corners.")


def _check(predictions: Sequence[Box], others: dict[str, Sequence]) -> None:
    if len(predictions) == 0:
        raise ValueError("There is nothing to score: give the box of at least one expression.")
    for name, values in others.items():
        if len(values) != len(predictions):
            raise ValueError(
                f"{len(predictions)} predictions but {len(values)} {name}: give one of each for every "
                "expression, in the same order."
            )
