"""Time and memory of a pretraining step when encoders are frozen, adapted, or not run at all.

    python benchmarks/cheap_training.py --size small
    python benchmarks/cheap_training.py --size base --batch_size 4 --repetitions 3

The first row trains everything, and the last column is how many times faster than that the others are. With states
from a cache the image encoder does not run; the batch holds its states in float16 instead of pixels, as
`--cache_image_states` reads them. One unit is a float32 product of 2048x768 by 768x3072 in the same process.
"""

import importlib.util
import math
import platform
from pathlib import Path

import measure
import torch
from measure import Measurement
from pretraining_step import ALPHA, make_batch, package_training
from sizes import QUEUES, SIZES, make_config

from albef_hf import AlbefConfig
from albef_hf.training.arguments import TrainingArguments

IMAGE, BOTH = ["image_encoder"], ["image_encoder", "text_encoder"]
VARIANTS = {
    "trained": ({}, False),
    "LoRA of rank 16": ({"lora_rank": 16}, False),
    "image encoder frozen": ({"freeze": IMAGE}, False),
    "both encoders frozen": ({"freeze": BOTH}, False),
    "image encoder frozen, states from a cache": ({"freeze": IMAGE}, True),
    "both encoders frozen, states from a cache": ({"freeze": BOTH}, True),
}


def make_cached_batch(config: AlbefConfig, batch_size: int) -> dict[str, torch.Tensor]:
    """Return a batch with states of images in place of pixels."""
    tokens = 1 + math.prod(config.vision.grid)
    states = torch.randn(batch_size, tokens, config.image_hidden_size).half()
    return make_batch(config, batch_size) | {"pixel_values": states}


def time_step(size: str, batch_size: int, repetitions: int, choices: dict, is_cached: bool) -> Measurement:
    """Measure a step of the package, on pixels or on states of the image encoder."""
    torch.manual_seed(0)
    args = TrainingArguments(alpha=ALPHA, alpha_ramp_steps=0, per_device_train_batch_size=batch_size, **choices)
    batches = make_cached_batch if is_cached else make_batch
    _, step = package_training(make_config(size), QUEUES[size], batch_size, args, batches)
    measured = measure.repeat(step, repetitions, batch_size)
    measured.flops = measure.count_flops(step)
    return measured


def processor_name() -> str:
    """Return the name of the processor that is measured."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Measure all variants and print a table."""
    parser = measure.parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="small", help="base is the paper's")
    parser.add_argument("--batch_size", type=int, default=16, help="pairs in a step")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants to measure")
    options = parser.parse_args()
    if importlib.util.find_spec("peft") is None:
        options.only = [name for name in options.only if "lora_rank" not in VARIANTS[name][0]]
        print("peft is not installed, so LoRA is not measured")
    setting = (options.size, options.batch_size, options.repetitions)
    variants = {}
    for name in options.only:
        choices, is_cached = VARIANTS[name]
        variants[name] = (time_step, *setting, choices, is_cached)
    threads = f"{options.threads} thread(s) of {processor_name()}"
    print(f"pretraining step, {options.size}, {options.batch_size} pairs, {threads}")
    print(measure.table(measure.measure(options.threads, variants)), flush=True)


if __name__ == "__main__":
    main()
