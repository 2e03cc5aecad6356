"""Low-rank adapters (LoRA, arXiv 2106.09685) in the attention of the encoders, by peft."""

import copy
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from ..image_encoder_albef import AlbefImageEncoder
from ..momentum import MomentumTeacher
from .arguments import TrainingArguments
from .optimization import ENCODER_MODULES

# Names of the projections of attention in transformers' encoders and in those of this package.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj", "o_proj", "query", "key", "value", "qkv")

Model = TypeVar("Model", bound=nn.Module)


def add_lora(student: PreTrainedModel, teacher: MomentumTeacher | None, args: TrainingArguments) -> None:
    """Add adapters to the encoders that are not frozen; only adapters and the rest of the model are trained.

    Args:
        student: The weights of its encoders have no `requires_grad`.
        teacher: Its teacher, which shares those weights and averages the adapters.
        args: Options of the run.

    Raises:
        ValueError: If an encoder has no attention.
    """
    from peft import LoraConfig, inject_adapter_in_model

    # Not the output of SigLIP's pooling head, whose attention reads the weight itself.
    projections = rf"(?!.*head\.attention\.).*\b({'|'.join(PROJECTIONS)})"
    config = LoraConfig(r=args.lora_rank, lora_alpha=args.lora_alpha, target_modules=projections)
    adapted = [module for encoder, module in ENCODER_MODULES.items() if encoder not in args.freeze]
    for encoder, module in ENCODER_MODULES.items():
        if module not in adapted:
            continue
        part = _adapted_part(student, module)
        if not any(name.rpartition(".")[2] in PROJECTIONS for name, _ in part.named_modules()):
            raise ValueError(
                f"lora_rank adapts the projections of attention, which {type(part).__name__} does not have: set "
                f"freeze {encoder}, or remove lora_rank."
            )
        inject_adapter_in_model(config, part)
        if teacher is not None:
            average = _adapted_part(teacher.model, module)
            inject_adapter_in_model(config, average)
            average.load_state_dict(part.state_dict())
            average.requires_grad_(False)
    names = "|".join(module.removeprefix("albef.") for module in adapted)
    student.config.lora_config = {
        "r": args.lora_rank,
        "lora_alpha": args.lora_alpha,
        "target_modules": rf"({names})\.{projections}",
    }


def _adapted_part(model: PreTrainedModel, module: str) -> nn.Module:
    """Return an encoder; of an image model of transformers the model itself, which peft asks for its names."""
    part = model.get_submodule(module)
    return part.encoder if isinstance(part, AlbefImageEncoder) else part


def merge_lora(model: Model) -> Model:
    """Return a copy of a model, or a teacher, in which adapters are merged into plain weights.

    Example:
        ```python
        merge_lora(AlbefForRetrieval.from_pretrained("runs/adapted")).save_pretrained("runs/merged")
        ```
    """
    from peft.tuners.lora import LoraLayer

    model = copy.deepcopy(model)
    if isinstance(model, MomentumTeacher):
        model.drop_low_precision()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()  # type: ignore[attr-defined]
            plain: Any = layer.get_base_layer()
            plain.weight = nn.Parameter(plain.weight.data, requires_grad=False)  # no longer shared with the student
            model.set_submodule(name, plain)
    for part in model.modules():
        if hasattr(getattr(part, "config", None), "lora_config"):
            part.config.lora_config = None  # type: ignore[union-attr]
    return model


def without_adapters(model: Model) -> Model:
    """Return a loaded model whose weights can all be trained: adapters that it was saved with are merged."""
    config: Any = model.config
    return merge_lora(model).requires_grad_(True) if config.lora_config else model
