"""Progress of long work: a bar in a terminal or a notebook, and a line from time to time in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import transformers
from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 30.0
LINE = "{desc}{percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
LINE_WITHOUT_TOTAL = "{desc}{n_fmt} {unit} [{elapsed}, {rate_fmt}{postfix}]"


def progress(
    iterable: Iterable[Any] | None = None,
    desc: str | None = None,
    total: int | None = None,
    unit: str = "it",
    every: int | None = None,
    disable: bool = False,
    **bar_options: Any,
) -> "Progress":
    """Return a tqdm bar, or its substitute where stderr is no terminal.

    Args:
        iterable: What to iterate over, if not `update` is called instead.
        desc: What the work is.
        total: Number of items; by default the length of the iterable.
        unit: Name of an item.
        every: Items between two lines; by default there is one each 30 seconds. A last line comes at the end.
        disable: Show nothing.
        bar_options: What tqdm takes beyond that, for the bar alone.
    """
    if disable or shows_bars():
        return tqdm(iterable, desc, total, unit=unit, disable=disable, **bar_options)
    return ProgressLines(iterable, desc, total, unit, every)


def shows_bars() -> bool:
    """Return whether progress is shown by a bar: a notebook has one, and so has a terminal."""
    return any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__) or sys.stderr.isatty()


def log_library_progress() -> None:
    """Keep bars of other libraries out of log files: transformers' become lines, those of datasets are disabled.

    Commands call this first. It changes nothing in a terminal.
    """

    def show(kind: type, arguments: tuple, options: dict[str, Any]) -> Any:
        return (progress if kind is tqdm else kind)(*arguments, **options)  # the other kind shows nothing

    if shows_bars():
        return
    transformers.logging.set_tqdm_hook(show)
    if "datasets" in sys.modules:  # an optional dependency, which is slow to import
        sys.modules["datasets"].disable_progress_bars()


class ProgressLines:
    """Part of tqdm's interface that writes lines to stderr; for the arguments see `progress`."""

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        desc: str | None = None,
        total: int | None = None,
        unit: str = "it",
        every: int | None = None,
    ):
        self.iterable = iterable
        self.desc = desc
        self.total = len(iterable) if total is None and hasattr(iterable, "__len__") else total
        self.unit = unit
        self.every = every
        self.initial = self.n = self.shown = 0
        self.postfix = ""
        self.start = self.shown_at = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            self.update()
        self.close()

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Count items, and write a line if it is time for one."""
        self.n += n
        if self.every is not None:
            due = self.n // self.every > max(self.shown, self.initial) // self.every
        else:
            due = time.monotonic() - self.shown_at >= SECONDS_BETWEEN_LINES
        if due:
            self._write_line()

    def set_postfix(self, values: dict[str, Any]) -> None:
        """Set what the next line ends with."""
        self.postfix = ", ".join(f"{name}={value}" for name, value in values.items())

    def write(self, text: str) -> None:
        """Write a text of its own to stdout, as tqdm does."""
        print(text, flush=True)

    def close(self) -> None:
        """Write the last line, unless it is there or nothing was done."""
        if self.n > max(self.shown, self.initial):
            self._write_line()

    def _write_line(self) -> None:
        self.shown = self.n
        self.shown_at = time.monotonic()
        line = tqdm.format_meter(
            self.n,
            self.total,
            self.shown_at - self.start,
            prefix=f"{self.desc}: " if self.desc else "",
            unit=self.unit,
            postfix=self.postfix,
            initial=self.initial,
            bar_format=LINE if self.total else LINE_WITHOUT_TOTAL,
        )
        print(line, file=sys.stderr, flush=True)


Progress = tqdm | ProgressLines
