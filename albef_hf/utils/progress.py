"""Show progress: a bar in a terminal or notebook, and occasional lines in a log file."""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import huggingface_hub.utils
import transformers
from tqdm import tqdm as terminal_tqdm
from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 30.0
LINE = "{desc}{percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
LINE_WITHOUT_TOTAL = "{desc}{n_fmt} {unit} [{elapsed}, {rate_fmt}{postfix}]"


def progress(
    iterable: Iterable[Any] | None = None,
    desc: str | None = None,
    total: int | None = None,
    every: int | None = None,
    **options: Any,
) -> "tqdm | ProgressLines":
    """Return a tqdm bar if stderr is a terminal, and `ProgressLines` otherwise.

    Args:
        iterable: Items to loop over; without it, call `update`.
        desc: Description in front of the bar.
        total: Number of items; by default the length of the iterable.
        every: Items between two lines; by default a line is written every 30 seconds. The last one is written at the
            end.
        options: Other arguments of tqdm.
    """
    if shows_bars():
        return tqdm(iterable, desc, total, **options)
    return ProgressLines(iterable, f"{desc}: " if desc else None, total, every=every, **options)


def shows_bars() -> bool:
    """Return True in a notebook, and if stderr is a terminal."""
    return any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__) or sys.stderr.isatty()


def log_library_progress() -> None:
    """Keep the bars of other libraries out of log files: those of transformers become lines, others are disabled.

    Commands call this first. It does nothing in a terminal.
    """

    def show(kind: Callable[..., Any], arguments: tuple, options: dict[str, Any]) -> Any:
        return (progress if kind is tqdm else kind)(*arguments, **options)  # the other kind is an empty bar

    if shows_bars():
        return
    transformers.logging.set_tqdm_hook(show)
    huggingface_hub.utils.disable_progress_bars()
    if "datasets" in sys.modules:  # an optional dependency that is slow to import
        sys.modules["datasets"].disable_progress_bars()


class ProgressLines(terminal_tqdm):
    """A tqdm that writes a new line for each state; for `every` see `progress`."""

    def __init__(self, *arguments: Any, every: int | None = None, **options: Any):
        # Without a minimum interval, loops call update() for each item; without smoothing, the rate is an average.
        super().__init__(*arguments, **options | {"leave": False, "mininterval": 0, "miniters": 1, "smoothing": 0})
        self.bar_format = LINE if self.total else LINE_WITHOUT_TOTAL
        self.every = every
        self.written_n = 0
        self.written_at = time.monotonic()

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Do nothing: `update` and `close` write the lines."""

    def clear(self, nolock: bool = False) -> None:
        """Do nothing: written lines stay."""

    def update(self, n: int = 1) -> None:
        """Count items, and write a line if it is due."""
        super().update(n)
        if not self.disable and self._is_due():
            self._write_line()

    def close(self) -> None:
        """Write the last line, unless it was written already or nothing was done."""
        if not self.disable and self.n > max(self.written_n, self.initial):
            self._write_line()
        super().close()

    def _is_due(self) -> bool:
        if self.every is None:
            return time.monotonic() - self.written_at >= SECONDS_BETWEEN_LINES
        return self.n // self.every > max(self.written_n, self.initial) // self.every

    def _write_line(self) -> None:
        self.written_n = self.n
        self.written_at = time.monotonic()
        self.fp.write(f"{self}\n")
        self.fp.flush()
