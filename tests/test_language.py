"""The words of the documents and the code: American spelling, and the field's terms instead of private ones."""

import re

import pytest
from paths import REPOSITORY

REPLACED = (
    r"\b(pictures?|colours?|coloured|goes on|gone on|is told|are told|as far as|nobody|stays at home"
    r"|likeliest|normalis\w+|initialis\w+|centre|grey|favour\w*|behaviour|neighbour\w*)\b"
)
# Former names that are still understood, captions of the built-in scenes, BLIP's prompt, a folder on a user's disk.
ALLOWED = {
    "albef_hf/data/__init__.py": 1,
    "albef_hf/data/scene_tasks.py": 4,
    "albef_hf/data/scenes.py": 2,
    "albef_hf/demo/arguments.py": 1,
    "albef_hf/search/cli.py": 2,
    "albef_hf/search/index.py": 5,
    "albef_hf/tasks/arguments.py": 1,
    "albef_hf/tasks/captioning.py": 1,
    "demo/README.md": 3,
    "docs/guides/search.md": 1,
}
FILES = [
    path
    for folder in ("albef_hf", "train", "demo", "docs")
    for path in (REPOSITORY / folder).rglob("*")
    if path.suffix in {".md", ".py", ".yaml", ".sbatch"}
]
FILES += [REPOSITORY / name for name in ("CONTRIBUTING.md", "README.md")]


@pytest.mark.parametrize("path", sorted(FILES), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_words_are_the_fields(path):
    found = re.findall(REPLACED, path.read_text(encoding="utf-8"), re.IGNORECASE)
    assert len(found) == ALLOWED.get(str(path.relative_to(REPOSITORY)), 0), found
