"""Write the graphs of a model as ONNX, quantize them, and compare what they compute with torch."""

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401  torch.onnx needs it
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import PreTrainedModel

from ..compatibility_albef import follow_umask
from ..configuration_albef import AlbefConfig
from ..modeling_albef import MODEL_CLASSES
from ..processing_albef import AlbefProcessor
from ..utils.files import listed, new_folder
from ..utils.progress import progress
from .graphs import GRAPHS, Graph, random_inputs

TOLERANCE = 1e-4  # of a float32 output, relative to its largest value, or to 1 if that is smaller
# Sizes of the dynamic axes of a graph, in their order: those it is traced with, of which 1 would become a constant,
# and those that are compared with torch.
TRACED = (2, 3, 4, 5)
CHECKED = ((1, 1, 1, 1), (7, 5, 9, 6))
QUANTIZED = ("MatMul", "Gather")  # linear layers and embeddings; a quantized convolution of patches is slower


@dataclass
class ExportedGraph:
    """A graph that was written.

    Args:
        name: Name of the file.
        graph: What it computes.
        megabytes: Size of the file and of its weights.
        differences: Largest difference from torch in `float32`, and in `int8` if it was quantized; relative to the
            largest value of the output, or to 1.
    """

    name: str
    graph: Graph
    megabytes: float
    differences: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        differences = ", ".join(f"{value:.0e} in {dtype}" for dtype, value in self.differences.items())
        return f"{self.name} ({self.megabytes:.0f} MB): largest difference from torch {differences}"


def export_model(source: str | os.PathLike, output_dir: str | os.PathLike, int8: bool = False) -> list[ExportedGraph]:
    """Write the ONNX graphs of a model to a folder, with its configuration, its processor and a description.

    Each graph is run by onnxruntime on random inputs of two sizes other than the one it was traced with.

    Args:
        source: Folder or Hub name of a model.
        output_dir: Folder to write; created if it does not exist.
        int8: Whether to quantize the graphs after they were checked.

    Raises:
        ValueError: If the head is not exported, the folder is not empty, or a graph computes something else than the
            model. Nothing is written then.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} exists and is not empty. Remove it or choose another folder.")
    model = load_model(source)
    processor = AlbefProcessor.from_pretrained(source)
    graphs = {name: kind(model).eval() for name, kind in GRAPHS[type(model).__name__].items()}
    with new_folder(output_dir) as folder:
        exported = [
            export_graph(graph, folder / f"{name}.onnx", int8)
            for name, graph in progress(graphs.items(), desc="export", unit="graph")
        ]
        processor.save_pretrained(folder)
        model.config.to_json_file(folder / "config.json", use_diff=False)
        (folder / "README.md").write_text(_describe(source, exported), encoding="utf-8")
    return exported


def load_model(source: str | os.PathLike) -> PreTrainedModel:
    """Load a model with its head, in float32 and with its adapters merged.

    Raises:
        ValueError: If the head is not exported, or weights are missing.
    """
    config = AlbefConfig.from_pretrained(source)
    head = (config.architectures or ["no model"])[0]
    if head not in GRAPHS:
        raise ValueError(f"{source} contains {head}, which is not exported. Choose a model with {', '.join(GRAPHS)}.")
    loaded: Any = MODEL_CLASSES[head].from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    if report["missing_keys"]:
        raise ValueError(f"{source} has no {listed(sorted(report['missing_keys']))}: save the whole model again.")
    if config.lora_config:
        from ..training.lora import merge_lora  # like peft, it needs accelerate

        model = merge_lora(model)
    return model.eval()


def export_graph(graph: Graph, path: Path, int8: bool = False) -> ExportedGraph:
    """Write one graph, and check it.

    Raises:
        ValueError: If it computes something else than torch, or in int8 values that are not finite.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary, _quiet():
        exact = Path(temporary, path.name) if int8 else path
        _trace(graph, exact)
        differences = {"float32": _difference(graph, exact)}
        if not differences["float32"] < TOLERANCE:
            raise ValueError(
                f"{path.name} differs from torch by {differences['float32']:.0e}, which is more than {TOLERANCE:.0e}: "
                "nothing was written. Try other versions of torch, onnxscript and onnxruntime."
            )
        if int8:
            quantize_dynamic(
                exact,
                path,
                op_types_to_quantize=[*QUANTIZED],
                weight_type=QuantType.QInt8,
                nodes_to_exclude=_stacked_products(exact),
                per_channel=True,
                use_external_data_format=True,
            )
            differences["int8"] = _difference(graph, path)
            if not np.isfinite(differences["int8"]):
                raise ValueError(f"{path.name} has values in int8 that are not finite: export it without --int8.")
    files = [*path.parent.glob(f"{path.name}*")]
    follow_umask(files)  # onnx writes files that only their owner can read
    size = sum(file.stat().st_size for file in files)
    return ExportedGraph(path.name, graph, size / 1e6, differences)


def _trace(graph: Graph, path: Path) -> None:
    inputs = random_inputs(graph, TRACED)
    axes = {
        name: {axis: size for axis, size in enumerate(sizes) if isinstance(size, str)}
        for name, sizes in graph.inputs.items()
    }
    torch.onnx.export(
        graph,
        (),
        path,
        kwargs=inputs,
        dynamic_shapes=axes,
        input_names=[*inputs],
        output_names=[*graph.outputs],
        dynamo=True,
        verbose=False,
    )


def _stacked_products(path: Path) -> list[str]:
    """Return the products with weights of several heads, which onnxruntime cannot quantize for each channel."""
    graph = onnx.load(path, load_external_data=False).graph
    matrices = {weight.name for weight in graph.initializer if len(weight.dims) == 2}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in matrices]


@torch.no_grad()
def _difference(graph: Graph, path: Path) -> float:
    """Return the largest difference between onnxruntime and torch; NaN if a value is not finite."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for axis_sizes in CHECKED:
        inputs = random_inputs(graph, axis_sizes)
        outputs = session.run([*graph.outputs], {name: value.numpy() for name, value in inputs.items()})
        for actual, expected in zip(outputs, graph(**inputs), strict=True):
            difference = np.abs(actual - expected.numpy()).max()  # raises if the shapes do not fit
            differences.append(difference / max(1, expected.abs().max().item()))
    return float(np.max(differences))  # NaN if one of them is


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings of the libraries about their own internals."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)


def _describe(source: str | os.PathLike, exported: list[ExportedGraph]) -> str:
    """Return the README of the folder."""
    lines = [
        f"# {Path(source).name} in ONNX",
        "`albef export` of albef_hf wrote these files. `pip install onnxruntime` runs them:",
        "```python",
        f'session = onnxruntime.InferenceSession("{exported[0].name}")  # the weights are in a file beside it',
        f"outputs = session.run(None, inputs)  # {', '.join(exported[0].graph.inputs)} as NumPy arrays",
        "```",
        "`AlbefProcessor` makes the inputs from images and texts, and `albef_hf.export.runtime` calls the graphs.",
        "",
        "| file | computes | inputs | outputs | difference from torch |",
        "|---|---|---|---|---|",
    ]
    for file in exported:
        summary = (type(file.graph).__doc__ or "").split("\n")[0]
        inputs = ", ".join(f"`{name}` ({', '.join(map(str, size))})" for name, size in file.graph.inputs.items())
        outputs = ", ".join(f"`{name}`" for name in file.graph.outputs)
        difference = ", ".join(f"{value:.0e} ({dtype})" for dtype, value in file.differences.items())
        lines.append(f"| `{file.name}` | {summary} | {inputs} | {outputs} | {difference} |")
    return "\n".join([*lines, ""])
