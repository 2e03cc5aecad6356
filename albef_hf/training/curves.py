"""Draw the curves of a run from its log."""

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.files import atomic_write
from .guards import MATCHING_PRIOR

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
MAX_LINES = 8  # of a panel; `log.jsonl` has the rest
RECALL_COLORS = {"itc": "tab:blue", "itm": "tab:orange"}


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
        _draw_panel(axes, title, names, records)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    with atomic_write(image) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _draw_panel(axes: "Axes", title: str, names: list[str], records: list[dict[str, float]]) -> None:
    """Draw values against steps, with the same steps in all panels."""
    for name in names:
        points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
        style = "--" if name.endswith("_r10") else "-"
        color = RECALL_COLORS.get(re.sub(r"_(text|image)_r\d+$", "", name))
        marker = "o" if len(points) < 30 else None
        line: dict[str, Any] = {"linestyle": style, "color": color, "marker": marker, "markersize": 4}
        axes.plot(*zip(*points, strict=True), label=_label(name), **line)
    if names == ["loss_itm"]:
        axes.axhline(MATCHING_PRIOR, color="gray", linestyle="--", label="prior: one in three matches")
    name, unit = re.fullmatch(r"(.*?)(?: \((.*)\))?", title).groups()  # type: ignore[union-attr]  # always matches
    last = max(1, *(record["step"] for record in records))
    axes.set(title=name, xlabel="step", ylabel=unit or "", xlim=(0, 1.02 * last))
    axes.margins(y=0.15)
    if unit == "%" and axes.dataLim.y0 >= 0:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if len(axes.lines) > 1:
        axes.legend(fontsize=9)


def _label(name: str) -> str:
    """Return what the legend calls a value of the log, such as "ITC, R@1" for `itc_text_r1`."""
    if loss := re.fullmatch(r"loss_(itc|itm|mlm)", name):
        return loss[1].upper()
    if recall := re.fullmatch(r"(itc|itm)_(?:text|image)_r(\d+)", name):
        return f"{recall[1].upper()}, R@{recall[2]}"
    return name.rpartition("/")[2].replace("_", " ")


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
        "losses (nats)": parts,
        "loss (mean of the batches)": [name for name in ("loss",) if name in trained and not parts],
        "ITM: loss (nats)": [name for name in ("loss_itm",) if name in trained],
        "ITC (temperature)": [name for name in ("temperature",) if name in trained],
        "ITC: bound on mutual information (nats)": [n for n in ("mutual_information_bound",) if n in trained],
        "teacher (relative distance from the student)": [n for n in ("teacher_distance",) if n in trained],
        "gradient (norm)": [name for name in ("gradient_norm",) if name in trained],
        "AdamW (learning rate)": [n for n in ("learning_rate",) if n in trained and not recalls],
        "texts of an image: recall (%)": [name for name in recalls if "_text_" in name],
        "images of a text: recall (%)": [name for name in recalls if "_image_" in name],
        "evaluation (%)": [name for name in others if "/" not in name],
        **_by_kind([name for name in others if "/" in name]),
    }


def _by_kind(names: list[str]) -> dict[str, list[str]]:
    """Return a panel for each metric that is measured by kind, such as `accuracy/color`, of the first kinds."""
    panels = {}
    for metric in dict.fromkeys(name.partition("/")[0] for name in names):
        kinds = [name for name in names if name.partition("/")[0] == metric]
        count = f", {MAX_LINES} of {len(kinds)}" if len(kinds) > MAX_LINES else ""
        panels[f"{metric.replace('_', ' ')} by kind{count} (%)"] = kinds[:MAX_LINES]
    return panels
