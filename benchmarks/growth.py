"""Measure how the cost of a pretraining step and of an evaluation grows with batch, queue, image size and images.

    python benchmarks/growth.py

Each table ends with the exponent of the growth, fitted to its rows: 1 is proportional growth, 0 is no growth.
"""

from collections.abc import Callable

import measure
import numpy as np
import torch
from pretraining_step import VARIANTS, time_package
from retrieval_evaluation import time_package as time_evaluation


def time_step(batch_size: int, queue_size: int, image_size: int, repetitions: int) -> measure.Measurement:
    """Measure a step of the small size with these settings."""
    return time_package("small", batch_size, repetitions, VARIANTS["float32"], queue_size, image_size)


def show(title: str, name: str, threads: int, rows: dict[int, tuple[Callable, ...]]) -> None:
    """Measure the rows of a table, and print it with the exponent."""
    measured = measure.measure(threads, {str(value): row for value, row in rows.items()})
    units = [np.median(result.units) for result in measured.values()]
    print(f"\n{title}\n\n| {name} | units | peak GB |\n|---|---|---|")
    for (value, result), unit in zip(measured.items(), units, strict=True):
        print(f"| {value} | {unit:.1f} | {result.gigabytes:.2f} |")
    exponent = np.polyfit(np.log(list(rows)), np.log(units), 1)[0]
    print(f"| exponent | {exponent:.2f} | |", flush=True)


def main() -> None:
    """Measure and print all tables."""
    parser = measure.parser(__doc__)
    parser.set_defaults(repetitions=5)
    options = parser.parse_args()
    threads = options.threads
    repetitions = options.repetitions
    steps = "pretraining step, small, float32"
    batches = {batch: (time_step, batch, 1024, 128, repetitions) for batch in (4, 8, 16, 32, 64)}
    show(f"{steps}: pairs in a batch", "batch", threads, batches)
    queues = {queue: (time_step, 16, queue, 128, repetitions) for queue in (1024, 4096, 16384, 65536)}
    show(f"{steps}, 16 pairs: queue", "queue", threads, queues)
    sizes = {size: (time_step, 16, 1024, size, repetitions) for size in (64, 128, 192, 256)}
    show(f"{steps}, 16 pairs: height and width of the images", "pixels", threads, sizes)
    evaluations = {
        images: (time_evaluation, "small", images, 16, max(repetitions // 2, 1), torch.float32)
        for images in (32, 64, 128, 256)
    }
    show("retrieval evaluation, small, float32, k = 16: images", "images", threads, evaluations)


if __name__ == "__main__":
    main()
