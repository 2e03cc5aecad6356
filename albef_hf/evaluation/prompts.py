"""Read the classes and the templates of zero-shot classification."""

from collections.abc import Sequence
from pathlib import Path

from ..zero_shot_albef import PLACE

FOLDER = Path(__file__).with_name("templates")


def template_lists() -> list[str]:
    """Return the names of the lists of templates that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def read_templates(values: Sequence[str]) -> list[str]:
    """Return templates, each with one place for a class.

    Args:
        values: Templates such as "a photo of a {}", files with one in each line, or names of lists of this package.

    Raises:
        ValueError: If a value is none of these.
    """
    templates = []
    for value in values:
        if PLACE in value:
            templates.append(value)
            continue
        path = FOLDER / f"{value}.txt" if value in template_lists() else Path(value)
        if not path.is_file():
            raise ValueError(
                f"templates contains {value!r}: pass a text with {PLACE}, a file with one in each line, or the name "
                f"of a list, {', '.join(template_lists())}."
            )
        templates += _lines(path)
    return templates


def read_classes(file: str) -> dict[str, str]:
    """Return the words for each class in a file.

    Each line has the label of a class, such as the name of its folder, and after a tab the words for it; without
    these, the words are the label, with spaces for underscores.

    Raises:
        ValueError: If the file cannot be read, has no line, or has a label twice.
    """
    try:
        lines = _lines(Path(file))
    except (OSError, ValueError) as error:
        raise ValueError(f"The classes in {file} cannot be read: {error}") from error
    classes: dict[str, str] = {}
    for line in lines:
        label, _, words = (part.strip() for part in line.partition("\t"))
        if label in classes:
            raise ValueError(f"{file} has the class {label!r} twice; remove one.")
        classes[label] = words or words_of(label)
    if not classes:
        raise ValueError(f"{file} has no class: write one in each line.")
    return classes


def words_of(label: str) -> str:
    """Return the words for a label, such as the name of a folder."""
    return label.replace("_", " ")


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]
