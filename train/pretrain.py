"""Pretrain ALBEF: contrast, matching and masked language, with a momentum teacher.

Without data options it trains on the built-in scenes. The defaults are the paper's settings at base size; a recipe
such as train/configs/scenes.yaml changes them. `AlbefForPreTraining.from_pretrained` loads the folder that comes out.
"""

import os

LAUNCHER = os.getppid()  # before the imports, during which it may end

import json
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import set_seed
from datasets.distributed import split_dataset_by_node
from huggingface_hub.errors import StrictDataclassError
from torch.utils.data import DataLoader
from transformers import AutoTokenizer
from transformers.utils.hub import cached_file

from albef_hf import AlbefConfig, AlbefForPreTraining, AlbefProcessor, MomentumTeacher
from albef_hf.data import (
    Augmentation,
    ImageTextPairs,
    ImageTextStream,
    PairReader,
    Pictures,
    PretrainingCollator,
    Scenes,
    ShardOrder,
    Shards,
    embedded_tokenizer,
)
from albef_hf.data.sources import load_hub_rows, read_annotations
from albef_hf.model_card import Evaluation
from albef_hf.momentum import MOMENTUM_FILE
from albef_hf.processing_albef import added_tokens
from albef_hf.retrieval_albef import score_all
from albef_hf.training.hub_upload import HubPush
from albef_hf.training.logging import MODEL, RunLog
from albef_hf.training.model_setup import check_vocabulary, make_processor, read_model_config, with_special_tokens
from albef_hf.training.signals import end_with_launcher, leave_signals_to_the_training
from albef_hf.training.trainer import (
    DataOptions,
    MomentumTraining,
    end_training,
    make_accelerator,
    only_run_in,
    prepare_folder,
    save_model_folder,
    start_push,
    start_trackers,
    total_steps,
    write_card,
)
from albef_hf.utils.files import keep_output_from_failing, written_aside
from albef_hf.utils.options import option, parse_options, redact
from albef_hf.utils.progress import log_library_progress

PROTOCOL = (
    "Retrieval without fine-tuning: all pairs are ranked by similarity (itc), and the best {} of each query again by "
    "the log-odds of matching (itm); recall at 1, 5 and 10 of the texts of a picture, and of the pictures of a text."
)


@dataclass
class PretrainingOptions(DataOptions):
    """Where to start from, beside how and on what; without validation data, pairs are held out for the evaluation."""

    model: str | None = option(None, "folder or Hub name of an ALBEF to go on with, its teacher included")
    vision_model: str | None = option(None, "folder or Hub name of a ViT or DeiT to start the image encoder from")
    text_model: str | None = option(None, "folder or Hub name of a BERT to start the text side from")
    model_config: str | None = option(None, "AlbefConfig as a JSON file or text; what it leaves out is base size")
    tokenizer: str | None = option(None, "folder or Hub name; default: that of the text model, or BERT-base uncased")

    shards: list[str] = option([], "folders that train/prepare_shards.py has written, to train on")
    streaming: bool = option(False, "read the dataset on the fly instead of downloading it first")
    image_column: str = option("image", "column of the picture")
    caption_column: str = option("caption", "column of the caption, a text or a list of texts")
    scenes_max_objects: int = option(4, "objects of a scene: 2 to this number, at most 4")
    scenes_wrong_share: float = option(0.0, "share of the scenes' captions that belong to another scene")
    scenes_vague_share: float = option(0.0, "share of the scenes' captions that fit any scene")

    mlm_probability: float = option(0.15, "chance of a token to be masked")
    rerank: int = option(16, "candidates of each query that ITM reranks in the evaluation")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "rerank")
        self.require_share("mlm_probability", "scenes_wrong_share", "scenes_vague_share")
        started = [name for name in ("vision_model", "text_model", "model_config", "tokenizer") if getattr(self, name)]
        if self.model and started:
            raise ValueError(f"model brings its own configuration and tokenizer: leave out {', '.join(started)}.")
        if self.shards and (self.train_files or self.dataset):
            raise ValueError("shards, train_files and dataset are sources of rows: give one of them.")

    @property
    def has_source(self) -> bool:
        """Whether pairs come from somewhere, and are not the built-in ones."""
        return bool(self.shards) or super().has_source

    def training_in_words(self) -> str:
        """What it is trained on."""
        names = [Path(folder).resolve().name for folder in self.shards]
        return f"the pairs in the shards of {', '.join(names)}" if names else super().training_in_words()


