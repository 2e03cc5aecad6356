"""Draw which classes are taken for which."""

from collections.abc import Sequence
from pathlib import Path

from ..utils.files import atomic_write

NAMED_CLASSES = 40  # at most, whose names fit beside the figure


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

    shares = confusion_matrix(labels, answers, labels=list(classes), normalize="true")
    side = min(2.5 + 0.35 * len(classes), 16)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(drawn, shrink=0.7, label="share of the rows of a class")
    axes.set(xlabel="answer", ylabel="label")
    if len(classes) <= NAMED_CLASSES:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
    with atomic_write(image) as unfinished:
        figure.savefig(unfinished, format="png", dpi=100)
