"""Hints at the right spelling of names."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def closest(name: str, names: Iterable[str]) -> str:
    """Return a hint at the right spelling of a misspelled name, or nothing."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f"; did you mean {matches[0]}?" if matches else ""


def refuse_unknown(settings: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse settings of an `AlbefConfig`, at any depth, that it does not have.

    Args:
        settings: Values by name, with dictionaries for the parts of the model.
        known: A dictionary with all names.
        prefix: The part that these settings belong to, such as `text_config.`.
    """
    for name, value in settings.items():
        if name not in known:
            parts = [part for part in known if part.endswith("_config") and name in (known[part] or ())]
            hint = f"; move it to {' or '.join(parts)}" if parts else closest(name, known)
            raise ValueError(f"An AlbefConfig has no setting {prefix}{name}{hint}")
        if name.endswith("_config") and isinstance(value, dict) and isinstance(known[name], dict):
            refuse_unknown(value, known[name], f"{name}.")
