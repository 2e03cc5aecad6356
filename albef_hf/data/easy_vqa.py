"""easy-VQA (PyPI: easy-vqa, MIT) as annotations of the original's format.

    python -m albef_hf.data.easy_vqa FOLDER

writes `train.json`, `validation.json` (a tenth of the training pictures), `test.json` (the official test) and
`answer_list.json` for `train/finetune.py --task vqa`.
"""

import argparse
import json
import sys
from pathlib import Path


def read_easy_vqa() -> tuple[list[dict], list[dict], list[str]]:
    """Rows of the official training and test questions, with absolute paths of the pictures, and all answers.

    Raises:
        ImportError: If the package is not installed.
    """
    import easy_vqa

    splits = []
    for questions, paths in (
        (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    ):
        splits.append(
            [
                {
                    "question_id": number,
                    "image": str(Path(paths[image]).resolve()),
                    "question": question,
                    "answer": answer,
                    "answer_type": "yes/no" if answer in ("yes", "no") else "other",
                    "dataset": "easy-vqa",
                }
                for number, (question, answer, image) in enumerate(zip(*questions, strict=True))
            ]
        )
    return splits[0], splits[1], easy_vqa.get_answers()


def main(arguments: list[str]) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the JSON files go")
    folder = parser.parse_args(arguments).folder
    try:
        train, test, answers = read_easy_vqa()
    except ImportError:
        sys.exit("error: the questions come with a package: pip install easy-vqa")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = sorted({row["image"] for row in train})
    held_out = set(pictures[::10])
    contents = {
        "train": [row for row in train if row["image"] not in held_out],
        "validation": [row for row in train if row["image"] in held_out],
        "test": test,
        "answer_list": answers,
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")
        print(f"{folder / name}.json: {len(content)}")


if __name__ == "__main__":
    main(sys.argv[1:])
