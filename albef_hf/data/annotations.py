"""Read JSON lists, such as the original's annotations."""

import json
from pathlib import Path
from typing import Any

REMEDY = "--dataset json --data_files {} reads it"


def read_json(file: str, kind: type = dict) -> Any:
    """Return what a JSON file contains; a byte order mark is skipped.

    Args:
        file: Path of the file.
        kind: Type of the items that are expected, `dict` or `str`, for the error messages.

    Raises:
        ValueError: If the file cannot be read; the message says what it is instead, and what to do.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a JSON list: {error}.") from error
    if not text.strip():
        raise ValueError(f"{file} is empty; it must contain a JSON list.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if kind is dict and _is_object(text.splitlines()[0]):
            raise ValueError(f"{file} contains JSON lines, not a JSON list: {REMEDY.format(file)}.") from error
        raise ValueError(f"{file} cannot be read as a JSON list: {error}.") from error


def read_json_list(file: str, kind: type = dict) -> list[Any]:
    """Return the list in a JSON file; a byte order mark is skipped.

    Args:
        file: Path of the file.
        kind: Type of the items, `dict` or `str`.

    Raises:
        ValueError: If the file is not such a list; the message says what it is instead, and what to do.
    """
    rows = read_json(file, kind)
    names = "strings" if kind is str else "objects"
    if isinstance(rows, dict):
        raise ValueError(f"{file} is not a list of JSON {names}, {_describe_object(file, rows, kind)}.")
    if not isinstance(rows, list):
        raise ValueError(f"{file} is not a list of JSON {names}, but {json.dumps(rows)[:60]}.")
    for index, row in enumerate(rows):
        if not isinstance(row, kind):
            raise ValueError(f"{file} is not a list of JSON {names}: item {index} is {json.dumps(row)[:60]}.")
    return rows


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _describe_object(file: str, content: dict[str, Any], kind: type) -> str:
    """Describe an object that was found instead of a list, and what to do about it."""
    keys = ", ".join(map(repr, list(content)[:8])) or "no keys"
    lists = [name for name, value in content.items() if isinstance(value, list)]
    remedy = f"save its list {lists[0]!r} as a separate file" if lists else "put the rows into a list"
    alternative = f", or give the file as a dataset, since {REMEDY.format(file)}" if kind is dict else ""
    return f"but one object with {keys}: {remedy}{alternative}"
