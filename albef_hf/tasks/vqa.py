"""Visual question answering: VQA v2, Visual Genome, easy-VQA (section 5 of the paper, the original's `VQA.py`)."""

import contextlib
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..data import BadSampleError, Issue, load_image, without_pictures
from ..data.annotations import read_json_list
from ..data.pairs import brief
from ..data.row_values import ANSWER_KEYS, answer_text, flatten_texts, is_absent, unknown_keys
from ..data.scene_tasks import SceneQuestions
from ..metrics.vqa_accuracy.vqa_accuracy import vqa_accuracy
from ..modeling_albef import AlbefForQuestionAnswering
from ..processing_albef import AlbefProcessor, encodable, tokenize
from ..utils.options import option, with_defaults
from .base import (
    FineTuningOptions,
    LabelTask,
    Rows,
    TextLimit,
    count_issues,
    flat,
)

TEST_WORDS = 50  # of a question in the evaluation, where the original cuts no tokens
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
        max_tokens=25,
    )
):
    """The paper's settings, and what belongs to questions alone."""

    answer_list: str | None = option(None, "JSON list of answers to choose from; default: those of the training data")
    vg_root: str | None = option(None, 'folder of the pictures of rows whose "dataset" is "vg"; default: image_root')
    rank_candidates: int = option(128, "answers whose first token is likeliest are scored whole")


def given_answers(row: Mapping[str, Any]) -> list[str]:
    """Return what annotators have answered, as texts.

    They are a text or number, a list of them, VQA's own list of objects with an `answer` each, or a list that is
    written as text.
    """
    answers = map(answer_text, flatten_texts(row.get("answer"), ANSWER_KEYS))
    return [encodable(answer) for answer in answers if answer is not None]


def weighted_answers(row: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """The different answers of a row and their weights: shares of the annotators, and less for Visual Genome."""
    if row.get("dataset") == "vg":
        return dict.fromkeys(answers, VISUAL_GENOME_WEIGHT)
    return {answer: count / len(answers) for answer, count in Counter(answers).items()}


class VisualQuestionAnswering(LabelTask):
    """Rows: `image`, `question`, `answer` (a text, or a list of the annotators'), and maybe `question_id`.

    Rows without an answer, such as those of the official test, get predictions and no accuracy.
    """

    name = "vqa"
    protocol = (
        "The likeliest of a list of answers; VQA accuracy with the official normalisation of answers, a share of the "
        "annotators who have given it."
    )
    head = AlbefForQuestionAnswering
    options_class = VqaOptions
    metric = "accuracy"
    columns = ("image", "question")
    training_columns = ("answer",)
    optional_columns = ("question_id", "answer_type", "dataset")
    image_columns = ("image", "dataset")  # which says where the image is
    scenes = SceneQuestions

    def __init__(self, options: VqaOptions, processor: AlbefProcessor):
        super().__init__(options, processor)
        self.evaluation_limit = TextLimit(max(options.max_words, TEST_WORDS), self.positions)

    def read(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A question with its weighted answers."""
        issues: list[Issue] = []
        question = self.clean(row["question"], issues, self.training_limit)
        answers = weighted_answers(row, self.answers(row))
        pixels = self.augmentation(load_image(row["image"], self._root(row)), rng)[0]
        return {"pixel_values": pixels, "question": question, "answers": answers, "issues": issues}

    def answers(self, row: Mapping[str, Any]) -> list[str]:
        """Those of the annotators' answers that can be written in tokens.

        Raises:
            BadSampleError: If there is none.
        """
        given = given_answers(row)
        tokens = tokenize(self.tokenizer, given)["input_ids"] if given else []
        writable = [answer for answer, ids in zip(given, tokens, strict=True) if self.processor.has_words(ids)]
        if not writable:
            told = brief(row.get("answer"))
            unknown = [part for part in flatten_texts(row.get("answer"), ANSWER_KEYS) if isinstance(part, Mapping)]
            told = unknown_keys(unknown[0], ANSWER_KEYS) if unknown else told
            raise BadSampleError(Issue.CAPTION_EMPTY, f"no answer in {told}")
        return writable

    def _root(self, row: Mapping[str, Any]) -> str | None:
        return (
            self.options.vg_root or self.options.image_root if row.get("dataset") == "vg" else self.options.image_root
        )

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Questions, and all their answers one after the other."""
        answers = [answer for sample in samples for answer in sample["answers"]]
        tokens = self.processor.encode_answers(answers)
        return {
            **self.tokenize([sample["question"] for sample in samples], self.training_limit),
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "labels": tokens["labels"],
            "answer_counts": torch.tensor([len(sample["answers"]) for sample in samples]),
            "answer_weights": torch.tensor([weight for sample in samples for weight in sample["answers"].values()]),
            "issues": count_issues(samples),
        }

    @functools.cached_property
    def answer_list(self) -> list[str]:
        """The answers to choose from, read once.

        Raises:
            ValueError: If the file is no list of texts, or there is none and nothing to train on.
        """
        if self.options.answer_list:
            answers = read_json_list(self.options.answer_list, str)
        elif self.built_in:
            answers = list(SceneQuestions.answers)
        elif not self.options.train_files and not self.options.dataset:
            raise ValueError("There is no answer to choose from: give answer_list, a JSON list, or train_files.")
        else:
            counts: Counter[str] = Counter()
            for row in without_pictures(self.train_rows()):
                with contextlib.suppress(BadSampleError):  # it is counted when it is read for training
                    counts.update([*dict.fromkeys(self.answers(row))])  # in an order that all processes share
            answers = [answer for answer, _ in counts.most_common()]
        if not answers:
            raise ValueError("There is no answer to choose from: give answer_list, or train_files with answers.")
        return answers

    def look(self, row: Mapping[str, Any], issues: list[Issue]) -> dict[str, Any]:
        """Question and picture; where there are answers, one has to be of use."""
        if not is_absent(row.get("answer")):
            self.answers(row)
        question = self.clean(row["question"], issues, self.evaluation_limit)
        image = load_image(row["image"], self._root(row))
        return {"question": question, "image": image, "question_id": row.get("question_id")}

    def check(self, rows: Rows) -> None:
        """See that there are answers to choose from, and that rows have some to compare with."""
        self.processor.encode_answers(self.answer_list)
        super().check(rows)
        if all(is_absent(row.get("answer")) for row in without_pictures(rows)):
            raise ValueError("The rows to evaluate on have no answer, by which the best checkpoint could be chosen.")

    def predict(self, model: PreTrainedModel, rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The likeliest answer of the list to each question."""
        answers, predictions = self.answer_list, []
        tokens = self.processor.encode_answers(answers).to(model.device)

        for batch in self.readable(rows, numbers):
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
        """VQA accuracy, by answer type where the rows name it; none where the answers are not known."""
        asked = [(prediction["answer"], rows[prediction["row"]]) for prediction in predictions]
        known = [(answer, row) for answer, row in asked if not is_absent(row.get("answer"))]
        counts = {"rows/without_answer": len(asked) - len(known)} if len(known) < len(asked) else {}
        if not known:
            return counts
        types = [row.get("answer_type") for _, row in known]
        scores = vqa_accuracy(
            [answer for answer, _ in known],
            [self.answers(row) for _, row in known],
            answer_types=types if all(types) else None,
        )
        return flat(scores) | counts

    def text_and_label(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """The question, and the answer that most annotators have given."""
        question = self.clean(row["question"], [], self.evaluation_limit)
        return question, Counter(self.answers(row)).most_common(1)[0][0]


TASK = VisualQuestionAnswering
