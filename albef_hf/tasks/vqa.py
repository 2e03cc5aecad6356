"""Visual question answering: VQA v2, Visual Genome, easy-VQA (section 5 of the paper, the original's `VQA.py`)."""

import contextlib
import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from ..data import InvalidSampleError, SkipReason, drop_image_columns, load_image
from ..data.annotations import read_json_list
from ..data.captions import brief
from ..data.collator import pad_tokens, target_positions
from ..data.row_values import ANSWER_KEYS, answer_text, flatten_texts, is_absent, unknown_keys
from ..data.scene_tasks import SceneQuestions
from ..metrics.vqa_accuracy.scoring import vqa_accuracy
from ..modeling_albef import AlbefForQuestionAnswering
from ..processing_albef import AlbefProcessor, replace_surrogates, tokenize
from .arguments import VqaArguments
from .base import Rows, TextLimit, count_issues, flatten
from .base_rows import LabelTask

EVALUATION_WORDS = 50  # of a question in the evaluation, where the original cuts no tokens
ANSWERS_FILE = "answer_list.json"  # of a fine-tuned model
VISUAL_GENOME_WEIGHT = 0.5  # of its answers, which come from a single annotator
ANSWER_TOKENS = 8  # whose multiples answers are padded to, at most; nearly all are shorter


def given_answers(row: Mapping[str, Any]) -> list[str]:
    """Return the annotators' answers as texts.

    A row has a text or number, a list of them, VQA's own list of objects with an `answer` each, or a list written as
    text.
    """
    answers = map(answer_text, flatten_texts(row.get("answer"), ANSWER_KEYS))
    return [replace_surrogates(answer) for answer in answers if answer is not None]


