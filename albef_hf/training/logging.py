"""What a training leaves behind for people to look at: progress, JSON lines, TensorBoard, and a picture."""

import contextlib
import json
import math
import os
import re
import time
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from ..utils.files import Writer, written_aside
from ..utils.progress import progress

TRACKERS = ("tensorboard", "wandb", "trackio", "none")
LOG_FILE = "log.jsonl"
CURVES_FILE = "curves.png"
MODEL = "the model"  # in reports of what could not be written
# Loss of a matching that knows no more than how many pairs are right, one in three: what ITM starts from.
MATCHING_PRIOR = math.log(3) - 2 / 3 * math.log(2)


def installed_trackers(names: list[str]) -> list[str]:
    """Those that records go to beside the log; TensorBoard, the default, only where it is installed.

    Raises:
        ValueError: If one that was asked for is not installed.
    """
    there = {str(tracker.value) for tracker in get_available_trackers()}
    missing = [name for name in names if name not in ("tensorboard", "none") and name not in there]
    if missing:
        raise ValueError(f"report_to names {missing[0]}, which is not installed: pip install {missing[0]}.")
    return [name for name in names if name in there]


class RunLog:
    """Writes the records of a run from the main process; on the others it does nothing.

    Args:
        accelerator: Its trackers get every number too.
        folder: Where `log.jsonl` goes.
        total_steps: Length of the progress bar.
        log_every: Steps between two lines where stderr is no terminal.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, total_steps: int, log_every: int):
        self.accelerator = accelerator
        self.path = folder / LOG_FILE
        self.start = time.monotonic()
        self.records = 0
        self.unwritten: list[str] = []  # lines that a full disk did not take yet
        self.writer = Writer(self.say)
        self.bar = progress(
            total=total_steps,
            unit="step",
            every=log_every,
            disable=not accelerator.is_main_process,
            dynamic_ncols=True,
        )
        if accelerator.is_main_process:
            self.path.touch()

    def begin(self, records: int = 0, seconds: float = 0.0, step: int = 0) -> None:
        """Start a log, or go on with what there is: its first records, of so many seconds and steps."""
        self.start = time.monotonic() - seconds
        self.records = records
        self.bar.initial = self.bar.n = step  # not progress of this process
        if self.accelerator.is_main_process:
            lines = self.path.read_bytes().splitlines(keepends=True)[:records]
            kept = [line for line in lines if line.endswith(b"\n")]
            self.records = len(kept)
            os.truncate(self.path, sum(map(len, kept)))  # which a full disk allows

    def write(self, step: int, record: dict[str, float]) -> None:
        """Append a record; a number that is not finite is written as null, which JSON has instead."""
        self._track(record, step)
        self.records += 1
        if self.accelerator.is_main_process:
            seconds = round(time.monotonic() - self.start, 3)
            record = {"step": step, "seconds": seconds, **record}
            clean = {name: value if math.isfinite(value) else None for name, value in record.items()}
            self.unwritten.append(json.dumps(clean) + "\n")
            if self.writer.attempt(LOG_FILE, self._append):
                self.unwritten = []

    def _append(self) -> None:
        """Append what is unwritten, all of it or nothing."""
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(self.unwritten)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, before)
            raise

    def _track(self, record: dict[str, float], step: int) -> None:
        """Send a record to the trackers; they are dropped if they fail, which TensorBoard does on a full disk."""
        try:
            self.accelerator.log(record, step=step)
        except Exception as error:  # a service raises whatever it likes
            names = ", ".join(tracker.name for tracker in self.accelerator.trackers)
            self.accelerator.trackers = []
            self.writer.failed[names] = f"{type(error).__name__}: {error}"
            self.say(f"step {step}: {names} failed ({error}) and gets no more records; {LOG_FILE} has them")

    def advance(self) -> None:
        """Move the progress bar by a step."""
        self.bar.update()

    def show(self, **numbers: float) -> None:
        """Numbers behind the progress bar."""
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()})

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        if self.accelerator.is_main_process:
            self.bar.write(text)

    def close(self) -> None:
        """Finish the bar and draw the curves."""
        self.bar.close()
        if self.accelerator.is_main_process:
            self.writer.attempt(CURVES_FILE, lambda: plot_curves(self.path, self.path.with_name(CURVES_FILE)))

    def report_failed_writes(self) -> None:
        """Say at the end of a run what could not be written.

        Raises:
            OSError: If the model is among it.
        """
        failed = "; ".join(f"{what} ({problem})" for what, problem in self.writer.failed.items())
        if MODEL in self.writer.failed:
            raise OSError(
                f"training has ended, but this could not be written: {failed}. {self.path.parent} keeps what it held. "
                "Make room, and run again with --resume: it continues from the newest checkpoint, if there is one."
            )
        if failed:
            self.say(f"WARNING: this could not be written: {failed}")


def plot_curves(log: Path, picture: Path) -> None:
    """Draw the curves of a run: losses, temperature, gradient norm, metrics; needs matplotlib, else draws nothing.

    Args:
        log: A `log.jsonl`.
        picture: The PNG to write.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    panels = {title: names for title, names in _panels(records).items() if names}
    columns = min(3, max(1, len(panels)))
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
    with written_aside(picture) as aside:
        figure.savefig(aside, dpi=110, format="png")


def _panels(records: list[dict[str, float]]) -> dict[str, list[str]]:
    """Which numbers of a run go into which panel."""
    # A record of the training has a loss; the others are of the evaluation.
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
