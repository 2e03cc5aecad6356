"""CIDEr-D, BLEU-4 and ROUGE-L of captions: the scorers of COCO, which `pycocoevalcap` has, without its Java tokenizer.

CIDEr (arXiv 1411.5726), BLEU (Papineni et al. 2002), ROUGE (Lin 2004); github.com/salaniz/pycocoevalcap.
"""

import re
from collections.abc import Sequence
from typing import Any

# The contractions that the Penn Treebank splits, and words with hyphens, periods or digits in them.
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))\b")
_WORD = re.compile(r"n't|'\w+|\w+(?:[-./']\w+|[,:]\d+)*|[$%#&]")


def caption_words(text: str) -> str:
    """Return the words of a caption, in lower case and without punctuation, separated by spaces.

    This is what COCO's tokenizer, Stanford's of the Penn Treebank, makes of a caption, apart from rare cases.

    >>> caption_words("Two dogs, one isn't brown; a T-shirt.")
    "two dogs one is n't brown a t-shirt"
    """
    return " ".join(_WORD.findall(_CLITIC.sub(r" \1", text.lower().replace("’", "'"))))


def caption_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compare captions with those that people wrote for the same images.

    CIDEr-D weighs n-grams by how few images have them in a reference, so it depends on all images together.

    Args:
        predictions: One caption per image.
        references: The captions of each image, one or more.

    Returns:
        `cider`, of which a good caption has about 100 and one that equals all of its references 1,000; `bleu4` and
        `rouge_l` in percent.

    Raises:
        ValueError: If there is no image, an image has no reference, or lengths differ.
        ModuleNotFoundError: If pycocoevalcap is not installed.
    """
    if not predictions:
        raise ValueError("There is nothing to score: give the caption of at least one image.")
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions but {len(references)} references: give one of each for every image."
        )
    if not all(texts and not isinstance(texts, str) for texts in references):
        raise ValueError("The references of an image are missing or not a list: give a list of one or more.")
    bleu, cider, rouge = import_scorers()
    written = {image: [caption_words(text)] for image, text in enumerate(predictions)}
    known = {image: [caption_words(text) for text in texts] for image, texts in enumerate(references)}
    return {
        "cider": 100 * float(cider.compute_score(known, written)[0]),
        "bleu4": 100 * float(bleu.compute_score(known, written, verbose=0)[0][3]),
        "rouge_l": 100 * float(rouge.compute_score(known, written)[0]),
    }


def import_scorers() -> tuple[Any, Any, Any]:
    """Return the scorers of BLEU, CIDEr and ROUGE, which need neither Java nor the rest of pycocoevalcap.

    Raises:
        ModuleNotFoundError: If pycocoevalcap is not installed.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'The scores of captions need pycocoevalcap: pip install "albef_hf[captioning]"', name=error.name
        ) from error
    return Bleu(4), Cider(), Rouge()
