"""What a training reports: progress bar, JSON lines, trackers such as TensorBoard, and curves."""

import contextlib
import json
import math
import os
import time
import uuid
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from transformers.utils import logging

from ..utils.files import Writer, atomic_write
from ..utils.progress import progress
from ..utils.redaction import redact
from .arguments import TrainingArguments
from .curves import plot_curves

logger = logging.get_logger(f"transformers.{__name__}")

LOG_FILE = "log.jsonl"
CURVES_FILE = "curves.png"
RUN_ID = "run_id"  # file in the directory of a run
MODEL = "the model"  # in reports of what could not be written


def installed_trackers(names: list[str]) -> list[str]:
    """Return the trackers to use besides the log; TensorBoard, the default, only if it is installed.

    Raises:
        ValueError: If one of the others is not installed.
    """
    available = {str(tracker.value) for tracker in get_available_trackers()}
    missing = [name for name in names if name not in ("tensorboard", "none") and name not in available]
    if missing:
        raise ValueError(f"report_to contains {missing[0]}, which is not installed: pip install {missing[0]}.")
    return [name for name in names if name in available]


def start_trackers(args: TrainingArguments, accelerator: Accelerator) -> None:
    """Start the trackers with the options of the run.

    Raises:
        ValueError: If a tracker does not start.
    """
    folder = Path(args.output_dir)
    resumed = args.resume_from_checkpoint and (folder / RUN_ID).exists()
    run_id = _run_id(folder, resumed, accelerator)
    settings = {name: redact(value) for name, value in vars(args).items() if isinstance(value, (int, float, str))}
    tracker_settings = {
        "wandb": {"name": folder.name, "dir": str(folder), "id": run_id, "resume": "allow"},
        "trackio": {"name": folder.name, "resume": "allow" if resumed else "never"},
    }
    try:
        accelerator.init_trackers("albef_hf", config=settings, init_kwargs=tracker_settings)
    except Exception as error:  # services raise all kinds of exceptions
        accelerator.trackers = []  # a tracker that only half started cannot be ended
        raise ValueError(
            f"A tracker of report_to ({', '.join(args.report_to)}) did not start: {error}. Log in to it (wandb "
            "login), run it offline (WANDB_MODE=offline), or remove it from report_to; log.jsonl is always written."
        ) from error


def _run_id(folder: Path, resumed: bool, accelerator: Accelerator) -> str:
    """Return the id by which wandb recognizes a resumed run; a new run gets a new one."""
    path = folder / RUN_ID
    if resumed:
        return path.read_text(encoding="utf-8")
    run_id = uuid.uuid4().hex
    if accelerator.is_main_process:
        try:
            with atomic_write(path) as temporary:
                temporary.write_text(run_id, encoding="utf-8")
        except OSError as error:
            logger.warning(f"{path} could not be written ({error}); wandb will treat a resumed run as a new one.")
    return run_id


class RunLog:
    """Write the records of a run from the main process; on other processes, do nothing.

    Args:
        accelerator: Its trackers receive every record too.
        folder: Directory of `log.jsonl`.
        total_steps: Length of the progress bar.
        logging_steps: Steps between two lines of progress if stderr is not a terminal.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, total_steps: int, logging_steps: int):
        self.accelerator = accelerator
        self.path = folder / LOG_FILE
        self.start = time.monotonic()
        self.records = 0
        self.unwritten: list[str] = []  # lines that did not fit on a full disk yet
        self.writer = Writer(self.say)
        self.bar = progress(
            total=total_steps,
            unit="step",
            every=logging_steps,
            disable=not accelerator.is_main_process,
            dynamic_ncols=True,
        )
        if accelerator.is_main_process:
            self.path.touch()

    def begin(self, records: int = 0, seconds: float = 0.0, step: int = 0) -> None:
        """Start a log, or resume one after some of its records, seconds and steps."""
        self.start = time.monotonic() - seconds
        self.records = records
        self.bar.initial = self.bar.n = step  # not progress of this process
        if self.accelerator.is_main_process:
            lines = self.path.read_bytes().splitlines(keepends=True)[:records]
            kept = [line for line in lines if line.endswith(b"\n")]
            self.records = len(kept)
            os.truncate(self.path, sum(map(len, kept)))  # possible on a full disk, too

    def write(self, step: int, record: dict[str, float]) -> None:
        """Append a record; values that are not finite become null, as JSON has none."""
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
        """Append all unwritten lines, or none of them."""
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(self.unwritten)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, before)
            raise

    def _track(self, record: dict[str, float], step: int) -> None:
        """Send a record to the trackers; drop them if they fail, as TensorBoard does on a full disk."""
        try:
            self.accelerator.log(record, step=step)
        except Exception as error:  # services raise all kinds of exceptions
            names = ", ".join(tracker.name for tracker in self.accelerator.trackers)
            self.accelerator.trackers = []
            self.writer.failed[names] = f"{type(error).__name__}: {error}"
            self.say(f"step {step}: {names} failed ({error}) and gets no more records; {LOG_FILE} has them")

    def advance(self) -> None:
        """Move the progress bar by a step."""
        self.bar.update()

    def show(self, **values: float) -> None:
        """Show values next to the progress bar."""
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.accelerator.is_main_process:
            self.bar.write(text)

    def close(self) -> None:
        """Close the bar and draw the curves."""
        self.bar.close()
        if self.accelerator.is_main_process:
            self.writer.attempt(CURVES_FILE, lambda: plot_curves(self.path, self.path.with_name(CURVES_FILE)))

    def report_failed_writes(self) -> None:
        """Report at the end of a run what could not be written.

        Raises:
            OSError: If the model is among it.
        """
        failed = "; ".join(f"{what} ({problem})" for what, problem in self.writer.failed.items())
        if MODEL in self.writer.failed:
            raise OSError(
                f"training has ended, but this could not be written: {failed}. {self.path.parent} keeps its former "
                "content. Free disk space and run again with --resume_from_checkpoint: it continues from the latest "
                "checkpoint, if there is one."
            )
        if failed:
            self.say(f"WARNING: this could not be written: {failed}")