def weighted_answers(row: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """Return the distinct answers of a row with the fraction of annotators that gave each; less for Visual Genome."""
    if row.get("dataset") == "vg":
        return dict.fromkeys(answers, VISUAL_GENOME_WEIGHT)
    return {answer: count / len(answers) for answer, count in Counter(answers).items()}


def pad_answers(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Pad the answers of a batch to a multiple of its questions, and the positions of tokens to one of the answers.

    At least one answer is added: a copy of the last one without weight, which added positions belong to.
    """
    labels = batch["labels"]
    questions = len(batch["answer_counts"])
    added = questions - len(labels) % questions
    counts = batch["answer_counts"].clone()
    counts[-1] += added
    labels = torch.cat([labels, labels[-1:].expand(added, -1)])
    positions = batch["target_positions"]
    unweighted = labels.numel() - labels.shape[1] + 1  # the first word of the last answer
    return batch | {
        "labels": labels,
        "answer_counts": counts,
        "answer_weights": F.pad(batch["answer_weights"], (0, added)),
        "target_positions": F.pad(positions, (0, -len(positions) % len(labels)), value=unweighted),
    }


class VisualQuestionAnswering(LabelTask):
    """Rows: `image`, `question`, `answer` (a text, or a list of the annotators'), and optionally `question_id`.

    Rows without an answer, such as those of the official test, get predictions and no accuracy.
    """

    name = "vqa"
    protocol = (
        "The most probable of a list of answers; VQA accuracy, which depends on how many annotators gave the answer, "
        "with the official normalization."
    )
    head = AlbefForQuestionAnswering
    arguments_class = VqaArguments
    metric = "accuracy"
    columns = ("image", "question")
    training_columns = ("answer",)
    optional_columns = ("question_id", "answer_type", "dataset")
    image_columns = ("image", "dataset")  # which says where the image is
    synthetic_data = SceneQuestions

    def __init__(self, args: VqaArguments, processor: AlbefProcessor):
        super().__init__(args, processor)
        self.language = args.question_language
        self.evaluation_limit = TextLimit(max(args.max_words, EVALUATION_WORDS), self.positions)

    def preprocess_train(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return a question with its weighted answers."""
        issues: list[SkipReason] = []
        question = self.clean(row["question"], issues, self.training_limit)
        answers = weighted_answers(row, self.answers(row))
        pixels = self.pixels(row["image"], rng, self._root(row))
        return {"pixel_values": pixels, "question": question, "answers": answers, "issues": issues}

    def answers(self, row: Mapping[str, Any]) -> list[str]:
        """Return the annotators' answers that the tokenizer can encode.

        Raises:
            InvalidSampleError: If there is none.
        """
        given = given_answers(row)
        tokens = tokenize(self.tokenizer, given)["input_ids"] if given else []
        usable = [answer for answer, ids in zip(given, tokens, strict=True) if self.processor.has_words(ids)]
        if not usable:
            unknown = [part for part in flatten_texts(row.get("answer"), ANSWER_KEYS) if isinstance(part, Mapping)]
            content = unknown_keys(unknown[0], ANSWER_KEYS) if unknown else brief(row.get("answer"))
            raise InvalidSampleError(SkipReason.CAPTION_EMPTY, f"no answer in {content}")
        return usable

    def _root(self, row: Mapping[str, Any]) -> str | None:
        from_visual_genome = row.get("dataset") == "vg"
        return self.args.vg_root or self.args.image_root if from_visual_genome else self.args.image_root

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch of questions, and all their answers one after the other."""
        answers = [answer for sample in samples for answer in sample["answers"]]
        labels = self.processor.encode_answers(answers)["labels"]
        multiple = self.args.text_multiple  # so that compiled models meet few shapes; the loss stays the same
        if multiple:
            labels = pad_tokens(labels, min(multiple, ANSWER_TOKENS), self.positions, value=-100)
        batch = {
            **self.tokenize_for_training([sample["question"] for sample in samples]),
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "labels": labels,
            "target_positions": target_positions(labels.index_fill(1, torch.tensor([0]), -100)),  # not [CLS]
            "answer_counts": torch.tensor([len(sample["answers"]) for sample in samples]),
            "answer_weights": torch.tensor([weight for sample in samples for weight in sample["answers"].values()]),
            "issues": count_issues(samples),
        }
        return pad_answers(batch) if multiple else batch

    @functools.cached_property
    def answer_list(self) -> list[str]:
        """Return the answers to choose from, read once.

        Raises:
            ValueError: If the file is not a list of texts, or there is none and nothing to train on.
        """
        if self.args.answer_list:
            answers = read_json_list(self.args.answer_list, str)
        elif self.uses_synthetic_data:
            answers = list(SceneQuestions.answers)
        elif not self.args.train_files and not self.args.dataset:
            answers = self._saved_answers()
        else:
            counts: Counter[str] = Counter()
            for row in drop_image_columns(self.train_rows()):
                with contextlib.suppress(InvalidSampleError):  # counted when it is read for training
                    counts.update([*dict.fromkeys(self.answers(row))])  # in an order that all processes share
            answers = [answer for answer, _ in counts.most_common()]
        if not answers:
            raise ValueError("There is no answer to choose from; set answer_list, or train_files with answers.")
        return answers

    def _saved_answers(self) -> list[str]:
        """Return the answers that a fine-tuned model chose from, of which its folder has a list."""
        file = cached_file(self.args.model, ANSWERS_FILE, _raise_exceptions_for_missing_entries=False)
        if not file:
            raise ValueError("There is no answer to choose from; set answer_list, a JSON list, or train_files.")
        return read_json_list(file, str)

    def save_pretrained(self, folder: Path) -> None:
        """Write the answers to choose from."""
        (folder / ANSWERS_FILE).write_text(json.dumps(self.answer_list, indent=0) + "\n", encoding="utf-8")

    def preprocess_eval(self, row: Mapping[str, Any], issues: list[SkipReason]) -> dict[str, Any]:
        """Return question and image; if there are answers, one of them has to be usable."""
        if not is_absent(row.get("answer")):
            self.answers(row)
        question = self.clean(row["question"], issues, self.evaluation_limit)
        image = load_image(row["image"], self._root(row))
        return {"question": question, "image": image, "question_id": row.get("question_id")}

    def check_validation(self, rows: Rows) -> None:
        """Check that there are answers to choose from, and that rows have some to compare with."""
        self.processor.encode_answers(self.answer_list)
        super().check_validation(rows)
        if all(is_absent(row.get("answer")) for row in drop_image_columns(rows)):
            raise ValueError(
                "No row to evaluate on has an answer, so the best model cannot be chosen; add answers to them."
            )

    def predict(self, model: PreTrainedModel, rows: Rows, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the most probable answer of the list to each question."""
        answers = self.answer_list
        predictions = []
        tokens = self.processor.encode_answers(answers).to(model.device)
        for batch in self.valid_batches(rows, indices):
            inputs = self.inputs(model, [row["question"] for row in batch], [row["image"] for row in batch])
            indices_of_best, probabilities = model.rank_answers(
                **inputs,
                answer_ids=tokens["input_ids"],
                answer_attention_mask=tokens["attention_mask"],
                top_k=self.args.rank_candidates,
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
                    batch, indices_of_best[:, 0].tolist(), probabilities[:, 0].tolist(), strict=True
                )
            ]
        return predictions

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Return the VQA accuracy, by answer type if the rows name it; nothing if the answers are not known."""
        answered = [(prediction["answer"], rows[prediction["row"]]) for prediction in predictions]
        known = [(answer, row) for answer, row in answered if not is_absent(row.get("answer"))]
        counts: dict[str, float] = (
            {"rows/without_answer": len(answered) - len(known)} if len(known) < len(answered) else {}
        )
        if not known:
            return counts
        types = [row.get("answer_type") for _, row in known]
        scores = vqa_accuracy(
            [answer for answer, _ in known],
            [self.answers(row) for _, row in known],
            answer_types=types if all(types) else None,
        )
        return flatten(scores) | counts

    def text_and_label(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """Return the question, and the answer that most annotators gave."""
        question = self.clean(row["question"], [], self.evaluation_limit)
        return question, Counter(self.answers(row)).most_common(1)[0][0]


TASK = VisualQuestionAnswering
