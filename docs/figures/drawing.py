"""What the figures of the documents share: colors, boxes, arrows, and files that look the same everywhere."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE = FOLDER = Path(__file__).parent  # FOLDER: where figures are written
WIDTH = 700  # pixels, the width of a page's text; diagrams have a unit for each
PIXELS_PER_INCH = 96
INK = "#1f2933"
GRAY = "#5b6673"
RULE = "#c6ccd3"
BLUE = "#2563ab"
GREEN = "#2e8b57"
PURPLE = "#7a4fb3"
ORANGE = "#c76a14"
RED = "#b83a3a"
FILLS = {BLUE: "#e3eefa", GREEN: "#e2f3e9", PURPLE: "#ede5f8", ORANGE: "#fcebd9", RED: "#fae3e3", GRAY: "#f1f3f5"}

matplotlib.rcParams |= {
    "svg.fonttype": "path",  # letters as shapes: no font is needed
    "svg.hashsalt": "albef_hf",  # the same ids in each run
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRAY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e7eaee",
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "legend.frameon": False,
    "lines.linewidth": 2,
}


def make_figure(height: int, **settings: object) -> Figure:
    """Return an empty figure as wide as a page.

    Args:
        height: Pixels.
        settings: Of `Figure`.
    """
    size = (WIDTH / PIXELS_PER_INCH, height / PIXELS_PER_INCH)
    return Figure(figsize=size, dpi=PIXELS_PER_INCH, facecolor="white", **settings)


def make_canvas(height: int) -> Axes:
    """Return empty axes whose units are pixels, from the lower left corner."""
    axes = make_figure(height).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, height))
    axes.set_axis_off()
    return axes


def save(figure: Figure, name: str) -> None:
    """Write a figure as `NAME.svg`, on white, so that it can be read on dark pages too."""
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None, "Creator": None})


def draw_box(
    axes: Axes,
    left: float,
    bottom: float,
    width: float,
    height: float,
    title: str = "",
    note: str = "",
    color: str = GRAY,
    **settings: object,
) -> None:
    """Draw a rounded box with a bold title and a note below it.

    Args:
        axes: What `make_canvas` returns.
        left: Left edge.
        bottom: Lower edge.
        width: From edge to edge.
        height: From edge to edge.
        title: First lines, in bold type.
        note: Lines below the title.
        color: Of edge and title; `FILLS` has that of the inside.
        settings: Of the patch.
    """
    style = {"facecolor": FILLS[color], "edgecolor": color, "linewidth": 1.3, "zorder": 2} | settings
    shape = f"round,pad=0,rounding_size={min(7, height / 3)}"
    axes.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle=shape, **style))
    middle, lines = bottom + height / 2, note.count("\n") + 1
    above = 8 * lines if note else 0
    center = left + width / 2
    axes.text(center, middle + above, title, ha="center", va="center", weight="bold", color=color, size=10.5, zorder=4)
    below = 7 * (title.count("\n") + 1) if title else 0
    axes.text(center, middle - below, note, ha="center", va="center_baseline", size=8.6, linespacing=1.35, zorder=4)


def draw_arrow(axes: Axes, *points: tuple[float, float], color: str = INK, **settings: object) -> None:
    """Draw an arrow through points, with square corners."""
    style = {"linewidth": 1.4, "color": color, "zorder": 3} | settings
    if len(points) > 2:
        axes.plot(*zip(*points[:-1], strict=True), solid_capstyle="butt", **style)
    head = FancyArrowPatch(points[-2], points[-1], arrowstyle="-|>", mutation_scale=11, shrinkA=0, shrinkB=0, **style)
    axes.add_patch(head)


def write(axes: Axes, x: float, y: float, text: str, color: str = GRAY, **settings: object) -> None:
    """Write a label centered at a point."""
    style = {"ha": "center", "va": "center", "size": 8.6, "linespacing": 1.3, "zorder": 5} | settings
    axes.text(x, y, text, color=color, **style)
