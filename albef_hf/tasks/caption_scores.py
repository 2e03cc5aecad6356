"""How the scores of captions agree with people: Kendall's tau on ratings, such as those of Flickr8k's experts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..calibration_albef import MatchCalibration, matching_log_odds
from ..data import InvalidSampleError, SkipReason
from ..data.caption_ratings import read_flickr8k_ratings
from ..data.captions import brief
from ..data.row_values import answer_text, flatten_texts
from ..data.scene_tasks import SceneRatings
from .arguments import CaptionScoresArguments
from .base import Rows
from .base_rows import RowTask
from .retrieval import PairTask

VARIANTS = {"tau_b": "b", "tau_c": "c"}  # of Kendall's tau; c is that of SPICE and CLIPScore for these ratings


class CaptionScores(PairTask, RowTask):
    """Rows: `image`, `text`, `rating` (a number, or a list of them, one of each person)."""

    name = "caption_scores"
    protocol = (
        "Kendall's tau between the ratings of all people and the score of a caption: the similarity (itc), the "
        "log-odds of matching (itm), and the calibrated probability if the model is calibrated."
    )
    arguments_class = CaptionScoresArguments
    metric = "itm_tau_c"
    columns = ("image", "text", "rating")
    synthetic_data = SceneRatings

    def validation_rows(self) -> Rows:
        """Return the rows to evaluate on, from the files of Flickr8k if they are given."""
        if self.args.ratings:
            return read_flickr8k_ratings(self.args.ratings, self.args.captions)
        return super().validation_rows()

    def ratings(self, row: Mapping[str, Any]) -> list[float]:
        """Return the ratings of a row.

        Raises:
            InvalidSampleError: If there is none.
        """
        texts = [answer_text(rating) for rating in flatten_texts(row["rating"], ())]
        try:
            ratings = [float(text) for text in texts if text is not None]
        except ValueError:
            ratings = []
        if not ratings or len(ratings) < len(texts):
            raise InvalidSampleError(SkipReason.LABEL_UNKNOWN, f"{brief(row['rating'])} are not ratings")
        return ratings

    def preprocess_eval(self, row: Mapping[str, Any], issues: list[SkipReason]) -> dict[str, Any]:
        """Return the caption and the image; there has to be a rating."""
        self.ratings(row)
        return super().preprocess_eval(row, issues)

    def predict(self, model: PreTrainedModel, rows: Rows, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the scores of each caption."""
        calibration = MatchCalibration.from_config(model.config)
        predictions = []
        for batch in self.valid_batches(rows, indices):
            inputs = self.inputs(model, [row["text"] for row in batch], [row["image"] for row in batch])
            outputs = model(**inputs, return_dict=True)
            cosines = (outputs.image_embeds * outputs.text_embeds).sum(-1)
            scores = {"itc": cosines, "itm": matching_log_odds(outputs.itm_logits)}
            if calibration.is_fitted:
                scores["calibrated"] = calibration.logit(scores["itm"], cosines)
            values = torch.stack([*scores.values()], dim=1).double().tolist()
            predictions += [
                {"row": row["row"], "text": row["text"], **dict(zip(scores, value, strict=True))}
                for row, value in zip(batch, values, strict=True)
            ]
        return predictions

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Return Kendall's tau of each score with the ratings of all people one after the other, in percent."""
        from scipy.stats import kendalltau

        ratings = [self.ratings(rows[prediction["row"]]) for prediction in predictions]
        counts = [len(values) for values in ratings]
        metrics: dict[str, float] = {}
        for name in [name for name in ("itc", "itm", "calibrated") if name in predictions[0]]:
            scores = np.repeat([prediction[name] for prediction in predictions], counts)
            for metric, variant in VARIANTS.items():
                tau = kendalltau(scores, np.concatenate(ratings), variant=variant).statistic
                metrics[f"{name}_{metric}"] = 100 * float(np.nan_to_num(tau))  # of equal ratings, tau is not defined
        return metrics


TASK = CaptionScores
