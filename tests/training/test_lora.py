"""LoRA: adapters in the encoders are trained, averaged by the teacher, saved merged, and resumed bit-identically."""

import copy
import json
import sys

import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from small_pretraining import weights_of
from task_rows import results_of, small, small_evaluation
from transformers import AutoModelForPreTraining, pipeline

from albef_hf import (
    AlbefConfig,
    AlbefForPreTraining,
    AlbefForQuestionAnswering,
    AlbefForRetrieval,
    AlbefForVisualEntailment,
    MomentumTeacher,
)
from albef_hf.conversion.to_original import revert_checkpoint
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.lora import add_lora, merge_lora
from albef_hf.training.model_setup import freeze_encoders
from albef_hf.training.optimization import make_optimizer

peft = pytest.importorskip("peft", reason='peft is not installed: pip install "albef_hf[lora]"')

BOTH = ("albef.vision_model", "albef.text_model")
LORA = ("--lora_rank", "4", "--learning_rate", "0.01")


@pytest.fixture
def adapted(model):
    """A student with adapters that differ from their start, and its teacher."""

    def make(**options) -> tuple[AlbefForPreTraining, MomentumTeacher]:
        args = TrainingArguments(lora_rank=4, **options)
        freeze_encoders(model, args)
        teacher = MomentumTeacher(model, momentum=0.5, queue_size=4)
        add_lora(model, teacher, args)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.1)
        return model, teacher

    return make


def aligned(model: torch.nn.Module) -> torch.nn.Module:
    """Copy a loaded model; products of weights at odd addresses in a file's memory map may be rounded differently."""
    return copy.deepcopy(model)


def test_adapters_and_heads_are_trained_and_nothing_else(adapted, batch):
    model, teacher = adapted()
    model(**batch, teacher_outputs=teacher(**batch), alpha=0.4).loss.backward()
    trained = {name for name, weight in model.named_parameters() if weight.grad is not None}
    of_encoders = {name for name in trained if name.startswith(BOTH)}
    assert len(of_encoders) == 2 * 2 * 4 * 2 and all("lora" in name for name in of_encoders)
    assert {"contrastive_head.image_projection.weight", "albef.multimodal_model.layers.0.mlp.fc1.weight"} <= trained
    optimizer = make_optimizer(model, TrainingArguments(), torch.device("cpu"))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)


def test_the_teacher_averages_adapters_and_shares_what_they_adapt(adapted):
    model, teacher = adapted()
    own, averages = dict(model.named_parameters()), dict(teacher.model.named_parameters())
    before = {name: weight.clone() for name, weight in averages.items()}
    teacher.update(model)
    for name, weight in averages.items():
        assert (weight is own[name]) == (name.startswith(BOTH) and "lora" not in name), name
        assert torch.allclose(weight, 0.5 * (before[name] + own[name])), name
    name = "albef.text_model.layers.0.self_attn.q_proj.lora_B.default.weight"
    assert averages[name].abs().sum() > 0 and not averages[name].requires_grad


def test_merged_it_computes_the_same(adapted, batch, tmp_path):
    model, teacher = adapted()
    teacher.update(model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    merge_lora(model).save_pretrained(tmp_path)
    merge_lora(teacher).save_pretrained(tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())  # not merged itself
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "lora" in name or "base_layer" in name]
    loaded = AlbefForPreTraining.from_pretrained(tmp_path)
    for part, inputs in (("vision_model", "pixel_values"), ("text_model", "input_ids")):
        states = [m.albef.get_submodule(part).eval()(batch[inputs]).last_hidden_state for m in (loaded, model)]
        assert torch.allclose(*states, atol=1e-5), part
    names = load_file(tmp_path / "momentum.safetensors").keys()
    assert "model.albef.vision_model.layers.0.self_attn.q_proj.weight" in names
    assert "model.albef.vision_model.layers.0.mlp.fc1.weight" not in names
    with safe_open(tmp_path / "momentum.safetensors", "pt") as file:
        assert "lora" not in file.metadata()["shared"] and "base_layer" not in file.metadata()["shared"]
    again = MomentumTeacher.from_pretrained(tmp_path, loaded)
    outputs = [t.eval()(**batch) for t in (again, teacher)]
    assert torch.allclose(outputs[0].image_embeds, outputs[1].image_embeds, atol=1e-5)
    assert torch.allclose(outputs[0].logits, outputs[1].logits, atol=1e-5)


