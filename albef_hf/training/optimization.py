"""AdamW and the schedules of learning rate and distillation weight, as functions of the step."""

import math
import re
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from .arguments import TrainingArguments

FUSED_DEVICES = ("cuda", "cpu", "mps", "xpu")  # for which torch has a fused AdamW
CONDITIONAL_DEVICES = ("cuda", "cpu")  # where it takes a condition; that of MPS ignores it
# Encoders by their names in options, as submodules of every head.
ENCODER_MODULES = {"image_encoder": "albef.vision_model", "text_encoder": "albef.text_model"}


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Return two groups for AdamW: vectors and biases without weight decay, everything else with it.

    As timm's `create_optimizer`, which the original uses: temperature, `[CLS]` token and learned positions decay.
    """
    parameters = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    exempt = [weight for name, weight in parameters if weight.ndim == 1 or name.endswith(".bias")]
    decayed = [weight for name, weight in parameters if not (weight.ndim == 1 or name.endswith(".bias"))]
    return [{"params": exempt, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def make_optimizer(student: torch.nn.Module, args: TrainingArguments, device: torch.device) -> torch.optim.AdamW:
    """Return AdamW, fused where torch supports it; the first group has the rate of the heads."""
    rates = encoder_rates(student, args)
    groups = []
    for rate in dict.fromkeys([args.learning_rate, *rates.values()]):
        for group in parameter_groups(student, args.weight_decay):
            weights = [weight for weight in group["params"] if rates.get(weight, args.learning_rate) == rate]
            if weights:
                groups.append({**group, "params": weights, "lr": rate})
    return torch.optim.AdamW(groups, lr=args.learning_rate, fused=device.type in FUSED_DEVICES)


def gradient_norm(accelerator: Accelerator, model: torch.nn.Module, limit: float) -> torch.Tensor:
    """Return the norm of all gradients, a scalar on the device, and clip them to a limit unless it is 0."""
    if limit:
        return accelerator.clip_grad_norm_(model.parameters(), limit)
    accelerator.unscale_gradients()
    return torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])


def step_if(optimizer: AcceleratedOptimizer, is_finite: torch.Tensor) -> None:
    """Take a step if a scalar on the device is true; on a CUDA GPU, the host does not read it.

    A skipped step leaves weights, averages and the count of steps as they are. With a gradient scaler, it decides
    itself by the gradients that it has seen.
    """
    if is_finite.device.type in CONDITIONAL_DEVICES:
        optimizer.optimizer.found_inf = (~is_finite).float()  # as a gradient scaler tells a fused optimizer
        optimizer.step()
    elif optimizer.scaler is not None or is_finite:
        optimizer.step()


def encoder_rates(student: torch.nn.Module, args: TrainingArguments) -> dict[torch.Tensor, float]:
    """Return the peak learning rate of each weight of the encoders, if it may differ from that of the heads."""
    rates: dict[torch.Tensor, float] = {}
    for encoder, module in ENCODER_MODULES.items():
        peak = getattr(args, f"{encoder}_learning_rate")
        if peak is None and args.layer_decay == 1:
            continue
        peak = args.learning_rate if peak is None else peak
        weights = dict(student.get_submodule(module).named_parameters())
        for weight, height in zip(weights.values(), layers_above(list(weights)), strict=True):
            rates[weight] = peak * args.layer_decay**height
    return rates


def layers_above(names: Sequence[str]) -> list[int]:
    """Return how often each weight of an encoder is decayed: once in the last layer, most in the embeddings (BEiT).

    Args:
        names: Names of the weights in order. A layer is what has a number, such as `layers.3`. Weights without a
            number belong to the embeddings if they come before the first layer, and are above all layers otherwise.
    """
    matches = [re.match(r"([^.]+\.)*?\d+(?=\.)", name) for name in names]
    layers = [match[0] if match else "" for match in matches]
    depths = {layer: depth for depth, layer in enumerate(dict.fromkeys(filter(None, layers)), start=1)}
    first = next((index for index, layer in enumerate(layers) if layer), 0)
    top = len(depths) + 1
    return [top - depths.get(layer, 0 if index < first else top) for index, layer in enumerate(layers)]


def make_scheduler(
    optimizer: torch.optim.Optimizer, args: TrainingArguments, epoch_steps: int, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a schedule that follows `learning_rate_at`; step it once per optimizer step."""

    def factor(step: int) -> float:
        return learning_rate_at(step, args, epoch_steps, total_steps) / args.learning_rate

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def alpha_at(step: int, alpha: float, ramp_steps: int) -> float:
    """Return the teacher's weight at a step: a linear ramp from 0 (over epoch 0 in the original's `Pretrain.py`)."""
    return alpha * min(1.0, step / ramp_steps) if ramp_steps > 0 else alpha


def learning_rate_at(step: int, args: TrainingArguments, epoch_steps: int, total_steps: int) -> float:
    """Return the learning rate of a step: linear warmup, then a cosine.

    With `staircase` it changes where the original's scripts change it: the warmup, a part of the first epoch, rises
    every 100 steps, and the cosine falls at the end of an epoch.

    Args:
        step: Counted from 0.
        args: Provide the highest and lowest rate and the warmup.
        epoch_steps: Steps of an epoch.
        total_steps: Steps of the run.
    """
    start = args.warmup_learning_rate
    peak = args.learning_rate
    lowest = args.min_learning_rate
    warmup = min(args.warmup_steps, total_steps)
    if args.staircase and step < epoch_steps or not args.staircase and step < warmup:
        held = max(step - 1, 0) // 100 * 100 if args.staircase else step
        return start + (peak - start) * min(held / warmup, 1) if warmup else peak
    done = (step - warmup) / max(total_steps - warmup, 1)
    if args.staircase:
        done = step // epoch_steps * epoch_steps / total_steps
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * done)) / 2


def count_steps(args: TrainingArguments, steps_per_epoch: int | None) -> int:
    """Return the optimizer steps of a run.

    Raises:
        ValueError: If the data is a stream and `max_steps` is not set.
    """
    if args.max_steps > 0:
        return args.max_steps
    if steps_per_epoch is None:
        raise ValueError("A stream has no length; set max_steps.")
    return args.num_train_epochs * steps_per_epoch