def main(arguments: list[str]) -> None:
    """Read the options, build everything, train, save."""
    end_with_launcher(LAUNCHER)
    options = parse_options(PretrainingOptions, __doc__, arguments)
    log_library_progress()
    accelerator = make_accelerator(options)
    try:
        with only_run_in(options, accelerator):
            pretrain(options, accelerator)
    except (ValueError, RuntimeError, OSError, StrictDataclassError) as error:
        if os.environ.get("ALBEF_TRACEBACK"):
            raise
        sys.exit(f"error: {redact(str(error))}\n(set ALBEF_TRACEBACK=1 to see where it happened)")
    finally:
        end_training(accelerator)


def pretrain(
    options: PretrainingOptions, accelerator: Accelerator, head: type[AlbefForPreTraining] = AlbefForPreTraining
) -> dict[str, float]:
    """Train and save; returns the metrics of the last evaluation. Another `head` may have other losses."""
    folder = prepare_folder(options, accelerator)
    push = start_push(options, accelerator)
    set_seed(options.seed)  # the same on all processes, so that their teachers and queues start alike
    student, processor = make_model(options, head)
    check_texts_fit(options, student, processor)
    teacher = make_teacher(options, student)
    rows, validation_rows = load_rows(options, student.config.vision_config.image_size, accelerator)
    loader, steps_per_epoch = make_loader(options, rows, processor, accelerator)
    held_out = Pictures(validation_rows, options.image_root, most=options.validation_size)
    check_words_are_known(processor, held_out.captions)
    start_trackers(options, accelerator)
    log = RunLog(accelerator, folder, total_steps(options, steps_per_epoch), options.log_every)
    save = partial(save_model_folder, folder, options, (student, teacher, processor), log, push)

    def save_and_score(step: int) -> dict[str, float]:
        saved = save()
        accelerator.wait_for_everyone()
        metrics = evaluate(options, accelerator, student, processor, held_out)
        if metrics:
            log.say(f"step {step}: {retrieval_table(metrics, len(held_out))}")
        if saved and accelerator.is_main_process:
            write_metrics(options, push, log, step, metrics, len(held_out), teacher)
        if push:
            push.start(f"Step {step}")
        return metrics

    log.say(describe_run(options, student, teacher, rows, held_out, steps_per_epoch, accelerator.num_processes))
    set_seed(options.seed, device_specific=True)  # from here on dropout and negatives differ between processes
    training = MomentumTraining(accelerator, options, student, teacher, loader, steps_per_epoch, log, save_and_score)
    try:
        metrics = training.run()
    except (Exception, KeyboardInterrupt):  # what was learned so far is kept; one that was Stopped has a checkpoint
        save()
        raise
    finally:
        log.close()
    if accelerator.is_main_process and MODEL not in log.writer.failed:
        write_metrics(options, push, log, training.step, metrics, len(held_out), teacher)
    log.say(f"pairs skipped or cut: {training.issues_found()}")
    log.report_failed_writes()
    if push:
        push.finish("End of training")
    log.say(f"model, teacher, processor, log, curves are in {folder}")
    return metrics


def write_metrics(
    options: PretrainingOptions,
    push: HubPush | None,
    log: RunLog,
    step: int,
    metrics: dict[str, float],
    pictures: int,
    teacher: MomentumTeacher,
) -> None:
    """Write metrics and model card into the folder, once nothing of it is being uploaded."""
    if push:
        push.wait()

    def write() -> None:
        with written_aside(Path(options.output_dir) / "metrics.json") as aside:
            aside.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")

    log.writer.attempt("metrics.json", write)
    measured = f"{pictures} pictures: {options.validation_in_words()}"
    evaluation = Evaluation(metrics, PROTOCOL.format(options.rerank), measured, options.hub_dataset)
    started_from = [name for name in (options.model, options.vision_model, options.text_model) if name]
    write_card(options, push, step, log, evaluation if metrics else None, "train/pretrain.py", started_from, teacher)


def make_model(
    options: PretrainingOptions, head: type[AlbefForPreTraining] = AlbefForPreTraining
) -> tuple[AlbefForPreTraining, AlbefProcessor]:
    """The student, from wherever the options say, and its processor."""
    if options.model:
        student = head.from_pretrained(options.model, dtype=torch.float32)
        student.set_attn_implementation(options.attention)
        return student, AlbefProcessor.from_pretrained(options.model)
    source = options.tokenizer or options.text_model
    tokenizer = AutoTokenizer.from_pretrained(source) if source else embedded_tokenizer()
    settings = with_special_tokens(read_model_config(options.model_config), tokenizer)
    if options.vision_model or options.text_model:
        student = head.from_vision_text_pretrained(options.vision_model, options.text_model, **settings)
    else:
        student = head(AlbefConfig(**settings))
    student.set_attn_implementation(options.attention)
    return student, make_processor(student.config, tokenizer, options.max_words)


