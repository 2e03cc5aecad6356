"""The paper's Table 1 from a result file of reproduce.py, and a chart of it against the share of noise.

    python benchmarks/reproduction/report.py --results runs/reproduction/results.jsonl

Values are means over seeds with 95 % confidence intervals by Student's t. A second table has what each row adds to the
one above, and distillation to none of it: differences paired by seed, in bold where the interval excludes zero. Where
there is no effect, one in twenty is bold. A third has what reranking adds to contrast, a fourth what the log-odds of a
match add where its logit alone would order. The last section is of each seed's mean over all shares of noise.
"""

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure
from objectives import PRETRAININGS

sys.path.append(str(Path(__file__).parents[1]))
from intervals import as_text, difference, interval

HERE = Path(__file__).parent
COLORS = ("#7f868d", "#2563ab", "#2e8b57", "#e08a1e", "#b83a3a", "#7a4fb3")  # of the rows of the table


@dataclass(frozen=True)
class Column:
    """A number of each run: the mean of some metrics of a task.

    Args:
        title: At its head.
        task: What the run was trained for.
        metrics: Of the result file.
        untrained: Pretraining that teaches nothing of what this measures.
    """

    title: str
    task: str
    metrics: tuple[str, ...]
    untrained: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the paper's table: how it was pretrained, and whether fine-tuning was distilled."""

    title: str
    pretraining: str
    distilled: bool = False


Cells = dict[tuple[Row, Column], dict[int, float]]  # by seed


WAYS = ("text", "image")


def recalls(step: str, way: str) -> tuple[str, ...]:
    """Names of what the paper's TR and IR are the means of."""
    return tuple(f"{step}_{way}_r{k}" for k in (1, 5, 10))


ROWS = (
    *(Row(way.title, name) for name, way in PRETRAININGS.items()),
    Row("Full + MoD downstream", [*PRETRAININGS][-1], distilled=True),
)
# What is compared: each row with the one above, and all that distillation does in pretraining with none of it.
PAIRS = (*zip(ROWS, ROWS[1:], strict=False), (ROWS[2], ROWS[4]))
COLUMNS = (
    Column("TR, ITC", "pretraining", recalls("itc", "text"), untrained="without_contrast"),
    Column("IR, ITC", "pretraining", recalls("itc", "image"), untrained="without_contrast"),
    Column("TR, reranked", "pretraining", recalls("reranked", "text"), untrained="without_contrast"),
    Column("IR, reranked", "pretraining", recalls("reranked", "image"), untrained="without_contrast"),
    Column("TR, ITM alone", "pretraining", recalls("itm", "text")),
    Column("IR, ITM alone", "pretraining", recalls("itm", "image")),
    Column("TR, fine-tuned", "retrieval", recalls("itm", "text")),
    Column("IR, fine-tuned", "retrieval", recalls("itm", "image")),
    Column("SNLI-VE", "entailment", ("accuracy",)),
    Column("NLVR2", "nlvr2", ("accuracy",)),
    Column("VQA", "vqa", ("accuracy",)),
)
CONTRAST = COLUMNS[:2]
RERANKED = COLUMNS[2:4]
EVERY_PAIR = COLUMNS[4:6]
TUNED = COLUMNS[6:8]


def variants(columns: tuple[Column, ...], step: str, how: str, title: str) -> tuple[Column, ...]:
    """The same columns, measured in another way."""
    return tuple(
        replace(
            column,
            title=column.title.replace(",", title),
            metrics=tuple(name.replace(step, f"{step}_{how}") for name in column.metrics),
        )
        for column in columns
    )


# The logit of a match alone is what the original's code orders by.
RERANKED_BY_LOGIT = variants(RERANKED, "reranked", "by_logit", ",")
EVERY_PAIR_BY_LOGIT = variants(EVERY_PAIR, "itm", "by_logit", ",")
CONTRAST_OF_MANY = variants(CONTRAST, "itc", "of_many", " among ten times as many,")
RERANKED_OF_MANY = variants(RERANKED, "reranked", "of_many", " among ten times as many,")
CONTRAST_TUNED = tuple(replace(column, metrics=recalls("itc", way)) for column, way in zip(TUNED, WAYS, strict=True))
# What is compared with what: reranked with contrast, and log-odds with the logit.
BY_CONTRAST, BY_BOTH = (*CONTRAST, *CONTRAST_OF_MANY, *CONTRAST_TUNED), (*RERANKED, *RERANKED_OF_MANY, *TUNED)
BY_LOGIT, BY_ODDS = (*RERANKED_BY_LOGIT, *EVERY_PAIR_BY_LOGIT), (*RERANKED, *EVERY_PAIR)
MEASURED = tuple(dict.fromkeys((*COLUMNS, *BY_CONTRAST, *BY_BOTH, *BY_LOGIT, *BY_ODDS)))


