"""Examples that visitors can pick instead of uploading an image."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import Scenes, is_blank
from ..search.image_sources import image_suffixes
from .inputs import MAX_LINES

MAX_EXAMPLES = 6
CAPTIONS_PER_SCENE = 3
SCENE_QUESTION = "how many things are there?"


@dataclass
class Example:
    """An image to pick, and what the text fields are filled with.

    Args:
        path: Path of the image.
        captions: Captions to score, one per line.
        text: Text whose words are located in the image.
        question: Question about the image.
    """

    path: str
    captions: str = ""
    text: str = ""
    question: str = ""


def draw_scenes(folder: str) -> list[Example]:
    """Draw built-in scenes into a folder, each with its caption and those of two other scenes."""
    scenes = list(Scenes(MAX_EXAMPLES, seed=7, image_size=240))
    captions = [_caption(scene["objects"]) for scene in scenes]
    examples = []
    for index, scene in enumerate(scenes):
        path = f"{folder}/scene_{index}.png"
        scene["image"].save(path)
        choices = [captions[index - step] for step in range(CAPTIONS_PER_SCENE)]
        examples.append(Example(path, captions="\n".join(choices), text=captions[index], question=SCENE_QUESTION))
    return examples


def find_images(folder: str) -> list[Example]:
    """Return the first images of a folder, ordered by name.

    A text file of the same name as an image, such as `dog.txt` beside `dog.jpg`, has captions to score, one per line
    and at most `MAX_LINES`; the words of the first are located.

    Raises:
        ValueError: If there is none, or a text file is not UTF-8.
    """
    suffixes = image_suffixes()
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in suffixes)
    if not paths:
        raise ValueError(f"--examples {folder} contains no image.")
    return [_read_example(path) for path in paths[:MAX_EXAMPLES]]


def _read_example(path: Path) -> Example:
    texts = path.with_suffix(".txt")
    try:
        lines = texts.read_text(encoding="utf-8-sig").splitlines() if texts.is_file() else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{texts} is not UTF-8 ({error}). Save it as UTF-8, or remove it.") from error
    captions = [line.strip() for line in lines if not is_blank(line)][:MAX_LINES]
    return Example(str(path), "\n".join(captions), text=captions[0] if captions else "")


def _caption(objects: list[dict[str, Any]]) -> str:
    *others, last = [_noun_phrase(thing) for thing in objects]
    return f"{', '.join(others)} and {last}"


def _noun_phrase(thing: dict[str, Any]) -> str:
    article = "an" if thing["color"][0] in "aeiou" else "a"
    return f"{article} {thing['color']} {thing['shape']}"
