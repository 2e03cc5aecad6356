"""Try every kind of image model as ALBEF's image encoder, at tiny size, and print a table of what works.

    python benchmarks/image_encoders.py

Each cell is one trial with random weights: losses and gradients with a teacher, activation checkpointing (the same
gradients), an image of another size and shape, heat maps of matching and of contrast, saving and loading in a process
without the package (the same logits), and ONNX where onnxscript and onnxruntime are installed. A cell that fails shows
the error that a user gets, below the table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedConfig

from albef_hf import AlbefConfig, AlbefForRetrieval
from albef_hf.compatibility_albef import enable_activation_checkpointing
from albef_hf.data import embedded_tokenizer, make_processor
from albef_hf.heatmaps_albef import contrastive_heatmaps, matching_heatmaps
from albef_hf.momentum import MomentumTeacher

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VIT = {**TINY, "image_size": 32, "patch_size": 8}
CNN = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "image_size": 64}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
EFFICIENTNET = {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 2]}
# The configuration class of each kind and its settings; the paper's ViT comes first.
KINDS = {
    "ALBEF's ViT": ("AlbefVisionConfig", VIT),
    "ViT": ("ViTConfig", VIT),
    "DeiT": ("DeiTConfig", VIT),
    "DINOv2": ("Dinov2Config", VIT),
    "DINOv2 with registers": ("Dinov2WithRegistersConfig", VIT),
    "DINOv3 ViT": ("DINOv3ViTConfig", {**VIT, "num_register_tokens": 4}),
    "CLIP": ("CLIPVisionConfig", VIT),
    "SigLIP, SigLIP 2 (fixed size)": ("SiglipVisionConfig", VIT),
    "BEiT": ("BeitConfig", VIT),
    "Swin": ("SwinConfig", {**SWIN, "window_size": 2}),
    "ConvNeXt": ("ConvNextConfig", CNN),
    "ConvNeXt V2": ("ConvNextV2Config", CNN),
    "DINOv3 ConvNeXt": ("DINOv3ConvNextConfig", CNN),
    "ResNet": ("ResNetConfig", RESNET),
    "EfficientNet": ("EfficientNetConfig", EFFICIENTNET),
    "timm (ViT)": (
        "TimmWrapperConfig",
        {
            "architecture": "vit_tiny_patch16_224",
            "model_args": {"img_size": 32, "depth": 2},
            "num_features": 192,
            "image_size": 32,
        },
    ),
    "timm (ConvNeXt)": (
        "TimmWrapperConfig",
        {"architecture": "convnext_atto", "num_features": 320, "image_size": 64},
    ),
    "SigLIP 2 (NaFlex)": ("Siglip2VisionConfig", {**TINY, "num_patches": 16, "patch_size": 8}),
}
# Runs without the package: loads folders and saves the logits of the batch that lies in each.
VISITOR = """
import sys, torch
from transformers import AutoModelForZeroShotImageClassification
for folder in sys.argv[1:]:
    model = AutoModelForZeroShotImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        torch.save(model(**torch.load(f"{folder}/batch.pt")).itm_logits, f"{folder}/logits.pt")