def main() -> None:
    """Print the tables, draw the chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl", help="what reproduce.py has written")
    parser.add_argument("--plot", type=Path, help="the PNG to draw; default: beside the results")
    options = parser.parse_args()
    if not options.results.exists():
        parser.error(f"there is no {options.results}: run reproduce.py first, or name its result file.")
    values, hours = read_results(options.results)
    sections = {f"{noise:.0%} noise": cells for noise, cells in sorted(values.items())}
    if len(values) > 1:
        sections["mean of all shares of noise"] = pool(values)
    for title, cells in sections.items():
        for moment, columns in shown_columns(cells).items():
            print(f"### {title}, {moment}\n\n{table(cells, columns)}\n")
            print(f"What a row adds to another:\n\n{differences(cells, columns)}\n")
        if any((row, EVERY_PAIR[0]) in cells for row in ROWS):
            print(f"### {title}, what reranking adds to contrast\n\n{gains(cells, BY_CONTRAST, BY_BOTH)}\n")
            print(f"### {title}, what the log-odds of a match add to its logit\n\n{gains(cells, BY_LOGIT, BY_ODDS)}\n")
    print(f"{hours:.2f} hours of one CPU core.")
    plot(values, options.plot or options.results.with_suffix(".png"))


def read_results(results: Path) -> tuple[dict[float, Cells], float]:
    """Numbers by share of noise, row and column, and seed, and the hours that it took to get them."""
    values: dict[float, Cells] = defaultdict(lambda: defaultdict(dict))
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        needed = {name for column in MEASURED if column.task == line["task"] for name in column.metrics}
        if not needed <= line["metrics"].keys():
            raise SystemExit(f"{results} has lines of an earlier version: take them out, and run reproduce.py again.")
        for row in ROWS:
            if (row.pretraining, row.distilled) != (line["pretraining"], line["distilled"]):
                continue
            for column in MEASURED:
                if column.task == line["task"] and column.untrained != row.pretraining:
                    number = statistics.fmean(line["metrics"][name] for name in column.metrics)
                    values[line["noise"]][row, column][line["seed"]] = number
    return values, sum(line["cpu_seconds"] for line in lines) / 3600


def pool(values: dict[float, Cells]) -> Cells:
    """Each seed's mean over all shares of noise at which a column was measured, where there are several.

    The shares have scenes and weights in common, so only seeds count as repetitions.
    """
    pooled = {}
    for key in dict.fromkeys(key for cells in values.values() for key in cells):
        several = [cells.get(key, {}) for cells in values.values() if any(column == key[1] for _, column in cells)]
        seeds = set.intersection(*map(set, several))
        if seeds and len(several) > 1:
            pooled[key] = {seed: statistics.fmean(by_seed[seed] for by_seed in several) for seed in sorted(seeds)}
    return pooled


def shown_columns(cells: Cells) -> dict[str, list[Column]]:
    """Those for which there is anything, of the pretrained models and of the fine-tuned ones."""
    shown = defaultdict(list)
    for column in COLUMNS:
        if any((row, column) in cells for row in ROWS):
            moment = "before fine-tuning" if column.task == "pretraining" else "after fine-tuning"
            shown[moment].append(column)
    return shown


def table(cells: Cells, columns: list[Column]) -> str:
    """Means and intervals in the paper's layout."""
    lines = [["training tasks", *(column.title for column in columns), "seeds"], ["---"] * (len(columns) + 2)]
    for row in ROWS:
        found = [cells.get((row, column), {}) for column in columns]
        if any(found):
            counts = sorted({len(by_seed) for by_seed in found if by_seed})
            numbers = [as_text(*interval([*by_seed.values()])) if by_seed else "" for by_seed in found]
            lines.append([row.title, *numbers, " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def differences(cells: Cells, columns: list[Column]) -> str:
    """What rows add to others, paired by seed."""
    lines = [["row", "to", *(column.title for column in columns)], ["---"] * (len(columns) + 2)]
    for above, row in PAIRS:
        texts = [difference(*(cells.get((one, column), {}) for one in (above, row))) for column in columns]
        if any(texts):
            lines.append([row.title, above.title, *texts])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def gains(cells: Cells, before: tuple[Column, ...], after: tuple[Column, ...]) -> str:
    """What some columns have more than others of the same models, paired by seed."""
    lines = [["training tasks", *(column.title for column in after)], ["---"] * (len(after) + 1)]
    for row in ROWS:
        pairs = zip(before, after, strict=True)
        texts = [difference(*(cells.get((row, column), {}) for column in pair)) for pair in pairs]
        if any(texts):
            lines.append([row.title, *texts])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(values: dict[float, Cells], image: Path) -> None:
    """Each column against the share of noise: a dot for each seed, a line through the means of each row."""
    columns = [column for column in COLUMNS if any(key[1] == column for cells in values.values() for key in cells)]
    across = min(3, len(columns))
    down = math.ceil(len(columns) / across)
    figure = Figure(figsize=(3.3 * across, 2.7 * down + 0.9), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, column in zip(panels, columns, strict=False):
        for number, row in enumerate(ROWS):
            found = {noise: cells[row, column] for noise, cells in sorted(values.items()) if (row, column) in cells}
            places = [100 * noise + 1.4 * (number - (len(ROWS) - 1) / 2) for noise in found]  # side by side
            for place, by_seed in zip(places, found.values(), strict=True):
                axes.plot([place] * len(by_seed), [*by_seed.values()], ".", color=COLORS[number], alpha=0.45)
            means = [statistics.fmean(by_seed.values()) for by_seed in found.values()]
            if found:
                axes.plot(places, means, color=COLORS[number], linewidth=1.8, label=row.title)
        shares = sorted(100 * noise for noise, cells in values.items() if any(key[1] == column for key in cells))
        measure = "accuracy (%)" if column.metrics == ("accuracy",) else "mean recall (%)"
        axes.set(title=column.title, xlabel="useless captions (%)", ylabel=measure, xticks=shares)
        axes.set_xlim(shares[0] - len(ROWS), shares[-1] + len(ROWS))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    for axes in panels[len(columns) :]:
        axes.set_axis_off()
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    titles = [row.title for row in ROWS if row.title in handles]
    figure.legend([handles[title] for title in titles], titles, loc="outside upper center", ncols=2)
    figure.savefig(image, dpi=110)


if __name__ == "__main__":
    main()
