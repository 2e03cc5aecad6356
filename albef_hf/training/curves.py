"""Draw the curves of a run from its log."""

import json
import math
import re
from pathlib import Path

from ..utils.files import atomic_write
from .guards import MATCHING_PRIOR

COLUMNS = 3


def plot_curves(log: Path, image: Path) -> None:
    """Draw losses, temperature, gradient norm and metrics; without matplotlib, draw nothing.

    Args:
        log: A `log.jsonl`.
        image: The PNG to write.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    panels = {title: names for title, names in _panels(records).items() if names}
    columns = min(COLUMNS, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(4.4 * columns, 3.5 * rows), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels.items(), strict=False):
        for name in names:
            points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
        if names == ["loss_itm"]:
            axes.axhline(MATCHING_PRIOR, color="gray", linestyle="--", label="its prior")
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend(fontsize=8)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    with atomic_write(image) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _panels(records: list[dict[str, float]]) -> dict[str, list[str]]:
    """Return the names of the values in each panel."""
    # Records of the training have a loss; the others come from the evaluation.
    trained = {name for record in records if "loss" in record for name in record if record[name] is not None}
    measured = [name for record in records if "loss" not in record for name in record if record[name] is not None]
    metrics = [name for name in dict.fromkeys(measured) if not re.match(r"(step|seconds|rows_left_out)$|rows/", name)]
    parts = sorted(name for name in trained if name.startswith("loss_"))
    recalls = [name for name in metrics if name.endswith(("_r1", "_r10"))]
    others = [name for name in metrics if not re.search(r"_r\d+$", name)]
    return {
        "losses": parts or [name for name in ("loss",) if name in trained],
        "ITM: loss": [name for name in ("loss_itm",) if name in trained],
        "ITC: temperature": [name for name in ("temperature",) if name in trained],
        "ITC: bound on mutual information (nats)": [n for n in ("mutual_information_bound",) if n in trained],
        "distance of the teacher": [name for name in ("teacher_distance",) if name in trained],
        "gradient norm": [name for name in ("gradient_norm",) if name in trained],
        "learning rate": [name for name in ("learning_rate",) if name in trained and not recalls],
        "text retrieval, recall (%)": [name for name in recalls if "_text_" in name],
        "image retrieval, recall (%)": [name for name in recalls if "_image_" in name],
        "evaluation (%)": others,
    }
