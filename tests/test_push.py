"""Trainings that push to the Hub: what arrives, what stays at home, and a Hub that fails without ending anything."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_server import HubServer
from PIL import Image

from albef_hf import MomentumTeacher

REPOSITORY = Path(__file__).parents[1]
# Without the waits between attempts, which a test has no time for.
IMPATIENT = "import runpy, sys, albef_hf.hub as hub; hub.WAITS = (0.0, 0.0); sys.argv = sys.argv[1:]; "
OPTIONS = {
    "task": "entailment",
    "scenes": 24,
    "validation_size": 10,
    "batch_size": 6,
    "epochs": 1,
    "num_workers": 0,
    "eval_every": 2,
    "text_only_baseline": False,
    "push_to_hub": True,
    "hub_model_id": "tuned",
}


@pytest.fixture
def finetune(model, processor, tmp_path):
    """Fine-tunes in a process of its own, against a Hub."""
    for part in (model, processor, MomentumTeacher(model, queue_size=24)):
        part.save_pretrained(tmp_path / "pretrained")

    def run(hub: HubServer, token: str | None = "hf_owner", **options: object) -> subprocess.CompletedProcess:
        given = OPTIONS | {"model": tmp_path / "pretrained", "output_dir": tmp_path / "tuned"} | options
        arguments = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
        script = str(REPOSITORY / "train" / "finetune.py")
        command = [sys.executable, "-c", f"{IMPATIENT}runpy.run_path(sys.argv[0], run_name='__main__')", script]
        environment = hub.environment(tmp_path / "home", token, PYTHONPATH=str(REPOSITORY))
        return subprocess.run(command + arguments, env=environment, capture_output=True, text=True, timeout=600)

    return run


def test_a_training_is_pushed_and_its_card_tells_how_to_use_it(finetune, tmp_path):
    with HubServer() as hub:
        hub.fail("POST", "/commit/", 503, times=1)  # which the client does not try again by itself
        ended = finetune(hub, hub_tag="v1.0", hub_private=True)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert "pushed to" in ended.stdout and "tagged v1.0" in ended.stdout
        assert hub.repositories["models", "owner/tuned"].private
        files = hub.files("owner/tuned", "v1.0")
        assert {"model.safetensors", "config.json", "modeling_albef.py", "options.yaml", "log.jsonl"} <= set(files)
        assert not {"momentum.safetensors", "predictions.jsonl"} & set(files)
        assert not [name for name in files if name.startswith("last/")]
        assert files["model.safetensors"] == (tmp_path / "tuned" / "model.safetensors").read_bytes()

        card = files["README.md"].decode()
        (results,) = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
        assert results["metrics"][0]["name"] == "accuracy" and "More Information Needed" not in card
        (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        Image.new("RGB", (60, 40), "red").save(tmp_path / "picture.jpg")
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


def test_a_hub_that_fails_ends_no_training_and_nothing_is_lost(finetune, tmp_path):
    with HubServer() as hub:
        hub.fail("POST", "/commit/", 503, times=10**6)
        ended = finetune(hub, hub_teacher=True, hub_tag="v1.0")
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert "owner/tuned was not reached" in ended.stdout and "has everything" in ended.stdout
        assert "pushed to" not in ended.stdout and not hub.requests("POST", "/tag/")
    for name in ("model.safetensors", "momentum.safetensors", "README.md", "metrics.json", "curves.png"):
        assert (tmp_path / "tuned" / name).exists()


def test_a_token_that_may_not_write_is_told_of_before_the_training_starts(finetune, tmp_path):
    with HubServer() as hub:
        ended = finetune(hub, hub_model_id="somebody/else")
        assert ended.returncode == 1 and "somebody/else cannot be written to" in ended.stderr
        assert "hf auth login" in ended.stderr and "Traceback" not in ended.stderr
        assert not (tmp_path / "tuned" / "log.jsonl").exists()
