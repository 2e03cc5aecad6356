"""Draw the figures of docs/concepts.md. `python docs/figures/concepts.py` writes five SVG files.

They show formulas, and measurements that are in this repository: `short_runs.json`, which `short_runs.py` writes, and
`benchmarks/reproduction/results.jsonl`.
"""

import json
import math
import statistics
from typing import Any

import numpy as np
from drawing import BLUE, GRAY, GREEN, HERE, INK, ORANGE, PURPLE, RED, make_figure, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from albef_hf.data import Scenes
from albef_hf.training.guards import MATCHING_PRIOR

REPOSITORY = HERE.parents[1]
BATCH, QUEUE = 16, 4096  # of short_runs.yaml and short_runs.py
BOTTOM = 0.03  # of the tables of targets, as shares of the figure
WIDTH, HEIGHT = 0.32, 0.74
ALPHA = 0.4  # the paper's weight of the teacher
RECALLS = [f"{way}_r{rank}" for way in ("text", "image") for rank in (1, 5, 10)]
PRETRAININGS = {
    "without_contrast": "MLM + ITM",
    "random_negatives": "ITC + MLM + ITM",
    "hard_negatives": "ITC + MLM + ITM_hard",
    "distilled_contrast": "ITC_MoD + MLM + ITM_hard",
    "full": "Full",
}


def main() -> None:
    """Draw all figures."""
    runs = json.loads((HERE / "short_runs.json").read_text(encoding="utf-8"))
    draw_bound()
    draw_queue(runs)
    draw_prior(runs)
    draw_log_odds()
    draw_targets(runs["teacher"])


def draw_bound() -> None:
    """Draw the largest bound on mutual information that so many keys can prove."""
    figure = make_figure(270, layout="constrained")
    axes = figure.subplots()
    keys = np.geomspace(2, 200_000, 200)
    axes.plot(keys, np.log(keys), color=INK)
    axes.fill_between(keys, np.log(keys), 14, color="#f1f3f5")
    axes.text(60, 7.2, "no loss proves more\nthan this: $I \\geq \\log K - $ InfoNCE", color=GRAY, ha="center")
    for number, name, color, side in (
        (32, "a batch of the scenes recipe, $K = 32$", BLUE, {"xytext": (10, -19)}),
        (64, "a GPU's batch in the paper, $K = 64$", GREEN, {"xytext": (11, -6)}),
        (65_600, "the same with its queue, $K = 65{,}600$", ORANGE, {"xytext": (-10, 4), "ha": "right"}),
    ):
        axes.plot(number, math.log(number), "o", color=color, markersize=8)
        label = f"{name}: {math.log(number):.2f} nats"
        axes.annotate(label, (number, math.log(number)), textcoords="offset points", color=color, **side)
    axes.set(xscale="log", xlim=(2, 200_000), ylim=(0, 14), xlabel="keys $K$ that each query is compared with")
    axes.set_ylabel("largest bound (nats)")
    save(figure, "bound")


def points(run: dict[str, Any], *names: str) -> tuple[list[float], list[float]]:
    """Return the steps of a run at which something was logged, and the mean of the named values there."""
    records = [record for record in run["log"] if names[0] in record]
    unique = {record["step"]: statistics.fmean(record[name] for name in names) for record in records}
    return list(unique), list(unique.values())


