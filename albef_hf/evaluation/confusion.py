"""Draw which classes are taken for which."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..utils.files import atomic_write

NAMED_CLASSES = 40  # at most, whose names fit beside the figure
PRINTED_CLASSES = 20  # at most, whose shares fit into the cells


def plot_confusion(labels: Sequence[str], answers: Sequence[str], classes: Sequence[str], image: Path) -> None:
    """Draw the share of the rows of each class that get each answer.

    Args:
        labels: The right class of each row.
        answers: The predicted class of each row.
        classes: All classes, in order.
        image: The PNG to write.
    """
    from matplotlib.figure import Figure
    from sklearn.metrics import confusion_matrix

    shares = 100 * confusion_matrix(labels, answers, labels=list(classes), normalize="true")
    side = min(2.5 + 0.42 * len(classes), 16)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(drawn, shrink=0.7, label="rows of a class (%)")
    axes.set(xlabel="predicted class", ylabel="right class")
    if len(classes) <= NAMED_CLASSES:
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(classes)), classes)
    if len(classes) <= PRINTED_CLASSES:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.5:
                color = "white" if share > 55 else "black"
                axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=color, fontsize=9)
    with atomic_write(image) as unfinished:
        figure.savefig(unfinished, format="png", dpi=100)
