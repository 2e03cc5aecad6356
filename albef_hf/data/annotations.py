"""JSON lists, such as the original's annotations."""

import json
from pathlib import Path
from typing import Any

REMEDY = "--dataset json --data_files {} reads it"


def read_json_list(file: str, kind: type = dict) -> list[Any]:
    """Return a list of objects, or of another kind of thing; a byte order mark is skipped.

    Raises:
        ValueError: If the file is none; the message says what it is instead, and what reads it.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a JSON list: {error}.") from error
    if not text.strip():
        raise ValueError(f"{file} is empty; it has to hold a JSON list.")
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        if kind is dict and _is_object(text.splitlines()[0]):
            raise ValueError(f"{file} holds JSON lines, not a JSON list: {REMEDY.format(file)}.") from error
        raise ValueError(f"{file} cannot be read as a JSON list: {error}.") from error
    names = "strings" if kind is str else "objects"
    if isinstance(rows, dict):
        raise ValueError(f"{file} is not a list of JSON {names}, {_describe_object(file, rows, kind)}.")
    if not isinstance(rows, list):
        raise ValueError(f"{file} is not a list of JSON {names}, but {json.dumps(rows)[:60]}.")
    for number, row in enumerate(rows):
        if not isinstance(row, kind):
            raise ValueError(f"{file} is not a list of JSON {names}: item {number} is {json.dumps(row)[:60]}.")
    return rows


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _describe_object(file: str, content: dict[str, Any], kind: type) -> str:
    """Say what an object has where a list is expected, and what to do about it."""
    told = f"but one object with {', '.join(map(repr, list(content)[:8])) or 'no keys'}"
    lists = [name for name, value in content.items() if isinstance(value, list)]
    told += f": save its list {lists[0]!r} as a file of its own" if lists else ": put the rows into a list"
    return told + (f", or give the file as a dataset, since {REMEDY.format(file)}" if kind is dict else "")