def draw_queue(runs: dict[str, Any]) -> None:
    """Draw the bound and the recall of runs with and without a queue."""
    figure = make_figure(300, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label, keys, color in (
        ("batch", "batch alone", BATCH, BLUE),
        ("queue", f"queue of {QUEUE:,}", BATCH + QUEUE, RED),
    ):
        left.plot(*points(runs[name], "mutual_information_bound"), color=color, label=label)
        left.axhline(math.log(keys), color=color, linestyle=":", linewidth=1.2)
        limit = f"all that {keys:,} keys can prove"
        left.text(500, math.log(keys) - 0.08, limit, color=color, size=8.5, ha="center", va="top")
        right.plot(*points(runs[name], "itc_text_r10", "itc_image_r10"), color=color, marker="o", label=label)
    left.set(title="bound on mutual information", xlabel="step", ylabel="nats", ylim=(0, None))
    right.set(title="recall at 10 by contrast", xlabel="step", ylabel="%", ylim=(0, None))
    right.axhline(5, color=GRAY, linestyle="--", linewidth=1.2, label="chance")
    right.legend(loc="upper left")
    save(figure, "queue")


def draw_prior(runs: dict[str, Any]) -> None:
    """Draw the loss of a constant answer, and that of training with hard and with uniform negatives."""
    figure = make_figure(300, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    constant = np.linspace(0.02, 0.9, 200)
    left.plot(constant, -(np.log(constant) + 2 * np.log(1 - constant)) / 3, color=INK)
    left.plot(1 / 3, MATCHING_PRIOR, "o", color=RED, markersize=8)
    left.annotate(
        f"1/3: {MATCHING_PRIOR:.4f}",
        (1 / 3, MATCHING_PRIOR),
        textcoords="offset points",
        xytext=(0, -18),
        color=RED,
        ha="center",
    )
    left.set(title="the same answer for all pairs", xlabel="probability of a match", ylabel="matching loss (nats)")
    for name, label, color in (("batch", "hard negatives", PURPLE), ("uniform", "uniform negatives", GREEN)):
        right.plot(*points(runs[name], "loss_itm"), color=color, label=label)
    right.axhline(MATCHING_PRIOR, color=RED, linestyle="--", linewidth=1.2, label="prior")
    right.set(title="two short runs", xlabel="step", ylim=(0.15, 1))
    right.legend(loc="upper right")
    save(figure, "prior")


def draw_log_odds() -> None:
    """Draw what the loss sees of two logits, and the recall by each way to order pairs."""
    figure = make_figure(320, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_logits(left)
    draw_orders(right)
    save(figure, "log_odds")


def draw_logits(axes: Axes) -> None:
    """Draw lines of equal probability, and two pairs that logit and log-odds order differently."""
    line = np.linspace(-4, 4, 2)
    for odds in range(-6, 7, 2):
        axes.plot(line, line + odds, color="#d3d8de", linewidth=1)
    for odds in (-4, -2, 0, 2, 4):
        where = (3.9 - max(odds, 0), 3.9 + min(odds, 0))
        label = f"{1 / (1 + math.exp(-odds)):.0%}"
        axes.text(*where, label, color=GRAY, size=8, ha="right", va="top")
    for x, y, name, color in ((2.4, 1.8, "A", RED), (-2.2, 0.4, "B", GREEN)):
        axes.plot(x, y, "o", color=color, markersize=9)
        label = f"{name}: {1 / (1 + math.exp(x - y)):.0%}"
        axes.annotate(
            label, (x, y), textcoords="offset points", xytext=(0, -18), ha="center", color=color, weight="bold"
        )
    axes.set(title="A has the higher logit, B the log-odds", xlabel="logit of no match", ylabel="logit of a match")
    axes.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
    axes.grid(False)


def draw_orders(axes: Axes) -> None:
    """Draw the mean recall of rankings of every pair, by logit and by log-odds, at 40 % noise."""
    path = REPOSITORY / "benchmarks" / "reproduction" / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [line for line in lines if (line["task"], line["noise"]) == ("pretraining", 0.4)]
    for place, name in enumerate(PRETRAININGS):
        runs = [line["metrics"] for line in rows if line["pretraining"] == name]
        for prefix, offset, color, label in (
            ("itm_by_logit", 0.17, GRAY, "logit of a match"),
            ("itm", -0.17, PURPLE, "log-odds"),
        ):
            recalls = [statistics.fmean(run[f"{prefix}_{recall}"] for recall in RECALLS) for run in runs]
            label = label if not place else None
            axes.barh(place + offset, statistics.fmean(recalls), 0.32, color=color, alpha=0.55, label=label)
            axes.plot(recalls, [place + offset] * len(recalls), ".", color=INK, markersize=4)
    axes.set_yticks(range(len(PRETRAININGS)), PRETRAININGS.values(), size=8)
    axes.invert_yaxis()
    axes.set(title="every pair ranked, 40 % noise", xlabel="mean recall (%)", xlim=(0, 100))
    axes.legend(loc="lower left", bbox_to_anchor=(-0.6, -0.32), ncols=2, fontsize=8.5)
    axes.grid(axis="y", visible=False)


def draw_targets(teacher: dict[str, Any]) -> None:
    """Draw what the teacher and the mixed targets give to images of held-out scenes for each caption."""
    logits = np.array(teacher["cosines"]) / teacher["temperature"]
    soft = np.exp(logits - logits.max(1, keepdims=True))
    soft /= soft.sum(1, keepdims=True)
    mixed = (1 - ALPHA) * np.eye(len(soft)) + ALPHA * soft
    images = [scene["image"] for scene in Scenes(**teacher["scenes"])]
    figure = make_figure(360)
    for left, title, shares in ((0.33, "teacher", soft), (0.67, f"target, $\\alpha = {ALPHA}$", mixed)):
        draw_table(figure, left, shares, f"{title} (%)", images)
    for row, caption in enumerate(teacher["captions"]):
        y = BOTTOM + HEIGHT * (1 - (row + 0.5) / len(soft))
        figure.text(0.32, y, wrap(caption), ha="right", va="center", size=8)
    save(figure, "targets")


def draw_table(figure: Figure, left: float, shares: np.ndarray, title: str, images: list[Any]) -> None:
    """Draw the share of each image in the target of each caption, below the images."""
    axes = figure.add_axes((left, BOTTOM, WIDTH, HEIGHT))
    side = WIDTH / len(shares)
    axes.imshow(shares, cmap="Purples", vmin=0, vmax=1.2, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            color = "white" if share > 0.7 else INK
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", size=9, color=color)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_color("#d3d8de")
    axes.spines[:].set_visible(True)
    for column, image in enumerate(images):
        thumbnail = figure.add_axes((left + side * (column + 0.05), BOTTOM + HEIGHT + 0.01, side * 0.9, 0.1))
        thumbnail.imshow(image)
        thumbnail.set(xticks=[], yticks=[])
        thumbnail.grid(False)
        thumbnail.spines[:].set(visible=True, color="#d3d8de", linewidth=0.6)
    figure.text(left + WIDTH / 2, 0.94, title, ha="center", va="center", weight="bold")


def wrap(text: str, width: int = 40) -> str:
    """Break a caption into two lines if it is long."""
    if len(text) <= width:
        return text
    place = text.rindex(" ", 0, len(text) // 2 + 6)
    return f"{text[:place]}\n{text[place + 1 :]}"


if __name__ == "__main__":
    main()
