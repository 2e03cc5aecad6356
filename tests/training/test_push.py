"""Trainings that push to the Hub: what arrives, what stays at home, and a Hub that fails without ending anything."""

import re
import subprocess
import sys

import pytest
import yaml
from hub_server import HubServer
from paths import REPOSITORY
from PIL import Image

from albef_hf import MomentumTeacher

# Without the waits between attempts, which a test has no time for.
IMPATIENT = "import runpy, sys, albef_hf.training.hub_upload as hub; hub.WAITS = (0.0, 0.0); sys.argv = sys.argv[1:]; "
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
        assert not {"momentum.safetensors", "predictions.jsonl", "card.json", "training.lock"} & set(files)
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


# Answers, for each line with a token, a repository and a tag, what a push would be refused with.
CHECKS = """
import os, sys
from pathlib import Path
import albef_hf.training.hub_upload as hub
hub.WAITS = (0.0, 0.0)
for line in sys.stdin:
    os.environ["HF_TOKEN"], name, tag = line.split(",")
    try:
        hub.HubPush(name, Path("."), tag=tag.strip())
        print("none", flush=True)
    except ValueError as error:
        print(error, flush=True)
"""


@pytest.fixture
def refusal(tmp_path):
    """What a push is refused with before any training."""
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


def test_what_cannot_be_pushed_is_refused_before_the_training_starts(finetune, refusal, tmp_path):
    with HubServer() as hub:
        ended = finetune(hub, hub_model_id="somebody/else")
        assert ended.returncode == 1 and "somebody/else cannot be written to" in ended.stderr
        assert "hf auth login" in ended.stderr and "Traceback" not in ended.stderr
        assert not (tmp_path / "tuned" / "log.jsonl").exists()

        assert refusal(hub, "hf_owner", "owner/model") == "none\n"
        for token, name in (("hf_visitor", "owner/model"), ("hf_wrong", "model"), ("", "model")):
            said = refusal(hub, token, name)
            assert f"{name} cannot be written to" in said and "hf auth login" in said
        hub.repositories["models", "owner/model"].tags["v1"] = hub.repositories["models", "owner/model"].find("main")
        assert "has a tag v1 already" in refusal(hub, "hf_owner", "owner/model")
        assert refusal(hub, "hf_owner", "owner/model", "v2") == "none\n"
        hub.fail("GET", "/whoami", 503, times=2)
        assert refusal(hub, "hf_owner", "owner/model", "v2") == "none\n"
        hub.fail("GET", "/whoami", 503, times=10**6)
        assert "cannot be asked about owner/model" in refusal(hub, "hf_owner", "owner/model", "v2")
    assert "Try again later" in refusal(hub, "hf_owner", "owner/model")


def test_neither_pickles_nor_the_teacher_nor_unnamed_data_get_out(finetune, tmp_path):
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
