"""The choice of the right caption: SugarCrepe, ARO, VL-CheckList, Winoground. Nothing is trained."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel

from ..calibration_albef import MatchCalibration, matching_log_odds
from ..data import InvalidSampleError, SkipReason, drop_image_columns
from ..data.pair_choices import (
    IMAGE_NAMES,
    NAMES,
    captions_of,
    load_pair_choice,
    read_pair_choices,
    require_names,
)
from ..data.scene_tasks import SceneChoices
from ..evaluation.text_only_baseline import text_only_answers
from ..processing_albef import tokenize
from ..retrieval_albef import MAX_TOKENS, ImageEncoder, encode_texts, match
from .arguments import PairChoiceArguments
from .base import Rows, TextLimit
from .base_rows import RowTask
from .retrieval import PairTask

STAGES = {"itc": "ITC", "itm": "ITM", "calibrated": "calibrated"}  # what captions are scored by
Scores = list[list[float]]  # of each image of a row with each caption


class PairChoiceTask(PairTask, RowTask):
    """Rows: `image`, `caption`, `wrong_caption` (a text or a list of texts), and optionally `category`.

    For the names and forms of benchmarks see `data/pair_choices.py`.
    """

    name = "pair_choice"
    protocol = (
        "How often the right caption of an image has a higher score than every wrong one, by similarity (itc) and by "
        "the log-odds of matching (itm)."
    )
    arguments_class = PairChoiceArguments
    metric = "itm_accuracy"
    columns = ()
    optional_columns = NAMES
    image_columns = IMAGE_NAMES
    synthetic_data = SceneChoices

    def validation_rows(self) -> Rows:
        """Return the rows to evaluate on.

        Raises:
            ValueError: If they have another form.
        """
        files = self.args.validation_files
        if files:
            return read_pair_choices(files)
        rows = super().validation_rows()
        if not self.uses_synthetic_data:
            require_names(rows.column_names, self.args.dataset)
        return rows

    def preprocess_eval(self, row: Mapping[str, Any], issues: list[SkipReason]) -> dict[str, Any]:
        """Return the images and the captions of a row; captions that are cut to the same tokens are no choice."""
        choice = load_pair_choice(row, self.args.image_root)
        limit = TextLimit(self.args.max_words, min(MAX_TOKENS, self.positions))  # as in `encode_texts`
        captions = [self.clean(caption, issues, limit) for caption in choice.captions]
        tokens = tokenize(self.tokenizer, captions, truncation=True, max_length=limit.tokens)["input_ids"]
        if len({tuple(ids) for ids in tokens}) < len(tokens):
            raise InvalidSampleError(SkipReason.LABEL_UNKNOWN, f"captions with the same tokens: {captions}")
        return choice._replace(captions=captions)._asdict()

    def predict(self, model: PreTrainedModel, rows: Rows, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the scores of the images of each row with its captions."""
        predictions = []
        for batch in self.valid_batches(rows, indices):
            for row, scores in zip(batch, self._scores(model, batch), strict=True):
                texts = {"category": row["category"], "captions": row["captions"]}
                predictions.append({"row": row["row"], **texts, **scores})
        return predictions

    def _scores(self, model: PreTrainedModel, batch: list[dict[str, Any]]) -> Iterator[dict[str, Scores]]:
        """Yield the scores of each row of a batch; every image and every text is encoded once."""
        size = self.args.per_device_eval_batch_size
        images = [image for row in batch for image in row["images"]]
        encoder = ImageEncoder(model, self.processor, images, range(len(images)), size)
        image_embeds = encoder.embeds()
        texts = encode_texts(model, self.processor, [text for row in batch for text in row["captions"]], size)
        calibration = MatchCalibration.from_config(model.config)
        states = encoder.hidden_states()
        start = 0
        for row in batch:
            indices = torch.arange(start, start := start + len(row["captions"]))
            scores: dict[str, Scores] = {
                stage: [] for stage in STAGES if stage != "calibrated" or calibration.is_fitted
            }
            for index, hidden_states in islice(states, len(row["images"])):
                cosines = (texts.embeds[indices] * image_embeds[index]).sum(-1)
                log_odds = matching_log_odds(match(model, hidden_states, texts, indices, size))
                values = {"itc": cosines, "itm": log_odds, "calibrated": calibration.logit(log_odds, cosines)}
                for stage in scores:
                    scores[stage].append(values[stage].tolist())
            yield scores

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Return the accuracy by stage, overall and by category, with chance and the number of choices.

        Rows with two images also have Winoground's image score, each caption chooses its image, and group score, both.
        """
        metrics = _accuracies(predictions)
        categories = sorted({prediction["category"] for prediction in predictions})
        for category in categories if len(categories) > 1 else ():
            group = [prediction for prediction in predictions if prediction["category"] == category]
            metrics |= {f"{name}/{category}": value for name, value in _accuracies(group).items()}
        return metrics

    def baselines(self, train_rows: Rows, rows: Rows) -> dict[str, float]:
        """Return what a classifier of the texts reaches, trained on the rows of other captions."""
        if not self.args.text_only_baseline:
            return {}
        choices = []
        for row in drop_image_columns(rows):
            try:
                (caption, *others), wrong = captions_of(row)
            except InvalidSampleError:  # counted by the evaluation
                continue
            if wrong and not others:
                choices.append((caption, wrong))
        # An image has several wrong captions in several rows; its right caption is in one half.
        halves = [[choice for choice in choices if zlib.crc32(choice[0].encode()) % 2 == half] for half in (0, 1)]
        if not all(halves):
            return {}
        found = _text_only_choices(halves[0], halves[1]) + _text_only_choices(halves[1], halves[0])
        return {"text_only_accuracy": 100 * fmean(found)}

    def format_metrics(self, metrics: dict[str, float], rows: Rows) -> str:
        """Return the accuracies as a table."""
        titles = STAGES | {"chance": "chance"}
        stages = [stage for stage in titles if f"{stage}_accuracy" in metrics]
        header = "".join(f"{titles[stage]:>12s}" for stage in stages)
        lines = ["choice of the caption, accuracy in %", f"{'':24s}{header}{'choices':>10s}"]
        shown = set()
        for name in [name for name in metrics if name.partition("/")[0] == "choices"]:
            category = name.removeprefix("choices")
            names = [f"{stage}_accuracy{category}" for stage in stages]
            values = "".join(f"{metrics[accuracy]:12.1f}" for accuracy in names)
            lines.append(f"{category.removeprefix('/') or 'all':24s}{values}{metrics[name]:10.0f}")
            shown |= {name, *names}
        others = [name for name in metrics if name not in shown and not name.startswith("rows")]
        return "\n".join(lines + [f"{name:28s} {metrics[name]:8.2f}" for name in others])


def _accuracies(predictions: list[dict[str, Any]]) -> dict[str, float]:
    """Return the accuracy of each stage in percent, that of chance, and the number of predictions."""
    metrics = {}
    for stage in [stage for stage in STAGES if stage in predictions[0]]:
        captions = [_chooses_own(row[stage]) for row in predictions]
        metrics[f"{stage}_accuracy"] = 100 * fmean(captions)
        if len(predictions[0][stage]) == 2:
            images = [_chooses_own([*zip(*row[stage], strict=True)]) for row in predictions]
            both = [text and image for text, image in zip(captions, images, strict=True)]
            metrics |= {f"{stage}_image_accuracy": 100 * fmean(images), f"{stage}_group_accuracy": 100 * fmean(both)}
    chance = fmean(1 / len(row["captions"]) ** len(row["itc"]) for row in predictions)
    return metrics | {"chance_accuracy": 100 * chance, "choices": len(predictions)}


def _chooses_own(scores: Sequence[Sequence[float]]) -> bool:
    """Return whether the score on the diagonal is the highest of each row; ties and NaN count against it."""
    return all(row[own] > other for own, row in enumerate(scores) for index, other in enumerate(row) if index != own)


def _text_only_choices(train: list[tuple[str, list[str]]], choices: list[tuple[str, list[str]]]) -> list[float]:
    """Return the probability of each choice to be right, by a classifier of the captions of other choices."""
    texts = [text for caption, wrong in train for text in (caption, *wrong)]
    labels = [label for _, wrong in train for label in (True, *[False] * len(wrong))]
    queries = [text for caption, wrong in choices for text in (caption, *wrong)]
    answers = iter(text_only_answers(texts, labels, queries))
    found = []
    for _, wrong in choices:
        right, *others = islice(answers, 1 + len(wrong))
        equal = sum(other == right for other in others)
        found.append(1 / (1 + equal) if right or equal == len(others) else 0.0)
    return found


TASK = PairChoiceTask
