"""The scripts in `examples`, each by the command in its docstring; `attack.py` and `mteb_evaluation.py` elsewhere."""

import ast
import csv
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import TINY
from paths import REPOSITORY
from small_pretraining import small_run
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model

from albef_hf import AlbefConfig, AlbefForImageTextClassification, AlbefForPreTraining, cli
from albef_hf.data import embedded_tokenizer, make_processor
from albef_hf.training import logging

FOLDER = REPOSITORY / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
# Options of a training of two steps.
FEW_STEPS = "--max_steps 2 --per_device_train_batch_size 6 --dataloader_num_workers 0 --text_only_baseline false"


def documentation_of(name: str) -> str:
    return ast.get_docstring(ast.parse((FOLDER / name).read_text(encoding="utf-8"))) or ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with an untrained model in `runs/scenes`."""
    config = AlbefConfig(
        projection_dim=16,
        vision_config={**TINY, "image_size": 32},
        text_config={**TINY, "num_multimodal_layers": 2, "max_position_embeddings": 40},
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("examples")
    for part in (AlbefForPreTraining(config), make_processor(config, embedded_tokenizer())):
        part.save_pretrained(folder / "runs/scenes")
    return folder


@pytest.fixture
def example(folder, monkeypatch, capsys):
    """Run an example by the last command of its docstring and further options; return what it prints."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ALBEF_TRACEBACK", "1")
    monkeypatch.setattr(cli, "keep_output_from_failing", lambda: None)  # would replace what pytest captures
    monkeypatch.setattr(logging, "plot_curves", lambda log, image: image.write_bytes(b"curves"))

    def run(name: str, options: str = "") -> str:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        *_, command = re.findall(rf"^ +.*python examples/({name}.*)$", documentation_of(name), re.MULTILINE)
        monkeypatch.setattr("sys.argv", [*shlex.split(command), *shlex.split(options)])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_quickstart(example):
    lines = example("quickstart.py", "--texts 'a red ball' 'two blue stars'").splitlines()
    assert [line.split("  ")[-1] for line in lines] == ["text", "a red ball", "two blue stars"]


def test_finetune_vqa(example):
    printed = example("finetune_vqa.py", f"--rows 40 {FEW_STEPS}").splitlines()
    with Path("runs/questions/table.csv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 40 and all(Path(row["image"]).exists() for row in rows)
    assert any("36 rows to train on, 4 to evaluate on" in line for line in printed)
    given = {row["answer"] for row in rows[:36]}
    assert {line.split("%")[1].strip() for line in printed[-3:]} <= given


def test_search_folder(example):
    contrast, matching, _ = example("search_folder.py", "--scenes 12 --rerank_k 4").splitlines()
    found, reranked = (re.findall(r"\d+\.png", line) for line in (contrast, matching))
    assert len({*found}) == 5 and {*found[:4]} == {*reranked[:4]}
    assert Path("results.html").read_text(encoding="utf-8").count("<li>") == 4


def test_heat_maps(example):
    printed = example("heat_maps.py", "--text 'a red ball and a blue star'")
    assert re.findall(r"^(\w+) +row", printed, re.MULTILINE) == ["red", "ball", "blue", "star"]
    assert " 2 x 2 patches" in printed and Path("heat_maps.png").exists()
    assert any(float(heat) > 0 for heat in re.findall(r"heat (\S+)", printed))


def test_any_encoder(example, monkeypatch):
    tokenizer = embedded_tokenizer()
    BertModel(BertConfig(vocab_size=len(tokenizer), **TINY)).save_pretrained("facebook/bert")
    Dinov2Model(Dinov2Config(**TINY, image_size=28)).save_pretrained("facebook/dinov2-small")
    Path("facebook/bert").rename(Path("google-bert").mkdir() or "google-bert/bert-base-uncased")
    tokenizer.save_pretrained("google-bert/bert-base-uncased")
    printed = example("any_encoder.py", "--steps 2 --batch_size 4").splitlines()
    assert len(printed) == 2 and printed[0].startswith("step 1: ITC ")
    assert AlbefForPreTraining.from_pretrained("runs/any_encoder").config.vision_config.model_type == "dinov2"
    assert Path("runs/any_encoder/momentum.safetensors").exists()


def test_custom_task(example):
    example("custom_task.py", f"--scenes 24 --validation_size 8 {FEW_STEPS}")
    metrics = json.loads(Path("runs/verification/metrics.json").read_text(encoding="utf-8"))
    kinds = [metrics[f"accuracy/{kind}"] for kind in ("color", "shape", "relation", "order")]
    assert metrics["accuracy"] == pytest.approx(sum(kinds) / 4) and "exchanged_images_accuracy" in metrics
    model = AlbefForImageTextClassification.from_pretrained("runs/verification")
    assert model.config.id2label == {0: "false", 1: "true"}


def test_pretrain_job(example):
    example("pretrain_job.py", shlex.join(small_run(Path("runs/job"), 2)))
    assert Path("runs/job/model.safetensors").exists()


def test_vector_database(example):
    pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")
    lines = example("vector_database.py", "--scenes 8 --rerank_k 8").splitlines()
    assert [line.split("R@")[0].strip() for line in lines] == ["retrieved by Qdrant", "reranked by matching"]
    assert all(line.endswith("R@8 100.0%") for line in lines)


def test_one_folder(example, monkeypatch):
    pytest.importorskip("sentence_transformers")
    for name in ("mteb", "albef_hf.export.runtime"):  # which take longer; the script skips them
        monkeypatch.setitem(sys.modules, name, None)
    *_, first, second, third, skipped = example("one_folder.py").splitlines()
    assert first.startswith("| in transformers |") and skipped.startswith("768 pairs; skipped 2: in_mteb (")
    values = [re.findall(r"(-?\d\.\d+) \((\S+)\)", line) for line in (first, second, third)]
    expected = [pytest.approx(float(score), abs=1e-4) for score, _ in values[0]]
    for found in values[1:]:
        assert [float(score) for score, _ in found] == expected
        assert all(float(difference) < 1e-4 for _, difference in found)


def test_the_list_is_complete():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\w+\.py)\]\(\1\)", text, re.MULTILINE)
    assert sorted(listed) == [path.name for path in SCRIPTS]