def test_unmerged_it_is_saved_and_loaded_exactly(adapted, batch, tmp_path):
    model, _ = adapted()
    model.eval().save_pretrained(tmp_path / "unmerged")
    saved = load_file(tmp_path / "unmerged" / "model.safetensors")
    assert "albef.text_model.layers.0.self_attn.q_proj.base_layer.weight" in saved
    loaded = aligned(AutoModelForPreTraining.from_pretrained(tmp_path / "unmerged"))
    inputs = {name: batch[name] for name in ("input_ids", "pixel_values", "attention_mask")}
    with torch.no_grad():
        outputs = [part(**inputs) for part in (model, loaded, merge_lora(loaded))]
    for name in ("itm_logits", "logits", "image_embeds", "text_embeds"):
        assert torch.equal(outputs[0][name], outputs[1][name]), name
        torch.testing.assert_close(outputs[2][name], outputs[0][name], rtol=0, atol=1e-5)
    for name, part in (("later", loaded), ("now", model)):
        merge_lora(part).save_pretrained(tmp_path / name)
    later, now = (load_file(tmp_path / name / "model.safetensors") for name in ("later", "now"))
    assert later.keys() == now.keys() and all(torch.equal(later[name], now[name]) for name in later)
    assert "lora_config" not in json.loads((tmp_path / "later" / "config.json").read_text())


def test_another_head_starts_from_an_unmerged_model(adapted, batch, tmp_path):
    model, _ = adapted()
    model.eval().save_pretrained(tmp_path)
    head, report = AlbefForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not [name for name in report["missing_keys"] if name.startswith(BOTH)]
    states = [part.albef.text_model(batch["input_ids"]).last_hidden_state for part in (aligned(head), model)]
    assert torch.equal(*states)


def test_an_encoder_that_is_frozen_or_has_no_attention_gets_no_adapter(adapted, config):
    model, _ = adapted(freeze=["image_encoder"])
    assert not [name for name, _ in model.albef.vision_model.named_parameters() if "lora" in name]
    assert [name for name, _ in model.albef.text_model.named_parameters() if "lora" in name]
    other = AlbefForPreTraining(config)
    other.albef.vision_model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    with pytest.raises(ValueError, match="attention, which Sequential does not have: set freeze image_encoder"):
        add_lora(other, None, TrainingArguments(lora_rank=4))
    with pytest.raises(ValueError, match="lora_rank has no effect on frozen encoders"):
        TrainingArguments(lora_rank=4, freeze=["image_encoder", "text_encoder"])


def test_a_pretraining_with_lora_saves_a_plain_model(pretrain, tmp_path):
    pretrain(steps=1).rename(tmp_path / "start")
    folder = pretrain("--model", tmp_path / "start", *LORA, "--gradient_checkpointing", steps=4)
    for part in BOTH:
        before, after = weights_of(tmp_path / "start", part), weights_of(folder, part)
        assert before.keys() == after.keys()
        different = {name for name in before if not torch.equal(before[name], after[name])}
        assert different == {name for name in before if "_proj.weight" in name}
    again = pretrain("--model", folder, "--output_dir", tmp_path / "again", *LORA, steps=1)
    assert (again / "momentum.safetensors").exists()


def test_a_fine_tuning_with_lora(run, pretrained, tmp_path):
    options = small(pretrained, tmp_path / "tuned")
    run("finetune", "entailment", *options, "--max_steps", 2, *LORA)
    assert weights_of(tmp_path / "tuned", BOTH[0]).keys() == weights_of(pretrained, BOTH[0]).keys()


def test_a_fine_tuning_that_does_not_merge(run, pretrained, tmp_path, monkeypatch):
    tuned = tmp_path / "tuned"
    run("finetune", "entailment", *small(pretrained, tuned), "--max_steps", 2, *LORA, "--lora_merge", "false")
    before, after = (weights_of(folder, BOTH[1]) for folder in (pretrained, tuned))
    base = {name.replace("base_layer.", ""): weight for name, weight in after.items() if "lora" not in name}
    assert base.keys() == before.keys() and all(torch.equal(base[name], before[name]) for name in base)
    assert any(weight.any() for name, weight in after.items() if "lora_B" in name)
    run("evaluate", "entailment", *small_evaluation(tuned, tmp_path / "evaluated"))
    step = json.loads((tuned / "metrics.json").read_text())
    assert results_of(tmp_path / "evaluated")[0]["accuracy"] == step["accuracy"]
    assert "needs `pip install peft`" in (tuned / "README.md").read_text()
    with pytest.raises(ValueError, match="has LoRA adapters, but the original has none: .*merge_lora"):
        revert_checkpoint(tuned, tmp_path / "original.pth")
    student = AlbefForVisualEntailment.from_pretrained(tuned)
    with pytest.raises(ValueError, match="The student has LoRA adapters, .*merge_lora"):
        MomentumTeacher.from_pretrained(tuned, student)
    run("finetune", "entailment", *small(tuned, tmp_path / "again"), "--max_steps", 2)  # from the merged weights
    again = weights_of(tmp_path / "again", BOTH[1])
    assert again.keys() == before.keys() and not any(torch.equal(again[name], before[name]) for name in before)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="saved with LoRA adapters, which need peft: pip install peft"):
        AlbefForVisualEntailment.from_pretrained(tuned)
    monkeypatch.delenv("ALBEF_TRACEBACK")
    with pytest.raises(SystemExit, match=r'peft is not installed: pip install "albef_hf\[lora\]"'):
        run("evaluate", "entailment", *small_evaluation(tuned, tmp_path / "evaluated"))


