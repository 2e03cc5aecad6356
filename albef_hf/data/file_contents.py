"""Parse a file of rows, whatever it is: JSON, JSON lines, tab-separated lines, or a pickle of plain data."""

import json
import pickle
from pathlib import Path
from typing import Any

Row = dict[str, Any]

PICKLES = (".p", ".pkl", ".pickle")


class JsonLines(list):
    """The rows of a file with a JSON object in each line."""


class TextLines(list):
    """The lines of a text that is not JSON."""


class _PlainUnpickler(pickle.Unpickler):
    """Load plain data only, and refuse code."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(
            f"The file of references contains pickled code ({module}.{name}), which could be malicious, and was not "
            "loaded. Download refs(unc).p again."
        )


def read_plain_pickle(path: Path) -> Any:
    """Return the plain data in a pickle.

    Raises:
        ValueError: If it contains code, which is not executed.
    """
    with path.open("rb") as file:
        return _PlainUnpickler(file).load()


def read_content(file: str) -> Any:
    """Return the parsed content of a file; None if it cannot be parsed, for which `read_json_list` says why."""
    path = Path(file)
    if path.is_dir():
        names = [name.name for name in sorted(path.iterdir()) if name.is_file()]
        raise ValueError(f"{file} is a folder; give a file in it{', such as ' + names[0] if names else ''}.")
    try:
        if path.suffix in PICKLES:
            return read_plain_pickle(path)
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return None
    except (OSError, EOFError, pickle.UnpicklingError, AttributeError, IndexError) as error:
        raise ValueError(f"{file} cannot be read: {error}.") from error
    try:
        content = json.loads(text)
        return JsonLines([content]) if path.suffix == ".jsonl" else content  # of one line
    except (ValueError, RecursionError):
        pass
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]  # a caption may have other separators
    try:
        return JsonLines(map(json.loads, lines))
    except (ValueError, RecursionError):
        return TextLines(lines) if lines and "\t" in lines[0] else None
