"""Tables and learning curves of the trainings of ablate.py.

    python benchmarks/photographs/ablation_report.py --results runs/photographs_ablation/results.jsonl

Values are means over seeds with 95 % confidence intervals by Student's t. "Cross-fitted" is the calibrated score,
fitted on the queries of one half of the photographs and judged on the other half. Differences are paired by seed, in
bold where the interval excludes zero; where there is no effect, one in twenty is bold.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from ablate import OUTPUT, WAYS
from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))
from intervals import as_text, difference, interval

RANKS = (1, 5, 10)
STAGES = {"itm": "matching alone", "cross_fitted": "cross-fitted"}
COLORS = ("#2563ab", "#2e8b57", "#e08a1e", "#7a4fb3", "#7f868d", "#b8b04a", "#b83a3a", "#d77fa1")  # of the ways

Curves = dict[str, dict[int, list[dict[str, float]]]]  # by way and seed


def main() -> None:
    """Print the tables, draw the chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=OUTPUT / "results.jsonl", help="what ablate.py has written")
    parser.add_argument("--plot", type=Path, help="the PNG to draw; default: beside the results")
    options = parser.parse_args()
    if not options.results.exists():
        parser.error(f"there is no {options.results}: run ablate.py first, or name its result file.")
    curves, minutes = read_results(options.results)
    for stage, title in STAGES.items():
        print(f"### {title}\n\n{table(curves, stage)}\n")
        print(f"What a change adds:\n\n{changes(curves, stage)}\n")
        print(f"Beside contrast:\n\n{gains(curves, stage)}\n")
    print(f"### Cost\n\n{costs(curves, minutes)}\n")
    image = options.plot or options.results.with_suffix(".png")
    plot(curves, image)
    print(f"learning curves: {image}")


def read_results(results: Path) -> tuple[Curves, dict[str, list[float]]]:
    """Curves by way and seed, in the order of the ways, and CPU minutes by way."""
    curves, minutes = defaultdict(dict), defaultdict(list)
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    for line in sorted(lines, key=lambda line: [*WAYS].index(line["way"])):
        curves[line["way"]][line["seed"]] = line["curve"]
        if line["cpu_seconds"] is not None:
            minutes[line["way"]].append(line["cpu_seconds"] / 60)
    return curves, minutes


def of_seeds(curves: Curves, way: str, metric: str) -> dict[int, float]:
    """A metric of the last evaluation, by seed; empty for a way that was not trained."""
    return {seed: curve[-1][metric] for seed, curve in curves.get(way, {}).items()}


def metrics(stage: str) -> list[str]:
    """Names of the six recalls of a stage."""
    return [f"{stage}_{target}_r{rank}" for target in ("text", "image") for rank in RANKS]


def markdown(first: str, rows: dict[str, list[str]], last: str = "") -> str:
    """Rows of six recalls as a table."""
    titles = [f"{target} at {rank}" for target in ("texts", "images") for rank in RANKS]
    head = [first, *titles, *([last] if last else [])]
    lines = [head, ["---"] * len(head), *([title, *cells] for title, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(curves: Curves, stage: str) -> str:
    """Recalls of each way, below those of contrast."""
    rows = {WAYS[way].title: means(curves, way, stage) for way in curves}
    rows = {"contrast": means(curves, [*curves][0], "itc"), **rows}
    return markdown("recall in %", rows, "seeds")


def means(curves: Curves, way: str, stage: str) -> list[str]:
    """Means and intervals of the recalls of a way, and the number of its seeds."""
    numbers = [as_text(*interval([*of_seeds(curves, way, name).values()])) for name in metrics(stage)]
    return [*numbers, str(len(curves[way]))]


def changes(curves: Curves, stage: str) -> str:
    """What each way adds to the one that it changes."""
    rows = {}
    for way in curves:
        base = WAYS[way].base
        if base in curves:
            names = metrics(stage)
            cells = [difference(of_seeds(curves, base, name), of_seeds(curves, way, name)) for name in names]
            rows[f"{WAYS[way].title}, instead of {WAYS[base].title}"] = cells
    return markdown("change", rows)


def gains(curves: Curves, stage: str) -> str:
    """What each way has more than the contrast of the start; one that trains the text encoder changes its own."""
    start = [*curves][0]
    pairs = [*zip(metrics("itc"), metrics(stage), strict=True)]
    rows = {
        WAYS[way].title: [difference(of_seeds(curves, start, itc), of_seeds(curves, way, name)) for itc, name in pairs]
        for way in curves
    }
    return markdown("less contrast", rows)


def costs(curves: Curves, minutes: dict[str, list[float]]) -> str:
    """Steps and CPU minutes of each way, evaluations included."""
    lines = ["| way | steps | CPU minutes |", "| --- | --- | --- |"]
    for way, by_seed in curves.items():
        steps = max(curve[-1]["step"] for curve in by_seed.values())
        shown = as_text(*interval(minutes[way])) if minutes[way] else "interrupted"
        lines.append(f"| {WAYS[way].title} | {steps} | {shown} |")
    return "\n".join(lines)


def plot(curves: Curves, image: Path) -> None:
    """The mean of the six recalls against the step, a line for each way and a dot for each seed."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(1, len(STAGES), sharey=True)
    for axes, (stage, title) in zip(panels, STAGES.items(), strict=True):
        for color, way in zip(COLORS, curves, strict=False):
            points = defaultdict(list)
            for evaluation in (evaluation for curve in curves[way].values() for evaluation in curve):
                points[evaluation["step"]].append(evaluation[f"{stage}_r_mean"])
            for step, values in points.items():
                axes.plot([step] * len(values), values, ".", color=color, alpha=0.45)
            heights = [statistics.fmean(values) for values in points.values()]
            axes.plot([*points], heights, color=color, linewidth=1.8, label=WAYS[way].title)
        contrast = statistics.fmean(curve[-1]["itc_r_mean"] for curve in curves[[*curves][0]].values())
        axes.axhline(contrast, color="black", linestyle="--", linewidth=1, label="contrast")
        axes.set(title=title, xlabel="steps", ylabel="mean of the six recalls (%)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(image, dpi=110)


if __name__ == "__main__":
    main()
