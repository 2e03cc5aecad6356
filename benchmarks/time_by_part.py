"""Which part of a pretraining step takes how long, as a table and as a chart.

    python benchmarks/time_by_part.py
    python benchmarks/time_by_part.py --size base --batch_size 4 --output time_by_part_base.png

The parts are those of the package's own loop; a backward pass is one part, since autograd does not tell modules apart.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import measure
import torch
from pretraining_step import ALPHA, VARIANTS, package_training
from sizes import QUEUES, SIZES, make_config

from albef_hf.training.arguments import TrainingArguments

ENCODERS = {"vision_model": "image encoder", "text_model": "text encoder"}


class Clock:
    """Adds up the seconds of each part of a step; a part within another counts for itself alone."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self.running: list[str] = []
        self.start = measure.now()

    def switch(self) -> None:
        """Give the time since the last switch to the part that is running."""
        now = measure.now()
        self.seconds[self.running[-1] if self.running else "rest"] += now - self.start
        self.start = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done in here is of that part."""
        self.switch()
        self.running.append(name)
        yield
        self.switch()
        self.running.pop()

    def watch(self, owner: object, method: str, name: str) -> None:
        """Count all calls of a method as a part."""
        call: Callable = getattr(owner, method)

        def timed(*arguments, **settings):
            with self.part(name):
                return call(*arguments, **settings)

        object.__setattr__(owner, method, timed)


def make_step(size: str, batch_size: int, choices: dict, clock: Clock) -> Callable[[], object]:
    """A step whose parts are watched."""
    torch.manual_seed(0)
    args = TrainingArguments(alpha=ALPHA, alpha_ramp_steps=0, per_device_train_batch_size=batch_size, **choices)
    config = make_config(size, args.attn_implementation)
    trainer, step = package_training(config, QUEUES[size], batch_size, args)
    student = trainer.student
    for name, title in ENCODERS.items():
        clock.watch(getattr(student.albef, name), "forward", title)
    multimodal = student.albef.multimodal_model
    for method in ("forward", "encode_cls", "project_images"):
        clock.watch(multimodal, method, "multimodal encoder")
    clock.watch(student.mlm_head, "forward", "masked-language head")
    clock.watch(student.contrastive_head, "loss", "contrast")
    clock.watch(trainer.teacher, "forward", "teacher")
    clock.watch(trainer.accelerator, "backward", "backward pass")
    clock.watch(trainer.optimizer, "step", "AdamW")
    clock.watch(trainer, "_update_teacher", "queue and average")
    return step


def draw(shares: dict[str, dict[str, float]], path: Path) -> None:
    """One bar for each variant, its parts side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.7 * len(shares)))
    left = dict.fromkeys(shares, 0.0)
    for part in next(iter(shares.values())):
        widths = [units[part] for units in shares.values()]
        axes.barh(list(shares), widths, left=list(left.values()), label=part)
        left = {name: left[name] + width for name, width in zip(left, widths, strict=True)}
    axes.set_xlabel("units: float32 products of 2048x768 by 768x3072")
    axes.invert_yaxis()
    axes.legend(ncol=3, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.35))
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main() -> None:
    """Measure, print a table, draw a chart."""
    parser = measure.parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="small", help="base is the paper's")
    parser.add_argument("--batch_size", type=int, default=16, help="pairs in a step")
    parser.add_argument("--variants", nargs="+", default=["float32", "bf16, eager attention"], choices=VARIANTS)
    parser.add_argument("--output", type=Path, default=Path("time_by_part.png"), help="the chart")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    unit, shares = measure.matrix_product(), {}
    for name in options.variants:
        clock = Clock()
        step = make_step(options.size, options.batch_size, VARIANTS[name], clock)
        found = defaultdict(list)
        for repetition in range(options.repetitions + 2):
            before = unit()
            clock.seconds.clear()
            clock.start = measure.now()
            step()
            clock.switch()
            scale = 2 / (before + unit())
            for part, seconds in clock.seconds.items():
                if repetition >= 2:  # the first two warm up
                    found[part].append(seconds * scale)
        shares[name] = {part: statistics.median(values) for part, values in found.items()}
    print(f"| units | {' | '.join(shares)} |\n|---|{'---|' * len(shares)}")
    for part in next(iter(shares.values())):
        print(f"| {part} | {' | '.join(f'{units[part]:.2f}' for units in shares.values())} |")
    draw(shares, options.output)
    print(f"the chart is {options.output}")


if __name__ == "__main__":
    main()
