"""Draw ALBEF: encoders, losses, teacher. `python docs/figures/architecture.py` writes architecture.svg."""

from drawing import BLUE, GRAY, GREEN, INK, ORANGE, PURPLE, RULE, draw_arrow, draw_box, make_canvas, save, write
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Rectangle, RegularPolygon

HEIGHT = 500
MODEL, TEACHER = (8, 450), (506, 186)  # left edge and width
SHAPES = "#2c8c2c", "#ff7f0e", "#28bebe", "#f0d21e"  # of the built-in scenes: green, orange, turquoise, yellow


def main() -> None:
    """Draw the figure."""
    axes = make_canvas(HEIGHT)
    for left, width in (MODEL, TEACHER):
        draw_box(axes, left, 104, width, 390, linestyle=(0, (4, 3)), facecolor="#fafbfc", zorder=1)
    draw_inputs(axes)
    draw_encoders(axes)
    draw_losses(axes)
    draw_teacher(axes)
    save(axes.figure, "architecture")


def draw_inputs(axes: Axes) -> None:
    """Draw an image in patches, and a caption in tokens."""
    left, bottom = 72, 10
    side = 76
    green, orange, turquoise, yellow = SHAPES
    axes.add_patch(Rectangle((left, bottom), side, side, facecolor="#fbfbf8", edgecolor=GRAY, linewidth=1))
    axes.add_patch(Circle((left + 52, bottom + 54), 13, color=yellow))
    axes.add_patch(RegularPolygon((left + 20, bottom + 52), 6, radius=10, color=orange))
    axes.add_patch(RegularPolygon((left + 27, bottom + 21), 4, radius=11, color=turquoise))
    axes.add_patch(Circle((left + 57, bottom + 19), 8, facecolor="white", edgecolor=green, linewidth=4))
    for step in (1, 2, 3):
        axes.plot([left + step * side / 4] * 2, [bottom, bottom + side], color=RULE, linewidth=0.8)
        axes.plot([left, left + side], [bottom + step * side / 4] * 2, color=RULE, linewidth=0.8)
    tokens = {"[CLS]": 42, "a": 18, "green": 44, "ring": 34, "...": 24}
    x = 252.0
    for token, width in tokens.items():
        draw_box(axes, x, 50, width, 24, note=token, color=GRAY, linewidth=0.8)
        x += width + 5
    write(axes, 340, 30, "caption; for MLM, 15 % of its\ntokens are masked")


def draw_encoders(axes: Axes) -> None:
    """Draw the three encoders and what flows between them."""
    write(axes, 24, 474, "model", INK, weight="bold", size=10.5, ha="left")
    write(axes, 24, 440, "trained on the\nsum of ITC,\nITM and MLM", INK, ha="left", va="center")
    draw_box(axes, 20, 118, 180, 74, "image encoder", "ViT-B/16, 12 layers\n[CLS] and patches", BLUE)
    draw_box(axes, 240, 118, 200, 74, "text encoder", "BERT layers 0 to 5\nself-attention", GREEN)
    draw_box(axes, 240, 318, 200, 74, "multimodal encoder", "BERT layers 6 to 11\nself- and cross-attention", PURPLE)
    draw_arrow(axes, (110, 86), (110, 118))
    draw_arrow(axes, (340, 74), (340, 118))
    draw_arrow(axes, (400, 192), (400, 318), color=GREEN)
    draw_arrow(axes, (50, 192), (50, 355), (240, 355), color=BLUE)
    write(axes, 145, 378, "all image tokens:\nkeys and values", BLUE)
    write(axes, 393, 301, "all text tokens:\nqueries", GREEN, ha="right")


def draw_losses(axes: Axes) -> None:
    """Draw the losses and what they are computed from."""
    draw_box(axes, 90, 232, 240, 52, "ITC: image-text contrast", "cosines of the [CLS], projected to 256", ORANGE)
    draw_arrow(axes, (130, 192), (130, 232), color=BLUE)
    draw_arrow(axes, (290, 192), (290, 232), color=GREEN)
    draw_box(axes, 156, 428, 160, 58, "ITM: matching", "do the two match?\nhard negatives by ITC", ORANGE)
    draw_box(axes, 330, 428, 120, 58, "MLM", "which word was\nmasked?", ORANGE)
    draw_arrow(axes, (285, 392), (285, 428), color=PURPLE)
    draw_arrow(axes, (395, 392), (395, 428), color=PURPLE)
    write(axes, 279, 412, "[CLS]", PURPLE, ha="right")
    write(axes, 389, 412, "masked", PURPLE, ha="right")


def draw_teacher(axes: Axes) -> None:
    """Draw the momentum teacher with its queues, and its targets."""
    left, width = TEACHER
    middle = left + width / 2
    write(axes, middle, 474, "momentum teacher", INK, weight="bold", size=10.5)
    write(axes, middle, 436, "sees the same image and\ncaption; has the same layers,\nbut no gradient", INK)
    draw_queue(axes, left + 16, 358, BLUE, "image queue")
    draw_queue(axes, left + 16, 304, GREEN, "text queue")
    write(axes, middle, 272, "features of the latest\n65,536 pairs: more negatives", INK)
    write(axes, middle, 184, "its weights are an average\nof those of the model", INK)
    write(axes, middle, 146, r"$\theta' \leftarrow 0.995\,\theta' + 0.005\,\theta$", INK, size=10.5)
    draw_arrow(axes, (sum(MODEL), 146), (left, 146), color=GRAY, linestyle=(0, (3, 2)))
    write(axes, 482, 160, "weights")
    axes.plot([left, 336], [258, 258], color="white", linewidth=6, zorder=3)
    draw_arrow(axes, (left, 258), (330, 258), color=ORANGE)
    write(axes, 482, 232, "keys,\nsoft\ntargets", ORANGE, size=8.2)
    draw_arrow(axes, (left, 461), (450, 461), color=ORANGE)
    write(axes, 482, 442, "soft\ntargets", ORANGE, size=8.2)


def draw_queue(axes: Axes, left: float, bottom: float, color: str, name: str) -> None:
    """Draw a row of features, the older the paler."""
    for step in range(12):
        square = Rectangle((left + 13 * step, bottom), 10, 18, facecolor=color, alpha=1 - step / 13, zorder=3)
        axes.add_patch(square)
    write(axes, left, bottom + 27, name, color, ha="left")


if __name__ == "__main__":
    main()
