"""Time and memory of a pretraining step: teacher, forward, backward, AdamW, queue and average.

    python benchmarks/pretraining_step.py --size small
    python benchmarks/pretraining_step.py --size base --batch_sizes 4 --repetitions 3

The first row is the plain step: nothing shared, attention spelled out, one weight updated after the other. The others
are the package's own training loop. One unit is a float32 product of 2048x768 by 768x3072 in the same process.
"""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import measure
import torch
from accelerate.state import AcceleratorState
from measure import Measurement
from plain import PlainForPreTraining
from sizes import QUEUES, SIZES, make_config, make_texts
from torch.utils.data import DataLoader

from albef_hf import AlbefConfig, AlbefForPreTraining, MomentumTeacher
from albef_hf.data.row_errors import SkipReason
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.distributed import make_accelerator
from albef_hf.training.lora import add_lora
from albef_hf.training.model_setup import freeze_encoders
from albef_hf.training.optimization import parameter_groups
from albef_hf.training.trainer import Trainer

ALPHA = 0.4
VARIANTS = {
    "float32": {"mixed_precision": "no"},  # a GPU would choose bf16
    "float32, eager attention": {"mixed_precision": "no", "attn_implementation": "eager"},
    "float32, checkpointed": {"mixed_precision": "no", "gradient_checkpointing": True},
    "float32, compiled": {"mixed_precision": "no", "torch_compile": True},
    "bf16": {"mixed_precision": "bf16"},
    "bf16, eager attention": {"mixed_precision": "bf16", "attn_implementation": "eager"},
    "bf16, eager attention, checkpointed": {
        "mixed_precision": "bf16",
        "attn_implementation": "eager",
        "gradient_checkpointing": True,
    },
    "bf16, compiled": {"mixed_precision": "bf16", "torch_compile": True},
    "bf16, eager attention, compiled": {
        "mixed_precision": "bf16",
        "attn_implementation": "eager",
        "torch_compile": True,
    },
}


def make_batch(config: AlbefConfig, batch_size: int) -> dict[str, torch.Tensor]:
    """Random images, and texts of 25 to 30 tokens, 15 % of which are masked."""
    input_ids, mask = make_texts(batch_size, 25, 30)
    chosen = (torch.rand(mask.shape) < 0.15) & (mask == 1)
    chosen[:, 0] = False
    chosen[:, 1] = True
    side = config.vision_config.image_size
    return {
        "input_ids": input_ids,
        "attention_mask": mask,
        "mlm_input_ids": input_ids.masked_fill(chosen, 103),
        "labels": input_ids.masked_fill(~chosen, -100),
        "pixel_values": torch.randn(batch_size, 3, side, side),
    }


def plain_step(config: AlbefConfig, queue_size: int, batch_size: int) -> Callable[[], object]:
    """The step without sharing, as a function to be called again and again."""
    student = PlainForPreTraining(config).to(measure.device()).train()
    teacher = MomentumTeacher(student, queue_size=queue_size).to(measure.device())
    optimizer = torch.optim.AdamW(parameter_groups(student, 0.02), lr=1e-4, foreach=False)
    batch = {name: value.to(measure.device()) for name, value in make_batch(config, batch_size).items()}

    def step() -> None:
        targets = teacher(**batch)
        student(**batch, teacher_outputs=targets, alpha=ALPHA).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        student.clamp_temperature()
        teacher.enqueue(targets.image_embeds, targets.text_embeds)
        with torch.no_grad():
            for own, other in zip(teacher.model.parameters(), student.parameters(), strict=True):
                own.copy_(teacher.momentum * own + (1 - teacher.momentum) * other)

    return step


def package_training(
    config: AlbefConfig,
    queue_size: int,
    batch_size: int,
    args: TrainingArguments,
    make_batch: Callable[[AlbefConfig, int], dict[str, torch.Tensor]] = make_batch,
) -> tuple[Trainer, Callable[[], bool]]:
    """Return the package's trainer, and its step on one batch, to be called repeatedly."""
    AcceleratorState._reset_state()  # of a variant before, whose precision and compilation would stay
    accelerator = make_accelerator(args)
    student = AlbefForPreTraining(config).to(accelerator.device)
    freeze_encoders(student, args)
    teacher = MomentumTeacher(student, queue_size=queue_size)
    if args.lora_rank:
        add_lora(student, teacher, args)
    batch = {**make_batch(config, batch_size), "issues": torch.zeros(len(SkipReason), dtype=torch.long)}
    loader = accelerator.prepare(DataLoader([batch], batch_size=None))
    trainer = Trainer(accelerator, args, student, teacher, loader, SimpleNamespace(say=print), None)
    (batch,) = loader

    def step() -> bool:
        copy = dict(batch)
        trainer.recorder.add_batch(copy, issues=copy.pop("issues"))
        return trainer.training_step(copy)

    return trainer, step


def time_plain(size: str, batch_size: int, repetitions: int) -> Measurement:
    """Measure the step without sharing."""
    torch.manual_seed(0)
    step = plain_step(make_config(size, "eager"), QUEUES[size], batch_size)
    measured = measure.repeat(step, repetitions, batch_size)
    measured.flops = measure.count_flops(step)
    return measured


def time_package(
    size: str,
    batch_size: int,
    repetitions: int,
    choices: dict,
    queue_size: int | None = None,
    image_size: int | None = None,
) -> Measurement:
    """Measure a step of the package with some of its training options, and a queue and images of other sizes."""
    args = TrainingArguments(alpha=ALPHA, alpha_ramp_steps=0, per_device_train_batch_size=batch_size, **choices)

    def make(args: TrainingArguments) -> Callable[[], bool]:
        torch.manual_seed(0)
        config = make_config(size, args.attn_implementation)
        config.vision_config.image_size = image_size or config.vision_config.image_size
        _, step = package_training(config, queue_size or QUEUES[size], batch_size, args)
        return step

    dtype = torch.bfloat16 if args.mixed_precision == "bf16" else torch.float32
    measured = measure.repeat(make(args), repetitions, batch_size, dtype)
    visible = replace(args, attn_implementation="eager", torch_compile=False, mixed_precision="no")
    step = make(visible)
    step()  # in the first one the training itself counts, which would be counted too
    measured.flops = measure.count_flops(step)
    return measured


def main() -> None:
    """Measure the plain step and the package's, and print a table for each batch size."""
    parser = measure.parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="small", help="base is the paper's")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[16], help="pairs in a step")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants to measure")
    options = parser.parse_args()
    for batch_size in options.batch_sizes:
        setting = (options.size, batch_size, options.repetitions)
        variants = {"plain float32": (time_plain, *setting)}
        variants |= {name: (time_package, *setting, VARIANTS[name]) for name in options.only}
        print(f"\npretraining step, {options.size}, {batch_size} pairs, {options.threads} thread(s)")
        print(measure.table(measure.measure(options.threads, variants)), flush=True)


if __name__ == "__main__":
    main()
