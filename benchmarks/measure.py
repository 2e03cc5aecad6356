"""What the benchmarks share: a unit of work, one process for each variant, and a table.

A machine is slower at one hour than at another, so no result stands alone: times are given in units of one matrix
product, measured in the same process between the repetitions, and beside those of a plain variant of the same run.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

UNIT = (2048, 768, 3072)  # rows, inner width and columns of the product that times are given in
UNIT_FLOPS = 2 * UNIT[0] * UNIT[1] * UNIT[2]


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now() -> float:
    """Seconds: of the processor where one thread does the work, which what else runs on the machine does not lengthen;
    on the wall with several threads or a GPU, whose work is waited for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


@dataclass
class Measurement:
    """What one variant took.

    Args:
        seconds: Of each repetition.
        units: The same in matrix products, each measured right beside its repetition.
        samples: In one repetition.
        flops: Floating-point operations of the matrix products in one repetition, 0 where they were not counted.
        rate: The same per second in a large matrix product of the variant's precision.
        gigabytes: Peak of the memory, resident on a CPU, allocated on a GPU.
        result: What the variant has computed, for comparison.
    """

    seconds: list[float] = field(default_factory=list)
    units: list[float] = field(default_factory=list)
    samples: int = 1
    flops: float = 0.0
    rate: float = 0.0
    gigabytes: float = 0.0
    result: object = None


def matrix_product(dtype: torch.dtype = torch.float32) -> Callable[[], float]:
    """Seconds of the unit, each time it is called; the median of three."""
    a = torch.randn(UNIT[0], UNIT[1], device=device(), dtype=dtype)
    b = torch.randn(UNIT[1], UNIT[2], device=device(), dtype=dtype)
    times = 20 if device().type == "cuda" else 1

    def once() -> float:
        start = now()
        for _ in range(times):
            a @ b
        return (now() - start) / times

    once()
    return lambda: statistics.median(once() for _ in range(3))


def repeat(
    work: Callable[[], object], repetitions: int, samples: int, dtype: torch.dtype = torch.float32, warm_up: int = 2
) -> Measurement:
    """Time some work, which computes in a precision, again and again."""
    unit, own_unit = matrix_product(), matrix_product(dtype)
    measured = Measurement(samples=samples)
    for _ in range(warm_up):
        measured.result = work()
    for _ in range(repetitions):
        before, start = unit(), now()
        measured.result = work()
        seconds = now() - start
        measured.seconds.append(seconds)
        measured.units.append(2 * seconds / (before + unit()))
    measured.rate = UNIT_FLOPS / statistics.median(own_unit() for _ in range(5))
    measured.gigabytes = peak_gigabytes()
    return measured


def peak_gigabytes() -> float:
    """Of this process so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def count_flops(work: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products in some work; its attention has to be `eager` to be seen."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def apart(threads: int, work: Callable[..., Measurement], *arguments: object) -> Measurement:
    """Do some work in a process of its own, so that its peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return pool.submit(work, *arguments).result()


def table(measurements: dict[str, Measurement]) -> str:
    """Rows as people read them; ratios are to the first row."""
    lines = ["| variant | units | seconds | samples/s | peak GB | TFLOP | of the matmul rate | times the first |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    first = statistics.median(next(iter(measurements.values())).units)
    for name, measured in measurements.items():
        units, seconds = statistics.median(measured.units), statistics.median(measured.seconds)
        flops = f"{measured.flops / 1e12:.3f}" if measured.flops else "-"
        share = f"{measured.flops / seconds / measured.rate:.0%}" if measured.flops else "-"
        lines.append(
            f"| {name} | {units:.1f} | {seconds:.3f} | {measured.samples / seconds:.1f} | {measured.gigabytes:.2f} | "
            f"{flops} | {share} | {first / units:.2f} |"
        )
    return "\n".join(lines)


def measure(threads: int, variants: dict[str, tuple]) -> dict[str, Measurement]:
    """Measure each variant, a function and its arguments, in a process of its own."""
    bar = tqdm(variants.items())
    measured = {}
    for name, (work, *arguments) in bar:
        bar.set_description(name)
        measured[name] = apart(threads, work, *arguments)
    return measured


def parser(description: str) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--threads", type=int, default=1, help="of the CPU; times of one are those of the processor")
    result.add_argument("--repetitions", type=int, default=11, help="of which the median counts")
    return result
