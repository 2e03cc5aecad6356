"""Standard output and error of a command, whose failure must not end it."""

import contextlib
import sys
from typing import Any, TextIO


class UnfailingStream:
    """A text stream that drops what cannot be written, as on a full disk or when its reader is gone."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write if possible."""
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if possible."""
        with contextlib.suppress(OSError):
            self.stream.flush()


def keep_output_from_failing() -> None:
    """Ignore errors of writing to standard output and error, so that they end no training."""
    sys.stdout = UnfailingStream(sys.stdout)
    sys.stderr = UnfailingStream(sys.stderr)
