"""All that a GPU is measured for, in one command: training, evaluation, index, search and loading of images.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --batch_sizes 64 --measurements training --output training.jsonl

Prints a Markdown table, and writes the same as JSON lines. Every row is measured in a process of its own, so that peak
memory is its own, and running out of it ends a row and not the table. On a CPU it runs at `--size small`.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
from image_loading import draw
from pretraining_step import ALPHA, package_training
from retrieval_evaluation import CAPTIONS, make_inputs
from sizes import QUEUES, SIZES, make_config
from torch.utils.data import DataLoader

from albef_hf import AlbefForRetrieval
from albef_hf.data import ImageTextPairs, Scenes, embedded_tokenizer, make_processor
from albef_hf.data.augmentation import Augmentation
from albef_hf.data.pairs import PairReader
from albef_hf.retrieval_albef import score_all
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.throughput import peak_flops

COLUMNS = ("measurement", "setting", "unit", "per_second", "milliseconds", "mfu", "peak_gigabytes")
TRAINING = {
    "float32": {},
    "bf16": {"mixed_precision": "bf16"},
    "bf16, checkpointed": {"mixed_precision": "bf16", "gradient_checkpointing": True},
    "bf16, compiled": {"mixed_precision": "bf16", "torch_compile": True},
}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
JPEG_SIZES = [(500, 375), (1024, 768)]


def median_seconds(
    work: Callable[[], object], repetitions: int, warm_up: int = 3, now: Callable[[], float] = measure.now
) -> float:
    """Return the median time of some work, after it has run a few times."""
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(repetitions):
        start = now()
        work()
        times.append(now() - start)
    return statistics.median(times)


def result(measurement: str, setting: str, unit: str, count: int, seconds: float, **more: Any) -> dict[str, Any]:
    """Return a row: how many units a second, and the time of all of them."""
    row = {"measurement": measurement, "setting": setting, "unit": unit, "per_second": count / seconds}
    return row | {"milliseconds": 1000 * seconds, "peak_gigabytes": measure.peak_gigabytes()} | more


def training(size: str, repetitions: int, variant: str, batch_size: int) -> dict[str, Any]:
    """Measure steps of pretraining, with the operations that the training itself logs."""
    torch.manual_seed(0)
    args = TrainingArguments(
        alpha=ALPHA, alpha_ramp_steps=0, per_device_train_batch_size=batch_size, **TRAINING[variant]
    )
    trainer, step = package_training(make_config(size), QUEUES[size], batch_size, args)
    seconds = median_seconds(step, repetitions, warm_up=5)
    flops = statistics.mean(trainer.recorder.flops.counted.values())
    peak = peak_flops(measure.device(), "bf16")  # also in float32, to have one scale
    mfu = {"mfu": flops / seconds / peak} if peak else {}
    return result("training", f"{variant}, {batch_size} pairs", "pairs", batch_size, seconds, **mfu)


def evaluation(size: str, repetitions: int, dtype: str, images: int) -> dict[str, Any]:
    """Measure an evaluation of retrieval, with five texts for each image and 16 candidates reranked."""
    model, processor = make_inputs(size, images, DTYPES[dtype], "sdpa")
    captions = torch.arange(CAPTIONS * images).view(images, CAPTIONS).tolist()
    rerank_k = min(16, images)
    seconds = median_seconds(
        lambda: score_all(model, processor, range(images), captions, rerank_k), repetitions, warm_up=1
    )
    return result("evaluation", f"{dtype}, {images} images", "images", images, seconds)


def search(size: str, repetitions: int, images: int) -> list[dict[str, Any]]:
    """Measure the build of an index, which decodes nothing, and searches with 128 images reranked."""
    from albef_hf.search.index import ImageIndex  # needs faiss

    config = make_config(size)
    model = AlbefForRetrieval(config).to(measure.device()).eval()
    scenes = Scenes(images, seed=0, image_size=config.vision_config.image_size)
    pictures = [scenes[index]["image"] for index in range(images)]
    with tempfile.TemporaryDirectory() as folder:
        start = measure.now()
        index = ImageIndex.build(model, make_processor(config, embedded_tokenizer()), pictures, Path(folder) / "index")
        build = result("index", f"float32, {images} images", "images", images, measure.now() - start)
        seconds = median_seconds(lambda: index.search("two dogs in the snow"), repetitions, warm_up=2)
    return [build, result("search", f"float32, {min(images, 128)} reranked", "queries", 1, seconds)]


def loading(size: str, images: int, workers: int) -> list[dict[str, Any]]:
    """Measure how fast a `DataLoader` reads and augments JPEGs, on the wall."""
    config = make_config(size)
    processor = make_processor(config, embedded_tokenizer()).image_processor
    reader = PairReader(Augmentation(config.vision_config.image_size, processor.image_mean, processor.image_std))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for width, height in JPEG_SIZES:
            path = Path(folder) / f"{width}.jpg"
            draw(width, height, path)
            dataset = ImageTextPairs([{"image": str(path), "caption": "a photograph"}] * images, reader)
            loader = DataLoader(dataset, batch_size=32, num_workers=workers, collate_fn=len, persistent_workers=True)
            # On the wall, since the work is that of other processes.
            seconds = median_seconds(lambda loader=loader: sum(loader), 1, warm_up=1, now=time.perf_counter)
            rows.append(result("loading", f"{width}x{height}, {workers} processes", "images", images, seconds))
    return rows


def variants(options: Any) -> list[tuple]:
    """Return the functions to call and their arguments."""
    common = (options.size, options.repetitions)
    chosen = {
        "training": [(training, *common, name, count) for count in options.batch_sizes for name in options.variants],
        "evaluation": [(evaluation, *common, dtype, options.images) for dtype in DTYPES],
        "search": [(search, *common, options.images)],
        "loading": [(loading, options.size, options.images, options.workers)],
    }
    return [call for name in options.measurements for call in chosen[name]]


def measured(threads: int, function: Callable, arguments: tuple) -> list[dict[str, Any]]:
    """Return the rows of a measurement, or one that says why there are none."""
    try:
        found = measure.apart(threads, function, *arguments)
    except (RuntimeError, ImportError) as error:  # too little memory, or no faiss
        setting = ", ".join(map(str, arguments[2:]))
        reason = str(error).partition("\n")[0]
        return [{"measurement": function.__name__, "setting": setting, "error": reason}]
    return found if isinstance(found, list) else [found]


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    if "error" in row:
        return f"| {row['measurement']} | {row['setting']} | {row['error'][:60]} |{' |' * (len(COLUMNS) - 3)}"
    mfu = f"{row['mfu']:.1%}" if "mfu" in row else "-"
    return (
        f"| {row['measurement']} | {row['setting']} | {row['unit']} | {row['per_second']:,.1f} | "
        f"{row['milliseconds']:,.1f} | {mfu} | {row['peak_gigabytes']:.2f} |"
    )


def device_name() -> str:
    """Return what is measured."""
    if measure.device().type == "cuda":
        return torch.cuda.get_device_name()
    return "CPU"


def main() -> None:
    """Measure everything, print the table, and write the lines."""
    parser = measure.parser(__doc__)
    parser.set_defaults(repetitions=20)
    on_gpu = measure.device().type == "cuda"
    names = ("training", "evaluation", "search", "loading")
    parser.add_argument("--size", choices=SIZES, default="base" if on_gpu else "small", help="base is the paper's")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 128, 256, 512], help="pairs in a step")
    parser.add_argument("--variants", nargs="+", choices=TRAINING, default=list(TRAINING), help="of the training")
    parser.add_argument("--images", type=int, default=512, help="that are evaluated, indexed and loaded")
    parser.add_argument("--workers", type=int, default=4, help="processes that load images")
    parser.add_argument("--measurements", nargs="+", choices=names, default=list(names), help="what to measure")
    parser.add_argument("--output", type=Path, default=Path("gpu.jsonl"), help="file of the JSON lines")
    options = parser.parse_args()
    print(f"{device_name()}, torch {torch.__version__}, size {options.size}, median of {options.repetitions}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    with options.output.open("w", encoding="utf-8") as file:
        for function, *arguments in variants(options):
            for row in measured(options.threads, function, tuple(arguments)):
                print(line(row), flush=True)
                about = {"device": device_name(), "torch": torch.__version__, "size": options.size}
                file.write(json.dumps(about | row) + "\n")
                file.flush()


if __name__ == "__main__":
    main()