def test_a_pretraining_that_does_not_merge_can_be_continued(pretrain, tmp_path):
    pretrain(*LORA, "--lora_merge", "false").rename(tmp_path / "start")
    score = pipeline("image-text-matching", model=str(tmp_path / "start"))(Image.new("RGB", (9, 9)), "a red ball")
    assert 0 < score["score"] < 1
    names = load_file(tmp_path / "start" / "momentum.safetensors").keys()
    assert not [name for name in names if "lora" in name or "base_layer" in name]
    folder = pretrain("--model", tmp_path / "start", *LORA, steps=1)
    with safe_open(folder / "momentum.safetensors", "pt") as file:
        assert file.metadata()["shared"]
    weights = merge_lora(AlbefForPreTraining.from_pretrained(tmp_path / "start")).state_dict()
    name = "albef.text_model.layers.0.mlp.fc1.weight"
    assert torch.equal(weights_of(folder, BOTH[1])[name], weights[name])


def test_merging_has_no_effect_without_adapters():
    with pytest.raises(ValueError, match="lora_merge false has no effect without adapters"):
        TrainingArguments(lora_merge=False)


def test_without_peft_the_command_says_what_to_install(run, monkeypatch, pretrained, tmp_path):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.delenv("ALBEF_TRACEBACK")
    with pytest.raises(SystemExit, match=r'peft is not installed: pip install "albef_hf\[lora\]"'):
        run("finetune", "entailment", *small(pretrained, tmp_path / "tuned"), "--lora_rank", 4)


@pytest.mark.parametrize(
    "kind", ["Dinov2Config", "CLIPVisionConfig", "SiglipVisionConfig", "BeitConfig", "SwinConfig"]
)
def test_adapters_in_an_image_model_of_transformers(kind, tmp_path):
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    swin = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "patch_size": 4}
    vision = getattr(transformers, kind)(
        image_size=32, **(swin if kind == "SwinConfig" else {**tiny, "patch_size": 8})
    )
    model = AlbefForRetrieval(AlbefConfig(vision_config=vision, text_config={**tiny, "hidden_dropout_prob": 0.0}))
    args = TrainingArguments(lora_rank=4)
    freeze_encoders(model, args)
    teacher = MomentumTeacher(model, momentum=0.5, queue_size=4)
    add_lora(model, teacher, args)
    batch = {"input_ids": torch.tensor([[101, 5], [101, 7]]), "pixel_values": torch.randn(2, 3, 32, 32)}
    labels = {"labels": torch.arange(2)}
    model.train()(**batch, **labels, teacher_outputs=teacher(**batch, **labels), alpha=0.4).loss.backward()
    adapters = [weight for name, weight in model.albef.vision_model.named_parameters() if "lora" in name]
    assert adapters and all(weight.grad is not None for weight in adapters)
    with torch.no_grad():
        for weight in adapters:
            weight.add_(0.1)
    teacher.update(model)
    model.eval().save_pretrained(tmp_path)
    unmerged = aligned(AlbefForRetrieval.from_pretrained(tmp_path))
    loaded, expected = unmerged.state_dict(), model.state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)
    # Kernels may differ: with memory's alignment on some processors, and with gradients where a bias is trained.
    with torch.no_grad():
        torch.testing.assert_close(unmerged(**batch).itm_logits, model(**batch).itm_logits, rtol=0, atol=1e-6)
    merge_lora(model).save_pretrained(tmp_path)
    merged = AlbefForRetrieval.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(merged(**batch).itm_logits, model.eval()(**batch).itm_logits, rtol=0, atol=1e-4)
