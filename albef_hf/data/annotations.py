"""JSON lists, such as the original's annotations."""

import json
from pathlib import Path
from typing import Any


def read_json_list(file: str, kind: type = dict) -> list[Any]:
    """A list of objects, or of another kind of thing.

    Raises:
        ValueError: If the file is none.
    """
    try:
        rows = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} cannot be read as a JSON list: {error}.") from error
    if not isinstance(rows, list) or not all(isinstance(row, kind) for row in rows):
        raise ValueError(f"{file} is not a list of JSON {'strings' if kind is str else 'objects'}.")
    return rows
