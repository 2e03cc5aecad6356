"""Small models, processors and data that the tests share."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from small_pretraining import TINY_MODEL, small_run
from transformers import logging as transformers_logging

from albef_hf import AlbefConfig, AlbefForPreTraining, AlbefProcessor, MomentumTeacher, cli
from albef_hf.data import Scenes, embedded_tokenizer
from albef_hf.training import logging as training_logging

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def config() -> AlbefConfig:
    return AlbefConfig(
        projection_dim=16,
        vision_config={**TINY, "image_size": 32},
        text_config={**TINY, "num_multimodal_layers": 2, "max_position_embeddings": 40},
    )


@pytest.fixture
def model(config) -> AlbefForPreTraining:
    torch.manual_seed(0)
    return AlbefForPreTraining(config).eval()


@pytest.fixture
def processor() -> AlbefProcessor:
    from transformers import BlipImageProcessorPil

    return AlbefProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), embedded_tokenizer())


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Four pairs, the last two padded, with some tokens masked."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1000, 30000, (4, 9), generator=generator)
    input_ids[:, 0] = 101
    attention_mask = torch.ones_like(input_ids)
    attention_mask[2:, 6:] = 0
    labels = torch.full_like(input_ids, -100)
    labels[:, 2] = input_ids[:, 2]
    return {
        "input_ids": input_ids * attention_mask,
        "attention_mask": attention_mask,
        "mlm_input_ids": (input_ids * attention_mask).index_fill(1, torch.tensor([2]), 103),
        "labels": labels,
        "pixel_values": torch.randn(4, 3, 32, 32, generator=generator),
    }


@pytest.fixture
def warnings_of_albef(monkeypatch) -> list[str]:
    """The warnings of the files that build and initialize models."""
    lines: list[str] = []
    for name in ("encoders_albef", "initialization_albef"):
        logger = transformers_logging.get_logger(f"transformers.albef_hf.{name}")
        monkeypatch.setattr(logger, "warning_once", lines.append)
    return lines


@pytest.fixture
def no_curves(monkeypatch) -> None:
    """Draw no curves, which takes longer than a small training."""
    monkeypatch.setattr(training_logging, "plot_curves", lambda log, image: image.write_bytes(b"curves"))


@pytest.fixture
def run(monkeypatch, no_curves):
    """Run a command of `albef` in this process."""
    monkeypatch.setenv("ALBEF_TRACEBACK", "1")
    monkeypatch.setattr(cli, "keep_output_from_failing", lambda: None)  # would replace what pytest captures

    def start(command: str, *arguments: object) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        cli.main([command, *map(str, arguments)])

    return start


@pytest.fixture
def pretrained(model, processor, tmp_path) -> Path:
    """A small pretrained model with its teacher."""
    model.save_pretrained(tmp_path / "pretrained")
    processor.save_pretrained(tmp_path / "pretrained")
    MomentumTeacher(model, queue_size=24).save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


def assert_colleagues_can_read(folder: Path) -> None:
    """All files have the mode that the umask gives to a new file."""
    (folder / "new").touch()
    assert {path.stat().st_mode for path in folder.rglob("*") if path.is_file()} == {(folder / "new").stat().st_mode}
    (folder / "new").unlink()


@pytest.fixture
def photographs(tmp_path) -> Path:
    for name, color in (("a", "red"), ("b", "blue"), ("c", "green"), ("d", "black")):
        Image.new("RGB", (40, 50), color).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    return tmp_path


@pytest.fixture
def pretrain(run, tmp_path):
    """Pretrain in this process with small settings and the given ones; return the folder."""

    def start(*arguments: object, steps: int = 4) -> Path:
        model_config = None if "--model" in arguments else TINY_MODEL
        run("pretrain", *small_run(tmp_path / "out", steps, model_config), *arguments)
        return tmp_path / "out"

    return start


@pytest.fixture
def scene_images(tmp_path) -> Path:
    """Twenty images and an annotation file in the original's format."""
    (tmp_path / "photographs").mkdir()
    rows = []
    for index in range(20):
        row = Scenes(20)[index]
        row["image"].save(tmp_path / "photographs" / f"{index}.png")
        rows.append({"image": f"{index}.png", "caption": row["caption"]})
    (tmp_path / "photographs" / "train.json").write_text(json.dumps(rows))
    return tmp_path / "photographs"
