"""Pretraining: contrast, matching and masked language, with a momentum teacher (section 3 of the paper).

The original's `Pretrain.py`. The model is evaluated by retrieval without fine-tuning.
"""

from collections import Counter
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..data import EvaluationImages, PairReader, PretrainingCollator, Scenes, Shards
from ..data.sources import load_hub_rows, read_annotations
from ..evaluation.retrieval_table import retrieval_table
from ..modeling_albef import AlbefForPreTraining
from ..processing_albef import AlbefProcessor, added_tokens
from ..retrieval_albef import score_all
from ..training.arguments import PretrainingArguments
from ..training.dataloaders import make_dataloader
from ..training.model_setup import load_pretraining_model
from ..training.saved_model import LatestModel
from .base import Task

CHECKED_CAPTIONS = 200  # for words that the tokenizer does not know


class Pretraining(Task):
    """Rows: `image` and `caption`, from files, shards, a dataset or the built-in scenes."""

    name = "pretraining"
    head = AlbefForPreTraining
    arguments_class = PretrainingArguments
    saved_model_class = LatestModel
    metric = "itm_text_r1"
    protocol = (
        "Retrieval without fine-tuning: all pairs are ranked by similarity (itc), and the best {} of each query again "
        "by the log-odds of matching (itm); recall at 1, 5 and 10 of the texts of an image, and of the images of a "
        "text."
    )

    @classmethod
    def load_model(cls, args: PretrainingArguments) -> tuple[AlbefForPreTraining, AlbefProcessor]:
        """Return the student, from wherever the options say, and its processor."""
        return load_pretraining_model(args, cls.head)

    # Rows

    def load_rows(self, accelerator: Accelerator) -> tuple[Any, EvaluationImages]:
        """Return the rows to train on, and the images to evaluate on."""
        args = self.args
        if args.shards or args.train_files:
            rows = Shards(args.shards) if args.shards else self._read_files(args.train_files, args.split)
            validation = self._validation_files()
        elif args.dataset:
            rows, validation = self._dataset_rows(accelerator)
        else:
            rows, validation = self._scenes()
        if validation is None:
            rows, validation = self._hold_out(rows)
        images = EvaluationImages(validation, args.image_root, max_images=args.validation_size)
        return rows, images

    def _dataset_rows(self, accelerator: Accelerator) -> tuple[Any, Any]:
        args = self.args

        def load(split: str) -> datasets.Dataset | datasets.IterableDataset:
            return load_hub_rows(
                args.dataset,
                args.dataset_config,
                args.data_files or None,
                split,
                args.streaming,
                args.image_column,
                args.caption_column,
            )

        validation = self._validation_files()
        with accelerator.main_process_first():
            rows = load(args.split)
            if args.validation_split:
                validation = load(args.validation_split)
        return rows, validation

    def _scenes(self) -> tuple[Scenes, Any]:
        args = self.args
        settings = {
            "image_size": max(96, self.processor.image_processor.size["height"]),
            "max_objects": args.scenes_max_objects,
        }
        rows = Scenes(
            args.scenes,
            args.seed,
            **settings,
            wrong_share=args.scenes_wrong_share,
            vague_share=args.scenes_vague_share,
        )
        validation = self._validation_files()
        return rows, Scenes(args.validation_size, args.seed + 1, **settings) if validation is None else validation

    def _read_files(self, files: list[str], split: str) -> datasets.Dataset:
        args = self.args
        return read_annotations(files, args.dataset_format, split, args.image_root, args.needs_splits)

    def _validation_files(self) -> datasets.Dataset | None:
        args = self.args
        split = args.validation_split or "validation"
        return self._read_files(args.validation_files, split) if args.validation_files else None

    def _hold_out(self, rows: Any) -> tuple[Any, Any]:
        """Split off rows for the evaluation; a stream cannot be split."""
        if not isinstance(rows, datasets.IterableDataset):
            return hold_out(rows, self.args.validation_size, self.args.seed)
        if self.args.validation_size == 0:
            return rows, []
        raise ValueError(
            "No pairs can be held out of a stream; set validation_split or validation_files, or validation_size 0 to "
            "train without evaluation."
        )

    def check_validation(self, rows: EvaluationImages) -> None:
        """Refuse a tokenizer that does not know most of the captions' words."""
        captions = [texts[0] for texts in rows.captions[:CHECKED_CAPTIONS]]
        tokens = self.processor(text=captions or [""])["input_ids"]
        words = [token for ids in tokens for token in ids if token not in self.tokenizer.all_special_ids]
        known = [token for token in words if self.processor.has_words([token])]  # not the spaces of SentencePiece
        unknown = sum(ids.count(self.tokenizer.unk_token_id) for ids in tokens)
        if unknown > len(known):
            raise ValueError(
                f"{unknown} of {unknown + len(known)} words of the captions are unknown to the tokenizer; choose one "
                "for their language and for this model (tokenizer)."
            )

    def describe_data(self, rows: Any, validation: EvaluationImages, baselines: dict[str, float]) -> str:
        """Return what is evaluated on, what was skipped, and shards that cannot be read."""
        reasons = Counter(error.reason.name.lower() for error in validation.bad_rows.values())
        skipped = ", ".join(f"{name} {count}" for name, count in reasons.items())
        faults = rows.faults() if isinstance(rows, Shards) else []
        lines = [f"{fault}; what cannot be read is skipped and counted" for fault in faults]
        lines.append(f"evaluation on {len(validation)} held-out images{f' (skipped: {skipped})' if skipped else ''}")
        return "\n".join(lines)

    # Training

    def make_reader(self) -> PairReader:
        """Return the function that turns a row into a training sample."""
        return PairReader(
            self.make_augmentation(0.5),
            self.args.image_root,
            self.args.max_words,
            added_tokens(self.tokenizer),
            image_states=self.image_states,
            keep_case=self.processor.keep_case,
            replacements=self.processor.replacements,
        )

    def train_dataloader(self, rows: Any, accelerator: Accelerator) -> DataLoader:
        """Return the batches of this process."""
        args = self.args
        multiple = args.text_multiple
        collate = PretrainingCollator(self.tokenizer, args.max_tokens, args.mlm_probability, multiple)
        return make_dataloader(rows, self.make_reader(), collate, args, accelerator)

    # Evaluation

    def evaluate(
        self, model: AlbefForPreTraining, rows: EvaluationImages, accelerator: Accelerator
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return the recalls of retrieval, reranking shared by all processes; nothing without images."""
        if len(rows) < 2:
            return {}, []
        with accelerator.autocast():
            scores = score_all(
                model,
                self.processor,
                rows,
                rows.captions,
                self.args.rerank_k,
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
                all_reduce=accelerator.reduce,
            )
        return scores.metrics(), []

    @property
    def command(self) -> str:
        """Return the command that trains the task."""
        return "pretrain"

    def describe_protocol(self) -> str:
        """Return how the metrics are measured."""
        return self.protocol.format(self.args.rerank_k)

    def base_models(self) -> list[str]:
        """Return what the model started from."""
        return [name for name in (self.args.model, self.args.vision_model, self.args.text_model) if name]

    def format_metrics(self, metrics: dict[str, float], rows: EvaluationImages) -> str:
        """Return the recalls as a table."""
        return retrieval_table(metrics, len(rows))


def hold_out(rows: datasets.Dataset | Shards, size: int, seed: int) -> tuple[Any, Any]:
    """Split off `size` images, at most a tenth; all rows that are known to show the same image stay together."""
    if isinstance(rows, Shards):
        images = rows.image_ids()
    else:
        by_path = rows.features["image"] == datasets.Value("string")
        names = rows["image"] if by_path else range(len(rows))
        indices = {name: index for index, name in enumerate(sorted({name for name in names if name is not None}))}
        images = np.array([indices.get(name, -1) for name in names])
    # Counting sorts; hashing, without the counts, takes 20 times as long.
    distinct, _ = np.unique(images[images >= 0], return_counts=True)
    chosen = np.random.default_rng(seed).permutation(len(distinct))[: min(size, len(distinct) // 10)]
    is_held_out = np.isin(images, distinct[chosen])
    return rows.select(np.flatnonzero(~is_held_out)), rows.select(np.flatnonzero(is_held_out))


TASK = Pretraining
