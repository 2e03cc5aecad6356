"""The models of a training: student and processor from wherever the options say, and the teacher."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from transformers.utils.hub import cached_file

from ..compatibility_albef import without_load_report
from ..configuration_albef import AlbefConfig, read_vision_config
from ..data import embedded_tokenizer, make_processor
from ..modeling_albef import AlbefForPreTraining, AlbefImageTextModel
from ..momentum import MOMENTUM_FILE, MomentumTeacher
from ..processing_albef import AlbefProcessor
from ..utils.spelling import refuse_unknown
from .arguments import FineTuningArguments, PretrainingArguments, TrainingArguments
from .lora import without_adapters
from .optimization import ENCODER_MODULES

logger = logging.get_logger(f"transformers.{__name__}")


def load_pretraining_model(
    args: PretrainingArguments, head: type[AlbefForPreTraining] = AlbefForPreTraining
) -> tuple[AlbefForPreTraining, AlbefProcessor]:
    """Return the student and its processor: from an ALBEF, from an image and a text model, or untrained.

    Raises:
        ValueError: If tokenizer and model do not fit, or texts can be longer than the model has positions.
    """
    if args.model:
        student = without_adapters(head.from_pretrained(args.model, dtype=torch.float32))
        processor = AlbefProcessor.from_pretrained(args.model)
    else:
        source = args.tokenizer or args.text_model
        tokenizer = AutoTokenizer.from_pretrained(source) if source else embedded_tokenizer()
        settings = with_special_tokens(read_model_config(args.model_config, args.vision_model), tokenizer)
        if args.vision_model or args.text_model:
            student = head.from_vision_text_pretrained(args.vision_model, args.text_model, **settings)
        else:
            student = head(AlbefConfig(**settings))
        processor = make_processor(student.config, tokenizer, args.max_words, args.vision_model)
    student.set_attn_implementation(args.attn_implementation)
    check_vocabulary(student.config, processor.tokenizer)
    positions = student.config.text.max_tokens
    if args.max_tokens > positions:
        raise ValueError(f"max_tokens is {args.max_tokens}, but the model has {positions} positions.")
    return student, processor


def load_task_model(
    head: type[PreTrainedModel], args: FineTuningArguments
) -> tuple[PreTrainedModel, AlbefProcessor, set[str]]:
    """Return the head of a task from any ALBEF checkpoint, or untrained, with the processor, at a resolution.

    Returns:
        Model, processor, and the names of the weights that the checkpoint does not have.

    Raises:
        ValueError: If `model_config` changes more of a checkpoint than its dropout.
    """
    if args.model:
        config = with_dropout(AlbefConfig.from_pretrained(args.model), parse_model_config(args.model_config))
        processor = AlbefProcessor.from_pretrained(args.model)
    else:
        tokenizer = embedded_tokenizer()
        config = AlbefConfig(**with_special_tokens(read_model_config(args.model_config), tokenizer))
        processor = make_processor(config, tokenizer, args.max_words)
    check_vocabulary(config, processor.tokenizer)
    processor.max_words = args.max_words
    processor.tokenizer.model_max_length = config.text.max_tokens
    if args.image_size:
        size_before = config.input_size
        config.set_input_size(args.image_size if len(args.image_size) == 2 else args.image_size[0])
        height, width = config.input_size
        if (height, width) != tuple(size_before):
            config.match_calibration = None  # fitted at another size
        processor.image_processor.size = {"height": height, "width": width}
    if args.model:
        model, missing = load_weights(head, args.model, config)
    else:
        model = head(config)
        missing = set(model.state_dict())
    model.set_attn_implementation(args.attn_implementation)
    return model, processor, missing


def load_weights(
    head: type[PreTrainedModel], checkpoint: str, config: AlbefConfig
) -> tuple[PreTrainedModel, set[str]]:
    """Return the head of a task with a checkpoint's weights, and the names of those that it does not have."""
    with without_load_report():
        loaded: Any = head.from_pretrained(checkpoint, config=config, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    model = without_adapters(model)
    missing = set(report["missing_keys"])
    if missing:
        logger.warning(f"{len(missing)} weights of {head.__name__} are new, such as {min(missing)}.")
    if unused := report["unexpected_keys"]:
        logger.warning(f"{head.__name__} has no use for {len(unused)} weights, such as {min(unused)}.")
    return model, missing


def freeze_encoders(student: Any, args: TrainingArguments) -> None:
    """Freeze what the options name, and with LoRA the weights of the other encoders.

    Call it before the teacher is made, which shares what is frozen.

    Raises:
        ValueError: If the model does not have what is to be frozen.
    """
    if "contrastive_head" in args.freeze and not isinstance(student, AlbefImageTextModel):
        raise ValueError(f"freeze contains contrastive_head, which {type(student).__name__} does not have.")
    student.freeze(*(ENCODER_MODULES.get(name, name) for name in args.freeze))
    if args.lora_rank:
        for module in ENCODER_MODULES.values():
            student.get_submodule(module).requires_grad_(False)


def make_teacher(args: PretrainingArguments | FineTuningArguments, student: PreTrainedModel) -> MomentumTeacher | None:
    """Return the teacher saved with the model, or a copy of the student; None if the head has no use for one."""
    contrasts = isinstance(student, AlbefImageTextModel)  # and needs the teacher's queues
    if not hasattr(student, "get_teacher_outputs") or not (args.alpha > 0 or contrasts):
        return None
    if args.model and cached_file(args.model, MOMENTUM_FILE, _raise_exceptions_for_missing_entries=False):
        return MomentumTeacher.from_pretrained(args.model, student, args.momentum, args.queue_size)
    return MomentumTeacher(student, args.momentum, args.queue_size)


def read_model_config(source: str | None, vision_model: str | None = None) -> dict[str, Any]:
    """Return settings of an `AlbefConfig` from a JSON file or text; none without a source.

    Args:
        source: The file or text.
        vision_model: Folder or Hub name of the image model whose settings it may change.

    Raises:
        ValueError: If the source is neither, or a name is unknown.
    """
    settings = parse_model_config(source)
    known = AlbefConfig().to_dict()
    named = {"model_type": (settings.get("vision_config") or {}).get("model_type")}
    if vision_model:
        known["vision_config"] |= read_vision_config(AutoConfig.from_pretrained(vision_model)).to_dict()
    elif named["model_type"]:
        known["vision_config"] = read_vision_config(named).to_dict()
    refuse_unknown(settings, known)
    return settings


def with_dropout(config: AlbefConfig, settings: Mapping[str, Any]) -> AlbefConfig:
    """Return a configuration with other probabilities of dropout, for parts such as `text_config`.

    Raises:
        ValueError: If a setting is unknown, or not one of dropout: weights, processor and calibration depend on those.
    """
    values = config.to_dict()
    refuse_unknown(settings, values)
    for part, changes in settings.items():
        others = [name for name in changes if "drop" not in name] if isinstance(changes, dict) else [part]
        if others:
            raise ValueError(
                f"model_config changes {others[0]} of the model, which its weights may depend on: with model, change "
                "dropout alone; without it, model_config is that of an untrained model."
            )
        values[part] = {**values[part], **changes}
    return AlbefConfig.from_dict(values) if settings else config


def parse_model_config(source: str | None) -> dict[str, Any]:
    """Return the settings of a JSON file or text; none without a source.

    Raises:
        ValueError: If the source is neither.
    """
    if source is None:
        return {}
    try:
        return json.loads(source if source.lstrip().startswith("{") else Path(source).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"model_config is neither a JSON file nor a JSON text ({error}).") from error


def with_special_tokens(settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return settings of an `AlbefConfig` in which answers begin, end and are padded with the tokenizer's tokens.

    Token ids in the settings are replaced: they were copied from a model with another tokenizer.
    """
    ids = {
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {**settings, "text_config": {**(settings.get("text_config") or {}), **ids}}


def check_vocabulary(config: AlbefConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a `ValueError` for a tokenizer with ids that the model has no embedding for."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.text.vocab_size:
        raise ValueError(
            f"The tokenizer has ids up to {largest}, the model embeds {config.text.vocab_size} tokens: set "
            f"vocab_size of text_config to {largest + 1}, or use the tokenizer that the model was trained with."
        )
