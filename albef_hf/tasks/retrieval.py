"""Image-text retrieval: Flickr30k, COCO (section 5 of the paper, the original's `Retrieval.py`)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from ..data import Findings, Issue, Pictures, load_image, pictures_of, usable_captions
from ..data.scene_tasks import SceneCaptions
from ..modeling_albef import AlbefForRetrieval
from ..retrieval_albef import MAX_TOKENS, RANKS, score_all
from ..utils.options import option, with_defaults
from .base import FineTuningOptions, Rows, Task, TextLimit, count_issues

SHOWN = 10  # best answers of each query that are written down


@dataclass
class RetrievalOptions(
    with_defaults(
        FineTuningOptions,
        epochs=10,
        batch_size=32,
        learning_rate=1e-5,
        min_learning_rate=1e-6,
        warmup_learning_rate=1e-5,
        warmup_steps=100,
    )
):
    """The paper's settings for Flickr30k (COCO: 5 epochs, 256 candidates)."""

    rerank: int = option(128, "candidates of each query that are reranked by matching")
    itc_weight: float = option(0.0, "weight of the cosine beside the matching score; 0: the paper")
    mismatch_weight: float = option(
        1.0,
        "weight of the logit of no match in the matching score; 1: log-odds, 0: the logit of a match alone, as the "
        "original's code",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "rerank")


class NumberedRows(Sequence):
    """Rows with the `number` of their picture, which rows of the same picture share.

    Args:
        rows: With `image_id`, or pictures named by paths; else each row is a picture of its own.
    """

    def __init__(self, rows: Rows):
        self.rows = rows
        numbers: dict[Any, int] = {}
        keys = enumerate(pictures_of(rows))
        self.numbers = [index if key is None else numbers.setdefault(key, index) for index, key in keys]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], "number": self.numbers[index]}


class PairTask(Task):
    """A task that is trained on pairs of picture and text, by contrast and matching."""

    head = AlbefForRetrieval

    def train_rows(self) -> Rows:
        """Rows to train on, with the number of their picture."""
        return NumberedRows(super().train_rows())

    def read(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """One of the captions of a picture."""
        issues: list[Issue] = []
        captions = usable_captions(row[self.columns[1]])
        text = self.clean(captions[rng.integers(len(captions))], issues, self.training_limit)
        return {
            "pixel_values": self.pixels(row["image"], rng),
            "text": text,
            "number": row["number"],
            "issues": issues,
        }

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pairs, and the number of each picture as label."""
        return {
            **self.tokenize([sample["text"] for sample in samples], self.training_limit),
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "labels": torch.tensor([sample["number"] for sample in samples]),
            "issues": count_issues(samples),
        }

    def look(self, row: Mapping[str, Any], issues: list[Issue]) -> dict[str, Any]:
        """The first of the captions, and the picture."""
        text = self.clean(usable_captions(row[self.columns[1]])[0], issues, self.evaluation_limit)
        return {"text": text, "image": load_image(row["image"], self.options.image_root)}


class Retrieval(PairTask):
    """Rows: `image`, `caption` (a text or a list of them), and maybe `image_id`."""

    name = "retrieval"
    protocol = (
        "All pairs are ranked by similarity (itc), and the best candidates of each query again by the log-odds of "
        "matching (itm); recall at 1, 5 and 10 of the texts of a picture, and of the pictures of a text, and its mean."
    )
    options_class = RetrievalOptions
    metric = "itm_r_mean"
    columns = ("image", "caption")
    optional_columns = ("image_id",)
    scenes = SceneCaptions

    @torch.no_grad()
    def evaluate(
        self, model: PreTrainedModel, rows: Rows, accelerator: Accelerator
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Recall of both directions among all pictures; processes share the reranking."""
        pictures = Pictures(rows, self.options.image_root, self.columns[1])
        limit = TextLimit(self.options.max_words, MAX_TOKENS)
        issues: list[Issue] = []
        for text in itertools.chain(*pictures.captions):
            self.clean(text, issues, limit)
        self.findings = Findings(pictures.bad_rows, len(issues))
        self.refuse_nothing(pictures)
        options = self.options
        weights = {"itc_weight": options.itc_weight, "mismatch_weight": options.mismatch_weight}
        share = (accelerator.process_index, accelerator.num_processes)
        queries = (pictures, pictures.captions, options.rerank, options.eval_batch_size)
        with accelerator.autocast():
            scores = score_all(model, self.processor, *queries, share, accelerator.reduce)
        metrics = scores.metrics(**weights)
        for step in ("itc", "itm"):
            for way in ("text", "image"):
                metrics[f"{step}_{way}_r_mean"] = fmean(metrics[f"{step}_{way}_r{k}"] for k in RANKS)
            metrics[f"{step}_r_mean"] = fmean(metrics[f"{step}_{way}_r_mean"] for way in ("text", "image"))
        texts = [text for several in pictures.captions for text in several]
        best_texts = scores.image_to_text.reranked(**weights)[:, :SHOWN].tolist()
        best_images = scores.text_to_image.reranked(**weights)[:, :SHOWN].tolist()
        predictions = [
            {"image": i, "row": pictures.numbers[i], "texts": [texts[j] for j in found]}
            for i, found in enumerate(best_texts)
        ]
        predictions += [{"text": text, "images": found} for text, found in zip(texts, best_images, strict=True)]
        return metrics | self.findings.counts(), predictions

    def baselines(self, train_rows: Rows, rows: Rows) -> dict[str, float]:
        """What a random order would reach."""
        pictures = {("row", number) if key is None else key for number, key in enumerate(pictures_of(rows))}
        return {"chance_r1": 100 / max(len(pictures), 1)}


TASK = Retrieval
