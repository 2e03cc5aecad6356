"""What a training leaves behind for people to look at: a progress bar, JSON lines, TensorBoard, and a picture."""

import json
import math
import time
from pathlib import Path

from accelerate import Accelerator
from tqdm.auto import tqdm

LOG_FILE = "log.jsonl"
CURVES_FILE = "curves.png"


class RunLog:
    """Writes the records of a run from the main process; on the others it does nothing.

    Args:
        accelerator: Its trackers (TensorBoard) get every number too.
        folder: Where `log.jsonl` goes.
        total_steps: Length of the progress bar.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, total_steps: int):
        self.accelerator = accelerator
        self.path = folder / LOG_FILE
        self.start = time.monotonic()
        self.bar = tqdm(total=total_steps, unit="step", disable=not accelerator.is_main_process, dynamic_ncols=True)
        if accelerator.is_main_process:
            self.path.write_text("", encoding="utf-8")

    def write(self, step: int, record: dict[str, float]) -> None:
        """Append a record; a number that is not finite is written as null, which JSON has instead."""
        self.accelerator.log(record, step=step)
        if self.accelerator.is_main_process:
            seconds = round(time.monotonic() - self.start, 3)
            record = {"step": step, "seconds": seconds, **record}
            clean = {name: value if math.isfinite(value) else None for name, value in record.items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean) + "\n")

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
            plot_curves(self.path, self.path.with_name(CURVES_FILE))


def plot_curves(log: Path, picture: Path) -> None:
    """Draw the curves of a run: losses, temperature, gradient norm, retrieval; needs matplotlib, else draws nothing.

    Args:
        log: A `log.jsonl`.
        picture: The PNG to write.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    panels = {
        "losses": ["loss_itc", "loss_itm", "loss_mlm"],
        "ITC: temperature": ["temperature"],
        "ITC: bound on mutual information (nats)": ["mutual_information_bound"],
        "gradient norm": ["gradient_norm"],
        "text retrieval, recall (%)": ["itc_text_r1", "itc_text_r10", "itm_text_r1", "itm_text_r10"],
        "image retrieval, recall (%)": ["itc_image_r1", "itc_image_r10", "itm_image_r1", "itm_image_r10"],
    }
    figure = Figure(figsize=(13, 7), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 3).flat, panels.items(), strict=True):
        for name in names:
            points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend(fontsize=8)
    figure.savefig(picture, dpi=110)
