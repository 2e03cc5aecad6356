"""Latency and recall of a model that is deployed: torch in float32 and bf16, ONNX in float32 and int8, on one thread.

    python benchmarks/latency.py --size base --repetitions 5
    python benchmarks/latency.py --model runs/scenes

Both stages of a search are timed, the variants in turn within each repetition: an image and a text are encoded, and
one text of 10 tokens is matched with images whose states are in memory. The second command also measures the recall of
each variant on 500 new scenes: each of their captions finds its image by the cosine, and among the 16 best by
matching.
"""

import copy
import re
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
import onnxruntime
import torch
from sizes import SIZES, make_config
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from albef_hf import AlbefForRetrieval, AlbefProcessor
from albef_hf.data import Scenes
from albef_hf.export.graphs import GRAPHS
from albef_hf.export.runtime import OnnxRetrieval
from albef_hf.export.to_onnx import export_graph, load_model

USED = ("image_encoder", "text_encoder", "match_images")
TOKENS = 10
RERANK_K = 16
RANKS = (1, 5, 10)


class TorchRetrieval(OnnxRetrieval):
    """The same calls in torch."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype):
        self.dtype = dtype
        model = copy.deepcopy(model).to(dtype)
        self.graphs = {name: GRAPHS["AlbefForRetrieval"][name](model).eval() for name in USED}
        self.megabytes = sum(weight.nbytes for weight in model.parameters()) / 1e6

    @torch.no_grad()
    def run(self, name: str, *inputs: np.ndarray) -> np.ndarray | list[np.ndarray]:
        tensors = [torch.from_numpy(value) for value in inputs]
        tensors = [value.to(self.dtype) if value.is_floating_point() else value for value in tensors]
        outputs = [output.float().numpy() for output in self.graphs[name](*tensors)]
        return outputs if len(outputs) > 1 else outputs[0]


def export(model: PreTrainedModel, folder: Path, int8: bool, threads: int) -> OnnxRetrieval:
    """The model by onnxruntime."""
    folder.mkdir()
    exported = [
        export_graph(GRAPHS["AlbefForRetrieval"][name](model).eval(), folder / f"{name}.onnx", int8) for name in USED
    ]
    for graph in exported:
        print(graph)
    model.config.to_json_file(folder / "config.json", use_diff=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    loaded = OnnxRetrieval(folder, options)
    loaded.megabytes = sum(graph.megabytes for graph in exported)
    return loaded


def tasks_of(variant: OnnxRetrieval, model: PreTrainedModel) -> dict[str, Callable[[], object]]:
    """What is timed."""
    noise = np.random.default_rng(0)
    pixels = noise.standard_normal((1, 3, *model.config.input_size)).astype(np.float32)
    ids = noise.integers(1000, 30000, (1, TOKENS))
    _, image_states = variant.encode_images(pixels)
    _, text_states = variant.encode_texts(ids, np.ones_like(ids))
    tasks = {
        "encode an image": lambda: variant.encode_images(pixels),
        "encode a text": lambda: variant.encode_texts(ids, np.ones_like(ids)),
    }
    for count in (8, 128):
        images = image_states.repeat(count, 0)
        tasks[f"match {count}"] = lambda images=images: variant.match_images(images, text_states[0])
    return tasks


def time_in_turn(works: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Milliseconds of each variant in each repetition."""
    milliseconds = {name: [] for name in works}
    for repetition in range(1 + repetitions):
        for name, work in works.items():
            start = measure.now()
            count = 0
            while not count or measure.now() - start < 0.1:  # of a short work, the mean of several
                work()
                count += 1
            if repetition:  # the first is a warm-up
                milliseconds[name].append(1000 * (measure.now() - start) / count)
    return milliseconds


def recalls(variant: OnnxRetrieval, processor: AlbefProcessor, rows: list[dict]) -> list[str]:
    """Recall of the captions of all images at `RANKS`, by the cosine and reranked."""
    encoded = [variant.encode_images(**processor(images=[row["image"]], return_tensors="np")) for row in rows]
    image_embeds, image_states = (np.concatenate(parts) for parts in zip(*encoded, strict=True))
    found = {"ITC": [], "reranked": []}
    for image, row in enumerate(tqdm(rows, leave=False)):
        embeds, states = variant.encode_texts(**processor(text=row["caption"], return_tensors="np"))
        for text_embeds, text_states in zip(embeds, states, strict=True):
            best = np.argsort(-(image_embeds @ text_embeds), kind="stable")[:RERANK_K]
            log_odds = variant.match_images(image_states[best], text_states)
            for name, ranked in (("ITC", best), ("reranked", best[np.argsort(-log_odds, kind="stable")])):
                found[name].append(ranked == image)
    return [
        " / ".join(f"{100 * np.mean(np.any(np.array(hits)[:, :k], 1)):.1f}" for k in RANKS) for hits in found.values()
    ]


def processor_name() -> str:
    """The processor, and what it has for products in few bits."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*: (.*)", text)
    units = [unit for unit in ("avx2", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if unit in text]
    return f"{name[1] if name else 'unknown processor'} ({', '.join(units)})"


def print_times(variants: dict[str, OnnxRetrieval], model: PreTrainedModel, repetitions: int) -> None:
    """Print the size of each variant and the time of each task; ratios are medians of those within a repetition."""
    print("| | " + " | ".join(variants) + " |\n" + "|---" * (len(variants) + 1) + "|")
    print(f"| weights, MB | {' | '.join(f'{variant.megabytes:.0f}' for variant in variants.values())} |")
    works = {name: tasks_of(variant, model) for name, variant in variants.items()}
    for task in works["float32"]:
        times = time_in_turn({name: tasks[task] for name, tasks in works.items()}, repetitions)
        cells = []
        for values in times.values():
            ratio = statistics.median(first / own for first, own in zip(times["float32"], values, strict=True))
            cells.append(f"{statistics.median(values):.3g} ({ratio:.2f}x)")
        print(f"| {task}, ms | {' | '.join(cells)} |")


def main() -> None:
    """Measure and print a table."""
    parser = measure.parser(__doc__)
    parser.set_defaults(repetitions=5)
    parser.add_argument("--size", choices=SIZES, default="base", help="of random weights; base is the paper's")
    parser.add_argument("--model", help="a retrieval or pretraining model of the scenes, instead of random weights")
    parser.add_argument("--scenes", type=int, default=500, help="images that captions search; 3 captions each")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = load_model(options.model) if options.model else AlbefForRetrieval(make_config(options.size)).eval()
    with tempfile.TemporaryDirectory() as folder:
        variants = {
            "float32": TorchRetrieval(model, torch.float32),
            "bf16": TorchRetrieval(model, torch.bfloat16),
            "ONNX": export(model, Path(folder, "onnx"), False, options.threads),
            "int8": export(model, Path(folder, "int8"), True, options.threads),
        }
        print(f"\n{processor_name()}, {options.threads} thread(s)\n")
        print_times(variants, model, options.repetitions)
        if options.model:
            processor = AlbefProcessor.from_pretrained(options.model)
            rows = [*Scenes(options.scenes, seed=1)]
            results = [recalls(variant, processor, rows) for variant in variants.values()]
            for index, name in enumerate(("ITC", "reranked")):
                print(f"| recall at 1 / 5 / 10, {name} | {' | '.join(result[index] for result in results)} |")


if __name__ == "__main__":
    main()
