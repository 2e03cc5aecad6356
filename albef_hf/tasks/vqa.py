"""Visual question answering: VQA v2, Visual Genome, easy-VQA (section 5 of the paper, the original's `VQA.py`)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..data import BadSampleError, Issue, load_image
from ..data.scene_tasks import SceneQuestions
from ..finetuning import (
    FineTuningOptions,
    LabelTask,
    Rows,
    count_issues,
    flat,
    read_json_list,
)
from ..metrics.vqa_accuracy.vqa_accuracy import vqa_accuracy
from ..modeling_albef import AlbefForQuestionAnswering
from ..options import option, with_defaults

VISUAL_GENOME_WEIGHT = 0.5  # of its answers, which a single annotator has given


@dataclass
class VqaOptions(
    with_defaults(
        FineTuningOptions,
        epochs=8,
        batch_size=32,
        learning_rate=2e-5,
        min_learning_rate=1e-6,
        warmup_learning_rate=1e-5,
        warmup_steps=400,
    )
):
    """The paper's settings, and what belongs to questions alone."""

    answer_list: str | None = option(None, "JSON list of answers to choose from; default: those of the training data")
    vg_root: str | None = option(None, 'folder of the pictures of rows whose "dataset" is "vg"; default: image_root')
    rank_candidates: int = option(128, "answers whose first token is likeliest are scored whole")


def weighted_answers(row: Mapping[str, Any]) -> dict[str, float]:
    """The different answers of a row and their weights: shares of the annotators, and less for Visual Genome."""
    given = row["answer"]
    answers = [given] if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else []
    usable = [answer for answer in answers if isinstance(answer, str) and answer.strip()]
    if not usable:
        raise BadSampleError(Issue.CAPTION_EMPTY, repr(given)[:100])
    if row.get("dataset") == "vg":
        return dict.fromkeys(usable, VISUAL_GENOME_WEIGHT)
    return {answer: count / len(usable) for answer, count in Counter(usable).items()}


class VisualQuestionAnswering(LabelTask):
    """Rows: `image`, `question`, `answer` (a text, or a list of the annotators'), and maybe `question_id`."""

    name = "vqa"
    protocol = (
        "The likeliest of a list of answers; VQA accuracy with the official normalisation of answers, a share of the "
        "annotators who have given it."
    )
    head = AlbefForQuestionAnswering
    options_class = VqaOptions
    metric = "accuracy"
    columns = ("image", "question", "answer")
    scenes = SceneQuestions

    def read(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A question with its weighted answers."""
        issues: list[Issue] = []
        question, answers = self.clean(row["question"], issues), weighted_answers(row)
        pixels = self.augmentation(load_image(row["image"], self._root(row)), rng)[0]
        return {"pixel_values": pixels, "question": question, "answers": answers, "issues": issues}

    def _root(self, row: Mapping[str, Any]) -> str | None:
        return (
            self.options.vg_root or self.options.image_root if row.get("dataset") == "vg" else self.options.image_root
        )

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Questions, and all their answers one after the other."""
        answers = [answer for sample in samples for answer in sample["answers"]]
        tokens = self.processor.encode_answers(answers)
        return {
            **self.tokenize([sample["question"] for sample in samples]),
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "labels": tokens["labels"],
            "answer_counts": torch.tensor([len(sample["answers"]) for sample in samples]),
            "answer_weights": torch.tensor([weight for sample in samples for weight in sample["answers"].values()]),
            "issues": count_issues(samples),
        }

    def answer_list(self) -> list[str]:
        """The answers to choose from.

        Raises:
            ValueError: If the file is no list of texts.
        """
        if self.options.answer_list:
            answers = read_json_list(self.options.answer_list, str)
        elif self.built_in:
            answers = list(SceneQuestions.answers)
        else:
            counts: Counter[str] = Counter()
            for row in self.train_rows():
                try:
                    counts.update(weighted_answers(row).keys())
                except BadSampleError:
                    continue  # it is counted when it is read for training
            answers = [answer for answer, _ in counts.most_common()]
        if not answers:
            raise ValueError("There is no answer to choose from: give answer_list, or train_files with answers.")
        return answers

    def predict(self, model: PreTrainedModel, rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The likeliest answer of the list to each question."""
        answers, predictions = self.answer_list(), []
        tokens = self.processor.encode_answers(answers).to(model.device)

        def read(row: Mapping[str, Any]) -> dict[str, Any]:
            return {
                "question": self.clean(row["question"], []),
                "image": load_image(row["image"], self._root(row)),
                "question_id": row.get("question_id"),
            }

        for batch in self.readable(rows, numbers, read):
            inputs = self.inputs(model, [row["question"] for row in batch], [row["image"] for row in batch])
            found, probabilities = model.rank_answers(
                **inputs,
                answer_ids=tokens["input_ids"],
                answer_attention_mask=tokens["attention_mask"],
                k=self.options.rank_candidates,
            )
            predictions += [
                {
                    "row": row["row"],
                    "question_id": row["question_id"],
                    "question": row["question"],
                    "answer": answers[best],
                    "probability": round(probability, 4),
                }
                for row, best, probability in zip(
                    batch, found[:, 0].tolist(), probabilities[:, 0].tolist(), strict=True
                )
            ]
        return predictions

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """VQA accuracy, by answer type where the rows name it."""
        given = [rows[prediction["row"]]["answer"] for prediction in predictions]
        types = [rows[prediction["row"]].get("answer_type") for prediction in predictions]
        scores = vqa_accuracy(
            [prediction["answer"] for prediction in predictions],
            [[answers] if isinstance(answers, str) else list(answers) for answers in given],
            answer_types=types if all(types) and types else None,
        )
        return flat(scores)

    def text_and_label(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """The question, and the answer that most annotators have given."""
        return self.clean(row["question"], []), max((answers := weighted_answers(row)), key=answers.get)


TASK = VisualQuestionAnswering
