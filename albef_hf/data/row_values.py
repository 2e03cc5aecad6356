"""Texts, answers and images of rows, in the forms in which datasets store them."""

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

from ..utils.options import redact

TEXT_KEYS = ("caption", "raw", "text", "sentence")  # of an object that holds a text, the first that it has
ANSWER_KEYS = ("answer", "answers", "text")
KEYS = {name: TEXT_KEYS for name in ("caption", "text", "sentence", "question")} | {"answer": ANSWER_KEYS}
IMAGE_COLUMNS = ("image", "images", "left_image", "right_image")

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # and not the drive of C://
DATA_URI = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
BASE64_IMAGE = re.compile(
    r"[/_]9j[/_]|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK|Qk[0-3]"
)  # JPEG, PNG, GIF, WebP, TIFF, BMP
SHORTEST_BASE64 = 64  # characters; no image is smaller, and few names of files are that long and without a dot
REFUSED_SHARE = 0.5  # of the rows in a form that no reader knows: it is the form of the file, and not that of odd rows
DEEPEST = 8  # lists and objects around a text
CONTAINERS = {"[": "]", "(": ")", "{": "}"}
BEGINS_LIKE_LIST = re.compile(r"""\[\s*(['"]|\{\s*['"])""")
QUOTED_WORD = re.compile(r"""\[\s*(['"])[^'"]*\1\s+\w[^'"]*\]""")  # ['n' out], which begins like a list and is a text
QUOTED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(\s*(?=['"]))?""", re.DOTALL)


def flatten_texts(value: Any, keys: Sequence[str] = TEXT_KEYS, levels: int = DEEPEST) -> list[Any]:
    """Return the texts of a row as one list, whatever they are nested in.

    Args:
        value: A text, a list of texts, an object or a list of objects that hold texts, or any of these written as text
            in JSON or Python, as in CSV files.
        keys: Names that the text of an object may have.
        levels: How deep texts may be nested; what lies deeper is returned as it is.

    Returns:
        Texts, and what is neither a text nor nested as it is: numbers, `None`, objects without any of the keys.
    """
    value = value.tolist() if isinstance(value, np.ndarray) else value
    inner = value
    if isinstance(value, str):
        inner = parse_written_list(value)
        if keys == ANSWER_KEYS and isinstance(inner, Mapping) and not {*keys} & {*inner}:
            inner = value  # an answer of braces is an answer
    elif isinstance(value, Mapping):
        inner = next((value[key] for key in keys if key in value), value)
    if isinstance(inner, (list, tuple)) and levels:
        return [text for item in inner for text in flatten_texts(item, keys, levels - 1)]
    return [value] if inner is value or not levels else flatten_texts(inner, keys, levels - 1)


def parse_written_list(text: str) -> Any:
    """Return the list or object that a text spells out; the text itself where it spells none."""
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
    """Return an answer as text: 2.0 as "2", True as "true"; `None` for what is no answer, such as NaN."""
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
    """Return whether a row has no value: `None`, or the NaN that pandas puts in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_address(value: Any) -> bool:
    """Return whether an image is named by an address, such as https://..., from which nothing is downloaded."""
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


def require_readable(rows: Sequence[Mapping[str, Any]], source: str, numbers: Sequence[int] | None = None) -> None:
    """Refuse rows if the texts or images of half of them are in a form that no row reader knows.

    Fewer of them, and rows that are merely bad, such as an empty caption or a missing file, are left to the row
    readers, which skip and count them.

    Args:
        rows: Rows of any task.
        source: Where they come from, for the error.
        numbers: Which of the rows to check; default: all of them.

    Raises:
        ValueError: If an object has none of the known keys, or an image is an address, in half of the rows.
    """
    numbers = range(len(rows)) if numbers is None else numbers
    problems = {number: problem for number in numbers if (problem := _row_problem(rows[number]))}
    if problems and len(problems) >= REFUSED_SHARE * len(numbers):
        number, problem = next(iter(problems.items()))
        count = f" ({len(problems)} of {len(numbers)} rows cannot be read)" if len(problems) > 1 else ""
        raise ValueError(f"{redact(source)}: {problem[0]!r} of row {number} is {problem[1]}.{count}")


def _row_problem(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first column in an unknown form, and what is wrong with it."""
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
    return address_problem(value) if is_address(value) else None


def unknown_keys(value: Mapping[str, Any], known: Sequence[str]) -> str:
    """Describe an object that has none of the known keys, for an error."""
    names = ", ".join(map(str, value)) or "no key"
    return f"an object with {names}, but without {' or '.join(known)}: rename one of its keys"


def address_problem(address: str) -> str:
    """Describe an image that is named by an address, for an error."""
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
    return str(single) if float(single) == number else repr(number)  # a float32 column says 0.1, not 0.10000000149


def _parse_literal(text: str) -> Any:
    """Read a Python literal; strings side by side, as NumPy prints them, are separate items."""
    return ast.literal_eval(QUOTED.sub(lambda match: match[1] + ("" if match[2] is None else ", "), text))
