"""Write easy-VQA (PyPI: easy-vqa, MIT) as annotations of the original's format.

    python -m albef_hf.data.easy_vqa FOLDER

writes `train.json`, `validation.json` (a tenth of the training images), `test.json` (the official test set) and
`answer_list.json`, for fine-tuning on the task vqa.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def read_easy_vqa() -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Return the rows of the official training and test questions, with absolute image paths, and all answers.

    Raises:
        ImportError: If the package is not installed.
    """
    import easy_vqa

    train = _rows(easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths())
    test = _rows(easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths())
    return train, test, easy_vqa.get_answers()


def _rows(questions: tuple[list[str], list[str], list[int]], paths: dict[int, str]) -> list[dict[str, Any]]:
    """Return one row per question; questions are three lists: texts, answers and image ids."""
    return [
        {
            "question_id": index,
            "image": str(Path(paths[image]).resolve()),
            "question": question,
            "answer": answer,
            "answer_type": "yes/no" if answer in ("yes", "no") else "other",
            "dataset": "easy-vqa",
        }
        for index, (question, answer, image) in enumerate(zip(*questions, strict=True))
    ]


def main(arguments: list[str]) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for the JSON files")
    folder = parser.parse_args(arguments).folder
    try:
        train, test, answers = read_easy_vqa()
    except ImportError:
        sys.exit("error: the package easy-vqa is missing: pip install easy-vqa")
    folder.mkdir(parents=True, exist_ok=True)
    images = sorted({row["image"] for row in train})
    held_out = set(images[::10])
    contents: dict[str, list[Any]] = {
        "train": [row for row in train if row["image"] not in held_out],
        "validation": [row for row in train if row["image"] in held_out],
        "test": test,
        "answer_list": answers,
    }
    for name, content in contents.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")
        print(f"{path}: {len(content)}")


if __name__ == "__main__":
    main(sys.argv[1:])
