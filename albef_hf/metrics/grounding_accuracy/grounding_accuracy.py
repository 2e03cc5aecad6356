"""Module of `evaluate` for the metric in `scoring.py`."""

from collections.abc import Sequence

import datasets
import evaluate

from .scoring import Box, box_iou, grounding_accuracy

__all__ = ["Box", "GroundingAccuracy", "box_iou", "grounding_accuracy"]

DESCRIPTION = """\
Grounding of expressions in images, as in RefCOCO+: the share of expressions whose predicted box has an intersection
over union (IoU) of at least 0.5 with the true box, and the share whose hottest pixel is in the true box, in percent.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions: One box per expression: left, top, width and height in pixels.
    references: The true boxes, likewise.
    points: Optional, the hottest pixel of the heat map of each expression, x and y.
    splits: Optional, the split of each expression: "val", "testA" or "testB" in RefCOCO+.
Returns:
    `accuracy`; with points also `pointing`; with splits also `per_split`, the same for each split; in percent.
"""

CITATION = """\
@inproceedings{yu2016modeling,
  title = {Modeling Context in Referring Expressions},
  author = {Yu, Licheng and Poirson, Patrick and Yang, Shan and Berg, Alexander C. and Berg, Tamara L.},
  booktitle = {European Conference on Computer Vision},
  year = {2016},
}
@inproceedings{li2021align,
  title = {Align before Fuse: Vision and Language Representation Learning with Momentum Distillation},
  author = {Li, Junnan and Selvaraju, Ramprasaath R. and Gotmare, Akhilesh Deepak and Joty, Shafiq and Xiong, Caiming
            and Hoi, Steven},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2021},
}
"""


class GroundingAccuracy(evaluate.Metric):
    """Provide `grounding_accuracy` for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        box = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": box, "references": box}),
            reference_urls=["https://github.com/lichengunc/refer", "https://github.com/salesforce/ALBEF"],
        )

    def _compute(
        self,
        predictions: Sequence[Box],
        references: Sequence[Box],
        points: Sequence[Sequence[float]] | None = None,
        splits: Sequence[str] | None = None,
    ) -> dict[str, float | dict[str, dict[str, float]]]:
        return grounding_accuracy(predictions, references, points, splits)