def make_teacher(options: PretrainingOptions, student: AlbefForPreTraining) -> MomentumTeacher:
    """The teacher saved with the model that training goes on from, or a fresh copy of the student."""
    if options.model and cached_file(options.model, MOMENTUM_FILE, _raise_exceptions_for_missing_entries=False):
        return MomentumTeacher.from_pretrained(options.model, student, options.momentum, options.queue_size)
    return MomentumTeacher(student, options.momentum, options.queue_size)


def check_texts_fit(options: PretrainingOptions, student: AlbefForPreTraining, processor: AlbefProcessor) -> None:
    """Refuse token ids that the model has no embedding for, and texts longer than it has positions."""
    check_vocabulary(student.config, processor.tokenizer)
    positions = student.config.text_config.max_position_embeddings
    if options.max_tokens > positions:
        raise ValueError(f"max_tokens is {options.max_tokens}, but the model has {positions} positions.")


def load_rows(options: PretrainingOptions, image_size: int, accelerator: Accelerator):
    """Rows to train on and rows to evaluate on, each with `image` and `caption`."""
    validation = read_annotations(options.validation_files) if options.validation_files else None
    if options.shards:
        rows = Shards(options.shards)
    elif options.train_files:
        rows = read_annotations(options.train_files)
    elif options.dataset:
        source = (options.dataset, options.dataset_config, options.data_files or None)
        columns = (options.image_column, options.caption_column)
        with accelerator.main_process_first():
            rows = load_hub_rows(*source, options.split, options.streaming, *columns)
            if options.validation_split:
                validation = load_hub_rows(*source, options.validation_split, options.streaming, *columns)
    else:
        drawn = {"image_size": max(96, image_size), "max_objects": options.scenes_max_objects}
        noise = {"wrong_share": options.scenes_wrong_share, "vague_share": options.scenes_vague_share}
        rows = Scenes(options.scenes, options.seed, **drawn, **noise)
        validation = validation or Scenes(options.validation_size, options.seed + 1, **drawn)
    if validation is not None:
        return rows, validation
    if isinstance(rows, datasets.IterableDataset):
        if options.validation_size == 0:
            return rows, []
        raise ValueError(
            "No pairs can be held out of a stream: set validation_split or validation_files, or validation_size 0 to "
            "train without evaluation."
        )
    return hold_out(rows, options.validation_size, options.seed)


