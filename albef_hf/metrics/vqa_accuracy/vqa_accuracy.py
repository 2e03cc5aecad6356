"""Module of `evaluate` for the metric in `scoring.py`."""

from collections.abc import Sequence

import datasets
import evaluate

from .scoring import answer_accuracy, normalize_answer, vqa_accuracy

__all__ = ["VqaAccuracy", "answer_accuracy", "normalize_answer", "vqa_accuracy"]

DESCRIPTION = """\
Accuracy of answers to questions about images, as in VQA v2: for each subset of nine of the ten human answers, an
answer is fully correct if it equals at least three of them. The mean is reported in percent.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions: One answer per question, a string.
    references: For each question the human answers, strings; ten in VQA, at least one.
    answer_types: Optional, one string per question: "yes/no", "number" or "other" in VQA.
    question_types: Optional, one string per question: its first words in VQA.
Returns:
    `accuracy`; with answer types also `per_answer_type`; with question types also `per_question_type`; in percent.
"""

CITATION = """\
@inproceedings{goyal2017making,
  title = {Making the {V} in {VQA} Matter: Elevating the Role of Image Understanding in Visual Question Answering},
  author = {Goyal, Yash and Khot, Tejas and Summers-Stay, Douglas and Batra, Dhruv and Parikh, Devi},
  booktitle = {Conference on Computer Vision and Pattern Recognition},
  year = {2017},
}
@inproceedings{antol2015vqa,
  title = {{VQA}: Visual Question Answering},
  author = {Antol, Stanislaw and Agrawal, Aishwarya and Lu, Jiasen and Mitchell, Margaret and Batra, Dhruv
            and Zitnick, C. Lawrence and Parikh, Devi},
  booktitle = {International Conference on Computer Vision},
  year = {2015},
}
"""


class VqaAccuracy(evaluate.Metric):
    """Provide `vqa_accuracy` for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
            reference_urls=["https://visualqa.org/evaluation.html", "https://github.com/GT-Vision-Lab/VQA"],
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        answer_types: Sequence[str] | None = None,
        question_types: Sequence[str] | None = None,
    ) -> dict[str, float | dict[str, float]]:
        return vqa_accuracy(predictions, references, answer_types, question_types)