"""


def make_config(kind: str) -> AlbefConfig:
    """Return the configuration of a tiny model with an image encoder of this kind."""
    name, settings = KINDS[kind]
    vision: dict | PreTrainedConfig = dict(settings)
    if name != "AlbefVisionConfig":
        vision = getattr(transformers, name)(**settings)
    return AlbefConfig(vision_config=vision, text_config=TINY, projection_dim=16)


def make_batch(config: AlbefConfig) -> dict[str, torch.Tensor]:
    """Return three random images with texts."""
    ids = torch.tensor([[101, 5, 6], [101, 7, 8], [101, 9, 3]])
    return {"input_ids": ids, "pixel_values": torch.randn(3, 3, *config.input_size)}


def try_training(model: AlbefForRetrieval) -> str:
    """Compute losses and gradients with a teacher, and update it."""
    batch = make_batch(model.config) | {"labels": torch.arange(3)}
    teacher = MomentumTeacher(model, queue_size=4)
    model.train()(**batch, teacher_outputs=teacher(**batch), alpha=0.4).loss.backward()
    teacher.update(model)
    without = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    return f"no gradient: {', '.join(without)}" if without else "yes"


def try_checkpointing(model: AlbefForRetrieval) -> str:
    """Compare gradients with and without activation checkpointing."""
    batch = make_batch(model.config) | {"labels": torch.arange(3)}
    gradients = []
    for enable in (lambda _: None, enable_activation_checkpointing):
        enable(model.train())
        model.zero_grad()
        torch.manual_seed(1)
        model(**batch).loss.backward()
        gradients.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    pairs = zip(*gradients, strict=True)
    return f"difference {max((one - other).abs().max().item() for one, other in pairs):.0e}"


def try_other_size(model: AlbefForRetrieval) -> str:
    """Encode an image of another size and shape, and return the grid of its states."""
    height, width = model.config.input_size
    batch = make_batch(model.config) | {"pixel_values": torch.randn(3, 3, height + 32, width + 96)}
    rows, columns = matching_heatmaps(model, **batch).shape[2:]
    return f"{height + 32}x{width + 96}: {rows}x{columns}"


def try_matching_heatmap(model: AlbefForRetrieval) -> str:
    """Compute the heat maps of matching."""
    rows, columns = matching_heatmaps(model, **make_batch(model.config)).shape[2:]
    return f"{rows}x{columns}"


def try_contrastive_heatmap(model: AlbefForRetrieval) -> str:
    """Compute the heat maps of contrast."""
    rows, columns = contrastive_heatmaps(model, **make_batch(model.config)).shape[1:]
    return f"{rows}x{columns}"


def try_onnx(model: AlbefForRetrieval) -> str:
    """Export the image encoder, run it on other numbers of images, and compare."""
    from albef_hf.export.graphs import ImageEncoder
    from albef_hf.export.to_onnx import export_graph

    with tempfile.TemporaryDirectory() as folder:
        exported = export_graph(ImageEncoder(model).eval(), Path(folder, "image_encoder.onnx"))
    return f"difference {exported.differences['float32']:.0e}"


def try_processor(model: AlbefForRetrieval) -> str:
    """Make the processor of a model that starts from this image model, and compare its settings."""
    if model.config.has_albef_vit or model.config.vision_config.model_type == "deit":
        return "CLIP's, as in the paper"
    own = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.4, 0.5, 0.6), "resample": 2}
    with tempfile.TemporaryDirectory() as folder:
        model.albef.vision_model.encoder.save_pretrained(folder)
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(own))
        images = make_processor(model.config, embedded_tokenizer(), vision_model=folder).image_processor
    kept = [name for name, value in own.items() if getattr(images, name) == value]
    return "yes" if len(kept) == len(own) else f"{', '.join(kept)} alone"


TRIALS: dict[str, Callable[[AlbefForRetrieval], str]] = {
    "loss, gradients, teacher": try_training,
    "checkpointing": try_checkpointing,
    "other size": try_other_size,
    "heat map of matching": try_matching_heatmap,
    "of contrast": try_contrastive_heatmap,
    "own mean, deviation, resampling": try_processor,
    "ONNX": try_onnx,
}


def load_without_the_package(folders: list[Path]) -> None:
    """Run `VISITOR` on folders, in a process that cannot import this package."""
    environment = {**os.environ, "HF_MODULES_CACHE": tempfile.mkdtemp(), "PYTHONPATH": ""}
    command = [sys.executable, "-c", VISITOR, *map(str, folders)]
    subprocess.run(command, env=environment, cwd=folders[0].parent, check=True)


def main() -> None:
    """Try all kinds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), help="rows of the table; default: all")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    rows: dict[str, list[str]] = {}
    saved: dict[str, Path] = {}
    errors = []
    for kind in options.kinds:
        torch.manual_seed(0)
        try:
            model = AlbefForRetrieval(make_config(kind)).eval()
        except (ValueError, ImportError) as error:
            errors.append(f"{kind}: {error}")
            continue
        encoder = model.albef.vision_model
        batch = make_batch(model.config)
        with torch.no_grad():
            states = encoder(batch["pixel_values"]).last_hidden_state
            expected = model(**batch).itm_logits
        saved[kind] = root / str(len(saved))
        model.save_pretrained(saved[kind])
        torch.save(batch, saved[kind] / "batch.pt")
        torch.save(expected, saved[kind] / "expected.pt")
        rows[kind] = [getattr(encoder, "pooling", "cls"), "x".join(map(str, states.shape[1:]))]
        for name, trial in TRIALS.items():
            try:
                rows[kind].append(trial(model.eval()))
            except Exception as error:  # whatever a library raises is what the table is about
                rows[kind].append("no")
                errors.append(f"{kind}, {name}: {str(error).splitlines()[0]}")
    load_without_the_package(list(saved.values()))
    print("| image encoder | first state | states | " + " | ".join(TRIALS) + " | loaded without the package |")
    print("|---" * (4 + len(TRIALS)) + "|")
    for kind, cells in rows.items():
        difference = torch.load(saved[kind] / "logits.pt") - torch.load(saved[kind] / "expected.pt")
        print(f"| {' | '.join([kind, *cells])} | difference {difference.abs().max().item():.0e} |")
    print(*(f"\n{error}" for error in errors))


if __name__ == "__main__":
    main()
