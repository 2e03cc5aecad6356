"""Trainings that push to the Hub: what is uploaded, what is not, and a Hub that fails without ending a training."""

import re
import subprocess
import sys

import huggingface_hub
import pytest
import yaml
from hub_server import HubServer
from PIL import Image

from albef_hf.training import hub_upload
from albef_hf.training.hub_upload import HubUpload

OPTIONS = {
    "scenes": 24,
    "validation_size": 10,
    "per_device_train_batch_size": 6,
    "num_train_epochs": 1,
    "dataloader_num_workers": 0,
    "eval_steps": 2,
    "text_only_baseline": False,
    "push_to_hub": True,
    "hub_model_id": "tuned",
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Start a Hub that this process uploads to, without waits between attempts."""
    with HubServer() as hub:
        for name, value in hub.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        for name, setting in (("ENDPOINT", hub.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(huggingface_hub.constants, name, setting)
        monkeypatch.setattr(hub_upload, "WAITS", (0.0, 0.0))
        yield hub


@pytest.fixture
def finetune(hub, run, pretrained, tmp_path, capsys):
    """Fine-tune and return what was printed."""

    def start(**options: object) -> str:
        given = OPTIONS | {"model": pretrained, "output_dir": tmp_path / "tuned"} | options
        run("finetune", "entailment", *(part for name, value in given.items() for part in (f"--{name}", value)))
        return capsys.readouterr().out

    return start


def test_a_training_is_pushed_with_a_card_whose_snippet_runs(hub, finetune, tmp_path):
    hub.fail("POST", "/commit/", 503, times=1)  # which the client does not try again by itself
    printed = finetune(hub_tag="v1.0", hub_private_repo=True)
    assert "pushed to" in printed and "tagged v1.0" in printed
    assert hub.repositories["models", "owner/tuned"].private
    files = hub.files("owner/tuned", "v1.0")
    assert {"model.safetensors", "config.json", "modeling_albef.py", "options.yaml", "log.jsonl"} <= set(files)
    assert not {"momentum.safetensors", "predictions.jsonl", "card.json", "training.lock"} & set(files)
    assert not [name for name in files if name.startswith("last/")]
    assert files["model.safetensors"] == (tmp_path / "tuned" / "model.safetensors").read_bytes()

    card = files["README.md"].decode()
    (results,) = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    assert results["metrics"][0]["name"] == "accuracy" and "More Information Needed" not in card
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    Image.new("RGB", (60, 40), "red").save(tmp_path / "image.jpg")
    shown = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['albef_hf'] = None\n" + snippet],
        env=hub.environment(tmp_path / "elsewhere"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert shown.stdout.strip() in ("contradiction", "neutral", "entailment"), shown.stderr[-3000:]


def test_a_failing_hub_does_not_end_a_training(hub, finetune, tmp_path):
    hub.fail("POST", "/commit/", 503, times=10**6)
    printed = finetune(hub_teacher=True, hub_tag="v1.0")
    assert "the upload to owner/tuned failed" in printed and "all files are in" in printed
    assert "pushed to" not in printed and not hub.requests("POST", "/tag/")
    for name in ("model.safetensors", "momentum.safetensors", "README.md", "metrics.json", "curves.png"):
        assert (tmp_path / "tuned" / name).exists()


def test_an_impossible_upload_is_refused_before_the_training(hub, finetune, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="cannot write to somebody/else.*hf auth login"):
        finetune(hub_model_id="somebody/else")
    assert not (tmp_path / "tuned" / "log.jsonl").exists()

    HubUpload("owner/model", tmp_path, tag="v1")
    hub.repositories["models", "owner/model"].tags["v1"] = hub.repositories["models", "owner/model"].find("main")
    with pytest.raises(ValueError, match="already has a tag v1"):
        HubUpload("owner/model", tmp_path, tag="v1")
    hub.fail("GET", "/whoami", 503, times=2)
    HubUpload("owner/model", tmp_path, tag="v2")
    hub.fail("GET", "/whoami", 503, times=10**6)
    with pytest.raises(ValueError, match="could not reach the Hub to check owner/model.*Try again later"):
        HubUpload("owner/model", tmp_path, tag="v2")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing answers
    with pytest.raises(ValueError, match="Try again later"):
        HubUpload("owner/model", tmp_path)


@pytest.mark.parametrize(("token", "name"), [("hf_visitor", "owner/model"), ("hf_wrong", "model"), ("", "model")])
def test_a_token_that_cannot_write_is_refused(hub, tmp_path, monkeypatch, token, name):
    HubUpload("owner/model", tmp_path)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ValueError, match=f"cannot write to {name}.*hf auth login"):
        HubUpload(name, tmp_path)


def test_pickles_and_the_teacher_are_not_uploaded(hub, finetune, tmp_path):
    (tmp_path / "tuned" / "more").mkdir(parents=True)
    for name in ("weights.bin", "optimizer.pt", "more/momentum.safetensors", "notes.txt"):
        (tmp_path / "tuned" / name).write_bytes(b"1")
    finetune(hub_teacher=False, alpha=0.4)
    files = hub.files("owner/tuned")
    assert "notes.txt" in files and not {"weights.bin", "optimizer.pt", "more/momentum.safetensors"} & set(files)
    assert (tmp_path / "tuned" / "momentum.safetensors").exists()
    card = files["README.md"].decode()
    assert "momentum teacher" not in card and "queue size" not in card and "| momentum | 0.995 |" in card
