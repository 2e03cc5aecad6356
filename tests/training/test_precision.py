"""A GPU is not left in float32 unless an option says so, and a resumed run keeps its precision."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from small_pretraining import records_of

from albef_hf.training import precision
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.precision import choose_mixed_precision, describe_precision, enable_tf32
from albef_hf.utils.devices import default_dtype

AMPERE, VOLTA = (8, 0), (7, 0)


@pytest.fixture
def gpu(monkeypatch):
    """Make the device look like an NVIDIA GPU of a generation."""

    def use(capability: tuple[int, int]) -> torch.device:
        device = torch.device("cuda", 0)
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
        monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: device)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        supported = lambda including_emulation: including_emulation or capability >= AMPERE  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        return device

    return use


@pytest.fixture
def allowed_tf32():
    """Restore what products of float32 are allowed to use; a monkeypatch would delete these attributes of C++."""
    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions


def test_a_gpu_with_bf16_uses_it_by_default(gpu, monkeypatch):
    gpu(AMPERE)
    assert choose_mixed_precision(TrainingArguments()) == "bf16" and default_dtype("cuda") == "bfloat16"
    assert choose_mixed_precision(TrainingArguments(mixed_precision="no")) == "no"
    assert choose_mixed_precision(TrainingArguments(tf32=True)) == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as `accelerate launch` does by itself
    assert choose_mixed_precision(TrainingArguments()) == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert choose_mixed_precision(TrainingArguments()) == "fp16"
    assert choose_mixed_precision(TrainingArguments(mixed_precision="no")) == "no"
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert choose_mixed_precision(TrainingArguments()) == "no"


def test_other_devices_use_float32_by_default(gpu, monkeypatch):
    gpu(VOLTA)
    assert choose_mixed_precision(TrainingArguments()) == "no" and default_dtype("cuda") == "float32"
    for kind in ("mps", "cpu"):
        device = torch.device(kind)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available, device=device: device)
        assert choose_mixed_precision(TrainingArguments()) == "no" and default_dtype(kind) == "float32"


def test_the_log_of_a_gpu_in_float32_names_what_is_faster(gpu, allowed_tf32):
    device = gpu(AMPERE)
    accelerator = SimpleNamespace(device=device, mixed_precision="no")
    assert "WARNING" in describe_precision(accelerator)
    assert "--mixed_precision bf16, or --tf32" in describe_precision(accelerator)
    enable_tf32(device)
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    assert describe_precision(accelerator) == "float32, multiplied in TF32"
    device = gpu(VOLTA)
    said = describe_precision(accelerator)
    assert "--mixed_precision fp16" in said and "--tf32" not in said
    with pytest.raises(ValueError, match="from Ampere on, but the device is cuda:0; remove it"):
        enable_tf32(device)


def test_the_precision_of_a_run_is_said_and_saved_and_resumed(pretrain, capsys, monkeypatch):
    options = ["--mixed_precision", "bf16", "--attn_implementation", "eager"]
    folder = pretrain(*options, "--save_steps", "1", steps=1)
    assert "precision: mixed precision bf16" in capsys.readouterr().out
    (folder / "checkpoints" / "step_9").mkdir()  # damaged
    rest = ["--attn_implementation", "eager", "--resume_from_checkpoint", "--overwrite_output_dir", "false"]
    pretrain(*rest, steps=2)
    said = capsys.readouterr().out
    assert "precision: mixed precision bf16" in said and "mixed_precision" not in said.split("resumed from")[1]
    assert yaml.safe_load((folder / "options.yaml").read_text())["mixed_precision"] == "bf16"
    monkeypatch.setattr(precision, "has_bf16", lambda kind: True)  # a run that began in float32 stays in it
    pretrain("--mixed_precision", "no", "--save_steps", "1", steps=1)
    pretrain(*rest[2:], steps=2)
    assert yaml.safe_load((folder / "options.yaml").read_text())["mixed_precision"] == "no"
    assert [record["step"] for record in records_of(folder) if "loss" in record][-1] == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tf32": True, "mixed_precision": "bf16"}, "tf32 is for float32"),
        ({"ddp_comm_hook": "int8"}, "choose no or bf16"),
        ({"ddp_timeout": 0}, "ddp_timeout is 0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        TrainingArguments(**options)
