"""Module of `evaluate` for the metrics in `scoring.py`."""

from collections.abc import Sequence

import datasets
import evaluate

from .scoring import caption_scores, caption_words

__all__ = ["CaptionScores", "caption_scores", "caption_words"]

DESCRIPTION = """\
Agreement of captions with those that people wrote for the same images: CIDEr-D, BLEU-4 and ROUGE-L, as in COCO.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions: One caption per image, a string.
    references: The captions of each image, strings; at least one.
Returns:
    `cider`, times 100; `bleu4` and `rouge_l` in percent.
"""

CITATION = """\
@inproceedings{vedantam2015cider,
  title = {{CIDEr}: Consensus-based Image Description Evaluation},
  author = {Vedantam, Ramakrishna and Zitnick, C. Lawrence and Parikh, Devi},
  booktitle = {Conference on Computer Vision and Pattern Recognition},
  year = {2015},
}
@article{chen2015coco,
  title = {Microsoft {COCO} Captions: Data Collection and Evaluation Server},
  author = {Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh
            and Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  journal = {arXiv:1504.00325},
  year = {2015},
}
"""


class CaptionScores(evaluate.Metric):
    """Provide `caption_scores` for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
            reference_urls=["https://github.com/salaniz/pycocoevalcap", "https://arxiv.org/abs/1504.00325"],
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        return caption_scores(predictions, references)
