"""Time and memory of a step with EfficientNet-Lite0 and a text encoder as MiniLM's: all trained, frozen, and cached.

    python benchmarks/photographs/step_cost.py

Weights, pixels and texts are random. Each variant runs in a process of its own, on the same number of pairs. One unit
is a float32 product of 2048x768 by 768x3072 in the same process.
"""

import sys
from pathlib import Path

import efficientnet_lite
import torch

sys.path.append(str(Path(__file__).parents[1]))
import measure
import pretraining_step

from albef_hf import AlbefConfig
from albef_hf.training.arguments import ENCODERS, TrainingArguments

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
TOKENS = 16
VARIANTS = {
    "all trained": ([], False),
    "encoders frozen": (ENCODERS, False),
    "frozen, states cached": (ENCODERS, True),
}


def make_cached_batch(config: AlbefConfig, batch_size: int) -> dict[str, torch.Tensor]:
    """Return texts with the states of images, as the cache has them: the mean and 7x7 tokens."""
    batch = make_pixel_batch(config, batch_size)
    return batch | {"pixel_values": torch.randn(batch_size, 1 + 49, config.image_hidden_size).half()}


def make_pixel_batch(config: AlbefConfig, batch_size: int) -> dict[str, torch.Tensor]:
    """Return texts of `TOKENS` tokens with pixels."""
    batch = pretraining_step.make_batch(config, batch_size)
    texts = {name: batch[name][:, :TOKENS] for name in ("input_ids", "attention_mask", "mlm_input_ids", "labels")}
    return batch | texts


def time_step(batch_size: int, repetitions: int, frozen: list[str], is_cached: bool) -> measure.Measurement:
    """Measure a step of the package with some encoders frozen."""
    torch.manual_seed(0)
    text = {**MINILM, "num_multimodal_layers": 1, "attention_probs_dropout_prob": 0.0}
    vision = efficientnet_lite.EfficientNetLiteConfig()
    config = AlbefConfig(vision_config=vision, text_config=text, projection_dim=512, text_pooling="mean")
    config._attn_implementation = "eager"
    args = TrainingArguments(freeze=list(frozen), mixed_precision="bf16", per_device_train_batch_size=batch_size)
    make_batch = make_cached_batch if is_cached else make_pixel_batch
    _, step = pretraining_step.package_training(config, 0, batch_size, args, make_batch)
    return measure.repeat(step, repetitions, batch_size, torch.bfloat16)


def main() -> None:
    """Measure the variants and print a table."""
    parser = measure.parser(__doc__)
    parser.add_argument("--batch_size", type=int, default=64, help="pairs in a step")
    options = parser.parse_args()
    variants = {
        name: (time_step, options.batch_size, options.repetitions, *choices) for name, choices in VARIANTS.items()
    }
    print(measure.table(measure.measure(options.threads, variants)))


if __name__ == "__main__":
    main()
