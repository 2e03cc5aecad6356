"""Draw one training step. `python docs/figures/step.py` writes step.svg."""

from drawing import BLUE, GRAY, INK, ORANGE, PURPLE, draw_arrow, draw_box, make_canvas, save, write
from matplotlib.axes import Axes

HEIGHT = 332
TEACHER, STUDENT = 192, 48  # lower edges of the boxes of each lane
BOX = 62  # height
CENTER = BOX / 2


def main() -> None:
    """Draw the figure."""
    axes = make_canvas(HEIGHT)
    for bottom, height in ((180, 142), (8, 158)):
        draw_box(axes, 122, bottom, 570, height, linestyle=(0, (4, 3)), facecolor="#fafbfc", zorder=1)
    write(axes, 138, 303, "momentum teacher, without gradient", INK, weight="bold", size=10, ha="left")
    write(axes, 290, 146, "student, the model that is trained", INK, weight="bold", size=10, ha="left")
    draw_flow(axes)
    draw_box(axes, 8, 132, 94, 80, "batch", "images, texts,\nmasked texts", BLUE)
    draw_step(axes, 138, TEACHER, 140, "1  targets", "features, queues,\nmasked-word logits", "teacher(**batch)", GRAY)
    draw_step(axes, 402, TEACHER, 120, "6  enqueue", "replace the\noldest features", "teacher.enqueue(...)", GRAY)
    draw_step(
        axes, 546, TEACHER, 132, "7  average", r"$\theta'\leftarrow m\theta'+(1-m)\theta$", "teacher.update(...)"
    )
    draw_step(axes, 138, STUDENT, 140, "2  losses", "ITC + ITM + MLM", "student(**batch, ...)", ORANGE)
    draw_step(axes, 298, STUDENT, 112, "3  backward", "gradients", "loss.backward()", PURPLE)
    draw_step(axes, 430, STUDENT, 104, "4  AdamW", "new weights", "optimizer.step()", PURPLE)
    draw_step(axes, 558, STUDENT, 120, "5  clamp", "temperature within\n0.001 and 0.5", "clamp_temperature()", PURPLE)
    save(axes.figure, "step")


def draw_step(
    axes: Axes, left: float, bottom: float, width: float, title: str, note: str, code: str, color: str = GRAY
) -> None:
    """Draw a box, and the line of code that does it on the side that has no arrows."""
    draw_box(axes, left, bottom, width, BOX, title, note, color)
    below = bottom - 14 if bottom == STUDENT else bottom + BOX + 14
    write(axes, left + width / 2, below, code, INK, family="DejaVu Sans Mono", size=7.8)


def draw_flow(axes: Axes) -> None:
    """Draw what goes from step to step."""
    teacher, student = TEACHER + CENTER, STUDENT + CENTER
    draw_arrow(axes, (55, 212), (55, teacher), (138, teacher), color=BLUE)
    draw_arrow(axes, (55, 132), (55, student), (138, student), color=BLUE)
    draw_arrow(axes, (258, TEACHER), (258, STUDENT + BOX), color=ORANGE)
    write(axes, 250, 146, "keys, soft targets", ORANGE, ha="right")
    draw_arrow(axes, (278, teacher), (402, teacher), color=GRAY)
    write(axes, 340, teacher + 12, "this batch's features", GRAY, size=8.2)
    draw_arrow(axes, (522, teacher), (546, teacher), color=GRAY)
    for left, right in ((278, 298), (410, 430), (534, 558)):
        draw_arrow(axes, (left, student), (right, student), color=PURPLE)
    draw_arrow(axes, (660, STUDENT + BOX), (660, TEACHER), color=PURPLE)
    write(axes, 652, 146, "weights", PURPLE, ha="right")


if __name__ == "__main__":
    main()
