"""Export a model to ONNX: the command line."""

import argparse
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Export a model to ONNX, for onnxruntime: every part of its head, checked against torch."""
    parser = argparse.ArgumentParser(prog="albef export", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("model", help="folder or Hub name of a model of any head but text assignment")
    parser.add_argument("output", type=Path, help="the folder to write")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="quantize the weights, and while it runs the states, to 8 bits: a quarter of the size, less exact",
    )
    options = parser.parse_args(arguments)
    from ..utils.progress import log_library_progress
    from .to_onnx import export_model

    log_library_progress()
    for exported in export_model(options.model, options.output, options.int8):
        print(exported)
    print(f"{options.output}/README.md lists inputs and outputs.")
