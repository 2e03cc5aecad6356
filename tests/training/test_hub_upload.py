"""Trainings that push to the Hub: what is uploaded, what is not, and a Hub that fails without ending a training."""

import re
import subprocess
import sys

import pytest
import yaml
from hub_server import HubServer
from paths import REPOSITORY
from PIL import Image

from albef_hf import MomentumTeacher

# Fine-tune without the waits between attempts.
FINETUNE = """
import sys
import albef_hf.training.hub_upload as hub
from albef_hf.cli import main
hub.WAITS = (0.0, 0.0)
main(["finetune", "entailment", *sys.argv[1:]])
"""
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
def finetune(model, processor, tmp_path):
    """Fine-tune in a process of its own, with a Hub."""
    for part in (model, processor, MomentumTeacher(model, queue_size=24)):
        part.save_pretrained(tmp_path / "pretrained")

    def run(hub: HubServer, token: str | None = "hf_owner", **options: object) -> subprocess.CompletedProcess:
        given = OPTIONS | {"model": tmp_path / "pretrained", "output_dir": tmp_path / "tuned"} | options
        arguments = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
        command = [sys.executable, "-c", FINETUNE]
        environment = hub.environment(tmp_path / "home", token, PYTHONPATH=str(REPOSITORY))
        return subprocess.run(command + arguments, env=environment, capture_output=True, text=True, timeout=600)

    return run


def test_a_training_is_pushed_with_a_card_whose_snippet_runs(finetune, tmp_path):
    with HubServer() as hub:
        hub.fail("POST", "/commit/", 503, times=1)  # which the client does not try again by itself
        ended = finetune(hub, hub_tag="v1.0", hub_private_repo=True)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert "pushed to" in ended.stdout and "tagged v1.0" in ended.stdout
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
        no_package = "import sys; sys.modules['albef_hf'] = None\n"
        environment = hub.environment(tmp_path / "elsewhere")
        shown = subprocess.run(
            [sys.executable, "-c", no_package + snippet],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert shown.stdout.strip() in ("contradiction", "neutral", "entailment"), shown.stderr[-3000:]


def test_a_failing_hub_does_not_end_a_training(finetune, tmp_path):
    with HubServer() as hub:
        hub.fail("POST", "/commit/", 503, times=10**6)
        ended = finetune(hub, hub_teacher=True, hub_tag="v1.0")
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert "the upload to owner/tuned failed" in ended.stdout and "all files are in" in ended.stdout
        assert "pushed to" not in ended.stdout and not hub.requests("POST", "/tag/")
    for name in ("model.safetensors", "momentum.safetensors", "README.md", "metrics.json", "curves.png"):
        assert (tmp_path / "tuned" / name).exists()


# Print, for each line with a token, a repository and a tag, the error that an upload would be refused with.
CHECKS = """
import os, sys
from pathlib import Path
import albef_hf.training.hub_upload as hub
hub.WAITS = (0.0, 0.0)
for line in sys.stdin:
    os.environ["HF_TOKEN"], name, tag = line.split(",")
    try:
        hub.HubUpload(name, Path("."), tag=tag.strip())
        print("none", flush=True)
    except ValueError as error:
        print(error, flush=True)
"""


@pytest.fixture
def refusal(tmp_path):
    """The error of an upload before any training."""
    started: list[subprocess.Popen] = []

    def check(hub: HubServer, token: str, name: str, tag: str = "v1") -> str:
        if not started:
            environment = hub.environment(tmp_path / "home", None, PYTHONPATH=str(REPOSITORY))
            command, pipes = [sys.executable, "-c", CHECKS], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            started.append(subprocess.Popen(command, env=environment, text=True, **pipes))
        started[0].stdin.write(f"{token},{name},{tag}\n")
        started[0].stdin.flush()
        return started[0].stdout.readline()

    yield check
    started[0].communicate()


def test_an_impossible_upload_is_refused_before_the_training(finetune, refusal, tmp_path):
    with HubServer() as hub:
        ended = finetune(hub, hub_model_id="somebody/else")
        assert ended.returncode == 1 and "cannot write to somebody/else" in ended.stderr
        assert "hf auth login" in ended.stderr and "Traceback" not in ended.stderr
        assert not (tmp_path / "tuned" / "log.jsonl").exists()

        assert refusal(hub, "hf_owner", "owner/model") == "none\n"
        for token, name in (("hf_visitor", "owner/model"), ("hf_wrong", "model"), ("", "model")):
            said = refusal(hub, token, name)
            assert f"cannot write to {name}" in said and "hf auth login" in said
        hub.repositories["models", "owner/model"].tags["v1"] = hub.repositories["models", "owner/model"].find("main")
        assert "already has a tag v1" in refusal(hub, "hf_owner", "owner/model")
        assert refusal(hub, "hf_owner", "owner/model", "v2") == "none\n"
        hub.fail("GET", "/whoami", 503, times=2)
        assert refusal(hub, "hf_owner", "owner/model", "v2") == "none\n"
        hub.fail("GET", "/whoami", 503, times=10**6)
        assert "could not reach the Hub to check owner/model" in refusal(hub, "hf_owner", "owner/model", "v2")
    assert "Try again later" in refusal(hub, "hf_owner", "owner/model")


def test_pickles_and_the_teacher_are_not_uploaded(finetune, tmp_path):
    (tmp_path / "tuned" / "more").mkdir(parents=True)
    for name in ("weights.bin", "optimizer.pt", "more/momentum.safetensors", "notes.txt"):
        (tmp_path / "tuned" / name).write_bytes(b"1")
    with HubServer() as hub:
        assert finetune(hub, hub_teacher=False, alpha=0.4).returncode == 0
        files = hub.files("owner/tuned")
        assert "notes.txt" in files and not {"weights.bin", "optimizer.pt", "more/momentum.safetensors"} & set(files)
        assert (tmp_path / "tuned" / "momentum.safetensors").exists()
        card = files["README.md"].decode()
        assert "momentum teacher" not in card and "queue size" not in card and "| momentum | 0.995 |" in card
