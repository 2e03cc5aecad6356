"""Write rows of entailment that make a model look: entailed sentences with another photograph, as contradictions.

    python benchmarks/photographs/exchanged_rows.py entailment_train.json train.json exchanged.json

Nothing but the photograph tells such a row from the original. Both files go to
`albef finetune entailment --train_files entailment_train.json exchanged.json`.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COMMON_WORDS = 12  # the most frequent ones, such as "a" and "is", which say nothing about a photograph


def words(text: str) -> set[str]:
    """Return the distinct words of a text in lower case."""
    return set(re.findall(r"[a-z]+", text.lower()))


def caption_words(captions: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Return the words of the captions of each image, without those that are most common.

    Args:
        captions: Rows with `image` and a list of texts, `caption`.
    """
    of_image = {row["image"]: set().union(*map(words, row["caption"])) for row in captions}
    counts = Counter(word for found in of_image.values() for word in found)
    common = {word for word, _ in counts.most_common(COMMON_WORDS)}
    return {image: found - common for image, found in of_image.items()}


def exchanged_rows(
    rows: Sequence[Mapping[str, Any]], captions: Sequence[Mapping[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """Return the entailed sentences with the image of another row, as contradictions.

    No caption of that image has a word of the sentence, so it hardly entails the sentence, too. Sentences for which
    there is no such image are dropped.

    Args:
        rows: Rows of entailment, with `image`, `sentence` and `label`.
        captions: Captions of their images.
        seed: Another seed draws other images.

    Raises:
        ValueError: If an image has no captions.
    """
    of_image = caption_words(captions)
    images = sorted({row["image"] for row in rows})
    missing = [image for image in images if image not in of_image]
    if missing:
        raise ValueError(f"{len(missing)} images have no captions, such as {missing[0]}: use their caption file.")
    rng = np.random.default_rng(seed)
    exchanged = []
    for row in rows:
        if row["label"] != "entailment":
            continue
        said = words(row["sentence"])
        others = [image for image in images if said.isdisjoint(of_image[image])]
        if others:
            exchanged.append({**row, "image": others[rng.integers(len(others))], "label": "contradiction"})
    return exchanged


def main() -> None:
    """Write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="rows of entailment to train on")
    parser.add_argument("captions", type=Path, help="captions of their photographs")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows, captions = (json.loads(path.read_text(encoding="utf-8")) for path in (options.rows, options.captions))
    exchanged = exchanged_rows(rows, captions, options.seed)
    options.output.write_text(json.dumps(exchanged, indent=0) + "\n", encoding="utf-8")
    print(f"{len(exchanged):,} rows in {options.output}")


if __name__ == "__main__":
    main()