def hold_out(rows: datasets.Dataset | Shards, size: int, seed: int):
    """Split off `size` pictures, at most a tenth; all rows of a picture stay together, where it is known to be one."""
    if isinstance(rows, Shards):
        pictures = rows.pictures()
    else:
        by_path = rows.features["image"] == datasets.Value("string")
        names = rows["image"] if by_path else range(len(rows))
        numbers = {name: number for number, name in enumerate(sorted({name for name in names if name is not None}))}
        pictures = np.array([numbers.get(name, -1) for name in names])
    different, _ = np.unique(
        pictures[pictures >= 0], return_counts=True
    )  # which sorts; to hash takes 20 times as long
    chosen = np.random.default_rng(seed).permutation(len(different))[: min(size, len(different) // 10)]
    is_held_out = np.isin(pictures, different[chosen])
    return rows.select(np.flatnonzero(~is_held_out)), rows.select(np.flatnonzero(is_held_out))


def make_loader(options: PretrainingOptions, rows, processor: AlbefProcessor, accelerator: Accelerator):
    """A loader of batches for this process, and the optimizer steps of an epoch (None for a stream)."""
    images = processor.image_processor
    augmentation = Augmentation(
        images.size["height"],
        images.image_mean,
        images.image_std,
        options.min_crop_scale,
        options.randaugment_operations,
    )
    reader = PairReader(augmentation, options.image_root, options.max_words, added_tokens(processor.tokenizer))
    loading = {
        "batch_size": options.batch_size,
        "collate_fn": PretrainingCollator(processor.tokenizer, options.max_tokens, options.mlm_probability),
        "num_workers": min(options.num_workers, os.cpu_count() or 1),
        "pin_memory": accelerator.device.type == "cuda",
        "worker_init_fn": leave_signals_to_the_training,
    }
    if isinstance(rows, datasets.IterableDataset):
        return make_stream_loader(options, rows, reader, loading, accelerator), None
    dataset = ImageTextPairs(rows, reader, options.seed)
    needed = options.batch_size * accelerator.num_processes
    if len(dataset) < needed:
        raise ValueError(
            f"There are {len(dataset)} pairs to train on, fewer than the {needed} of one batch on all "
            f"{accelerator.num_processes} processes: lower batch_size, or give more data."
        )
    dataset[0]  # an unreadable source shows here, not in the middle of the first epoch
    if isinstance(rows, Shards):
        order = ShardOrder(rows.bounds, options.seed, accelerator.process_index, accelerator.num_processes)
        loader = prepare_share(DataLoader(dataset, sampler=order, drop_last=True, **loading), accelerator)
    else:
        loader = accelerator.prepare(DataLoader(dataset, shuffle=True, drop_last=True, **loading))
    return loader, max(1, len(loader) // options.gradient_accumulation_steps)


def make_stream_loader(
    options: PretrainingOptions,
    rows: datasets.IterableDataset,
    reader: PairReader,
    loading: dict[str, Any],
    accelerator: Accelerator,
) -> DataLoader:
    """A loader of batches for this process, from its share of a stream."""
    rows = rows.shuffle(seed=options.seed, buffer_size=1000)
    rows = split_dataset_by_node(rows, accelerator.process_index, accelerator.num_processes)
    stream = ImageTextStream(rows, reader, options.seed, accelerator.process_index)
    if next(iter(stream), None) is None:
        raise ValueError("The stream holds no pairs for this process: give as many shards as processes, or more.")
    return prepare_share(DataLoader(stream, **loading), accelerator)


def prepare_share(loader: DataLoader, accelerator: Accelerator) -> DataLoader:
    """A loader that reads the share of this process alone; to Accelerate it is that of the only one."""
    return prepare_data_loader(
        loader, accelerator.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
    )


def check_words_are_known(processor: AlbefProcessor, captions: list[list[str]]) -> None:
    """Refuse a tokenizer to which most of the captions are unknown words."""
    tokens = processor(text=[texts[0] for texts in captions[:200]] or [""])["input_ids"]
    words = [token for ids in tokens for token in ids if token not in processor.tokenizer.all_special_ids]
    unknown = sum(ids.count(processor.tokenizer.unk_token_id) for ids in tokens)
    if unknown > len(words):
        raise ValueError(
            f"{unknown} of {unknown + len(words)} words of the captions are unknown to the tokenizer: give one that "
            "was made for their language and for this model (tokenizer)."
        )


def evaluate(
    options: PretrainingOptions,
    accelerator: Accelerator,
    student: AlbefForPreTraining,
    processor: AlbefProcessor,
    held_out: Pictures,
) -> dict[str, float]:
    """Retrieval among the held-out pictures, the reranking shared by all processes; nothing where there are none."""
    if len(held_out) < 2:
        return {}
    share = (accelerator.process_index, accelerator.num_processes)
    queries = (held_out, held_out.captions, options.rerank)
    with accelerator.autocast():
        scores = score_all(student, processor, *queries, share=share, reduce=accelerator.reduce)
    return scores.metrics()


def describe_run(
    options: PretrainingOptions,
    student: AlbefForPreTraining,
    teacher: MomentumTeacher,
    rows: Any,
    held_out: Pictures,
    steps_per_epoch: int | None,
    processes: int,
) -> str:
    """What is about to happen, in some lines."""
    steps = total_steps(options, steps_per_epoch)
    batch = options.batch_size * options.gradient_accumulation_steps * processes
    epochs = f" ({steps / steps_per_epoch:.3g} epochs)" if steps_per_epoch else ""
    issues = Counter(error.issue.name.lower() for error in held_out.bad_rows.values())
    left_out = ", ".join(f"{name} {count}" for name, count in issues.items())
    faults = rows.faults() if isinstance(rows, Shards) else []
    return "".join(f"{fault}: what cannot be read is skipped and counted\n" for fault in faults) + (
        f"{student.num_parameters() / 1e6:.1f} million parameters, teacher of the same size, queue of "
        f"{len(teacher.queue.image_features)} pairs\n"
        f"{steps} steps{epochs} of {batch} pairs: {options.batch_size} on each of {processes} process(es), "
        f"{options.gradient_accumulation_steps} accumulated\n"
        f"evaluation on {len(held_out)} held-out pictures{f' (left out: {left_out})' if left_out else ''}; "
        f"everything goes to {options.output_dir}"
    )


def retrieval_table(metrics: dict[str, float], pictures: int) -> str:
    """The recalls as people read them."""
    lines = [f"retrieval among {pictures} held-out pictures, recall in % (chance at 1: {100 / pictures:.2g})"]
    lines.append(" " * 14 + "image to text      text to image")
    lines.append(" " * 14 + "@1    @5   @10     @1    @5   @10")
    for step, title in (("itc", "ITC"), ("itm", "ITM reranked")):
        recalls = ["".join(f"{metrics[f'{step}_{way}_r{k}']:6.1f}" for k in (1, 5, 10)) for way in ("text", "image")]
        lines.append(f"{title:12s}{recalls[0]} {recalls[1]}")
    return "\n".join(lines)


if __name__ == "__main__":
    keep_output_from_failing()
    main(sys.argv[1:])
