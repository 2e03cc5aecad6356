"""Read texts, answers and images of rows in the forms in which datasets store them."""

import ast
import base64
import binascii
import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from ..utils.redaction import redact

TEXT_KEYS = ("caption", "raw", "text", "sentence")  # keys of an object that contains a text; the first match is used
ANSWER_KEYS = ("answer", "answers", "text")
KEYS = {name: TEXT_KEYS for name in ("caption", "text", "sentence", "question")} | {"answer": ANSWER_KEYS}
IMAGE_COLUMNS = ("image", "images", "left_image", "right_image")

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # but not C://
DATA_URI = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
BASE64_IMAGE = re.compile(
    r"[/_]9j[/_]|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK|Qk[0-3]"
)  # JPEG, PNG, GIF, WebP, TIFF, BMP
SHORTEST_BASE64 = 64  # characters; no image is smaller, and few file names are that long and have no dot
REFUSED_SHARE = 0.5  # of rows in an unknown form: then the file has that form, and not only a few odd rows
MAX_DEPTH = 8  # lists and objects around a text
CONTAINERS = {"[": "]", "(": ")", "{": "}"}
BEGINS_LIKE_LIST = re.compile(r"""\[\s*(['"]|\{\s*['"])""")
QUOTED_WORD = re.compile(r"""\[\s*(['"])[^'"]*\1\s+\w[^'"]*\]""")  # ['n' out] starts like a list, but is a text
QUOTED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(\s*(?=['"]))?""", re.DOTALL)


def flatten_texts(value: Any, keys: Sequence[str] = TEXT_KEYS, levels: int = MAX_DEPTH) -> list[Any]:
    """Return the texts of a row as a flat list.

    Args:
        value: A text, a list of texts, an object or a list of objects that contain texts, or any of these written as
            text in JSON or Python, as in CSV files.
        keys: Possible keys of the text of an object.
        levels: Maximum nesting depth; deeper values are returned as they are.

    Returns:
        The texts. Other values, such as numbers, `None` and objects without any of the keys, are returned as they are.
    """
    value = value.tolist() if isinstance(value, np.ndarray) else value
    inner = value
    if isinstance(value, str):
        inner = parse_written_list(value)
        if keys == ANSWER_KEYS and isinstance(inner, Mapping) and not {*keys} & {*inner}:
            inner = value  # an answer in braces is a text
    elif isinstance(value, Mapping):
        inner = next((value[key] for key in keys if key in value), value)
    if isinstance(inner, (list, tuple)) and levels:
        return [text for item in inner for text in flatten_texts(item, keys, levels - 1)]
    return [value] if inner is value or not levels else flatten_texts(inner, keys, levels - 1)


def parse_written_list(text: str) -> Any:
    """Return the list or object that is written as text; any other text is returned as it is."""
    stripped = text.strip()
    if CONTAINERS.get(stripped[:1]) != stripped[-1:]:
        return text
    for parse in (json.loads, _parse_literal):
        try:
            value = parse(stripped)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, (list, Mapping)):
            return value
        return list(value) if isinstance(value, tuple) and all(isinstance(item, str) for item in value) else text
    return [] if BEGINS_LIKE_LIST.match(stripped) and not QUOTED_WORD.fullmatch(stripped) else text


def answer_text(answer: Any) -> str | None:
    """Return an answer as text: 2.0 as "2", True as "true"; `None` for values that are not answers, such as NaN."""
    answer = answer.item() if isinstance(answer, np.generic) else answer
    if isinstance(answer, bytes):
        answer = answer.decode("utf-8", errors="replace")
    if isinstance(answer, bool):
        return str(answer).lower()
    if isinstance(answer, int):
        return str(answer)
    if isinstance(answer, (float, Decimal)):
        return _number_text(float(answer))
    return answer if isinstance(answer, str) and answer.strip() else None


def is_absent(value: Any) -> bool:
    """Return True if a row has no value: `None`, or the NaN that pandas uses instead."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_address(value: Any) -> bool:
    """Return True for an address, such as https://..., which is never downloaded."""
    return isinstance(value, str) and ADDRESS.match(value) is not None


def decode_base64_image(value: str | bytes) -> bytes | None:
    """Return the encoded image of a data URI or a base64 text; `None` for anything else.

    Raises:
        ValueError: If a data URI cannot be decoded.
    """
    if isinstance(value, bytes):
        if not BASE64_IMAGE.match(value[:16].decode("latin-1")):
            return None
        value = value.decode("latin-1")
    uri = DATA_URI.match(value)
    if not uri and (len(value) < SHORTEST_BASE64 or not BASE64_IMAGE.match(value)):
        return None
    text = re.sub(r"\s+", "", value[uri.end() if uri else 0 :]).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        if uri:
            raise ValueError(f"the data URI cannot be decoded: {error}") from error
        return None


def require_readable(rows: Sequence[Mapping[str, Any]], source: str, indices: Sequence[int] | None = None) -> None:
    """Refuse rows if the texts or images of half of them have an unknown form.

    If fewer are concerned, or rows are merely invalid, such as an empty caption or a missing file, the row readers
    skip and count them.

    Args:
        rows: Rows of any task.
        source: Name of their source, for the error message.
        indices: Indices of the rows to check; default: all rows.

    Raises:
        ValueError: If an object has none of the known keys, or an image is an address, in half of the rows.
    """
    indices = range(len(rows)) if indices is None else indices
    problems = {index: problem for index in indices if (problem := _row_problem(rows[index]))}
    if problems and len(problems) >= REFUSED_SHARE * len(indices):
        index, (column, description) = next(iter(problems.items()))
        count = f" ({len(problems)} of {len(indices)} rows cannot be read)" if len(problems) > 1 else ""
        raise ValueError(f"{redact(source)}: {column!r} of row {index} is {description}.{count}")


def _row_problem(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first column with an unknown form, and a description of its value."""
    for name, value in row.items():
        problem = _image_problem(value) if name in IMAGE_COLUMNS else _text_problem(value, KEYS.get(name))
        if problem:
            return name, problem
    return None


def _text_problem(value: Any, keys: Sequence[str] | None) -> str | None:
    if keys is None or isinstance(value, str) and value[:1] not in CONTAINERS:
        return None
    unknown = next((text for text in flatten_texts(value, keys) if isinstance(text, Mapping)), None)
    return unknown_keys(unknown, keys) if unknown is not None else None


def _image_problem(value: Any) -> str | None:
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_image_problem, value)), None)
    if isinstance(value, Mapping):
        if not {"bytes", "path"} & {*value}:
            return unknown_keys(value, ("path", "bytes"))
        value = value.get("path") if value.get("bytes") is None else None
    return address_problem(value) if isinstance(value, str) and is_address(value) else None


def unknown_keys(value: Mapping[str, Any], known: Sequence[str]) -> str:
    """Describe an object that has none of the known keys, for an error message."""
    names = ", ".join(map(str, value)) or "no key"
    return f"an object with {names}, but without {' or '.join(known)}: rename one of its keys"


def address_problem(address: str) -> str:
    """Describe an image that is given by its address, for an error message."""
    return (
        f"an address ({redact(address)[:100]}), and nothing is downloaded: download the images, for example with "
        "img2dataset, and give their paths"
    )


def _number_text(number: float) -> str | None:
    if not math.isfinite(number):
        return None
    if number.is_integer() and abs(number) < 1e15:
        return str(int(number))
    single = np.float32(number) if abs(number) < 1e38 else math.inf
    return str(single) if float(single) == number else repr(number)  # 0.1 in a float32 column, not 0.10000000149


def _parse_literal(text: str) -> Any:
    """Parse a Python literal; adjacent strings, as printed by NumPy, are separate items."""
    return ast.literal_eval(QUOTED.sub(lambda match: match[1] + ("" if match[2] is None else ", "), text))
