"""Scores that are normalized by references: the right pairs are matched, hubs are found out, and the command."""

import json
import math
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from sharp_models import make
from task_rows import small_evaluation, write

from albef_hf import AlbefForRetrieval, retrieval_albef
from albef_hf.calibration_albef import MatchCalibration, texts_sha256
from albef_hf.data import Scenes
from albef_hf.evaluation.match_calibration import calibrate, without_contrast, without_matching
from albef_hf.retrieval_albef import Ranking, RetrievalScores, score_all

CAPTIONS = [["red", "a red one"], ["green"], ["blue", "sky", "a blue one"]]
OTHERS = [["a dog", "two dogs run"], ["a boat on the water"], ["snow"], ["a very long street with cars", "a street"]]


@pytest.fixture
def pictures() -> list[Image.Image]:
    return [Image.effect_noise((40, 50), 20 * (index + 1)).convert("RGB") for index in range(7)]


@pytest.fixture
def sharp(config) -> AlbefForRetrieval:
    return make(AlbefForRetrieval, config)


def test_each_is_matched_with_the_references_nearest_to_it(sharp, processor, pictures, monkeypatch):
    monkeypatch.setattr(retrieval_albef, "REFERENCE_K", 2)
    plain = score_all(sharp, processor, pictures[:3], CAPTIONS, rerank_k=3)
    scores = score_all(sharp, processor, pictures[:3], CAPTIONS, rerank_k=3, references=(pictures[3:], OTHERS))
    assert plain.references is None and torch.equal(scores.image_to_text.logits, plain.image_to_text.logits)
    texts, others = ([text for captions in part for text in captions] for part in (CAPTIONS, OTHERS))
    pairs = ((pictures[:3], others, False), (pictures[3:], texts, True))
    for ranking, (images, captions, by_text) in zip(scores.references, pairs, strict=True):
        cosines, log_odds = [], []
        for image in images:
            inputs = processor(images=[image] * len(captions), text=captions, padding=True, return_tensors="pt")
            with torch.no_grad():
                outputs = sharp(**inputs)
            cosines.append(
                torch.stack([a @ b for a, b in zip(outputs.image_embeds, outputs.text_embeds, strict=True)])
            )
            log_odds.append(outputs.itm_logits.diff(dim=1)[:, 0])
        expected, every = (torch.stack(values).T if by_text else torch.stack(values) for values in (cosines, log_odds))
        best = expected.topk(2, dim=1)
        torch.testing.assert_close(ranking.similarities, best.values, atol=1e-5, rtol=1e-4)
        assert torch.equal(ranking.indices, best.indices)
        torch.testing.assert_close(ranking.features()[0].float(), every.gather(1, best.indices), atol=1e-4, rtol=1e-4)
        assert not ranking.positives.any()


def test_processes_share_the_references(sharp, processor, pictures):
    inputs = (sharp, processor, pictures[:3], CAPTIONS, 3)
    alone = score_all(*inputs, references=(pictures[3:], OTHERS))
    barrier, slots = threading.Barrier(2, timeout=60), [None, None]

    def scores_of(rank: int) -> RetrievalScores:
        def all_reduce(values: torch.Tensor) -> torch.Tensor:
            slots[rank] = values
            barrier.wait()
            total = slots[0] + slots[1]
            barrier.wait()
            return total

        return score_all(*inputs, rank=rank, world_size=2, all_reduce=all_reduce, references=(pictures[3:], OTHERS))

    with ThreadPoolExecutor(2) as pool:
        for shared in pool.map(scores_of, (0, 1)):
            for one, other in zip(shared.references, alone.references, strict=True):
                assert torch.equal(one.indices, other.indices)
                torch.testing.assert_close(one.logits, other.logits, atol=1e-5, rtol=1e-5)


def ranking(indices: list, similarities: list, log_odds: list) -> Ranking:
    odds = torch.tensor(log_odds)
    logits = torch.stack([torch.zeros_like(odds), odds], dim=-1)
    indices, similarities = torch.tensor(indices), torch.tensor(similarities)
    return Ranking(indices, similarities, logits, torch.zeros_like(indices, dtype=torch.bool))


def test_the_level_is_that_of_the_candidate():
    calibration = MatchCalibration(2.0, 10.0, 1.0, "noise", reference_weight=0.5, reference_scale=3.0)
    scores = RetrievalScores(
        ranking([[2, 0]], [[0.5, 0.4]], [[1.0, 2.0]]),  # of the only image, the third text and the first
        ranking([[0], [0], [0]], [[0.4], [0.3], [0.5]], [[2.0], [0.0], [1.0]]),
        references=(
            ranking([[7, 8]], [[0.1, 0.2]], [[0.0, 1.0]]),
            ranking([[5], [5], [6]], [[0.0], [0.1], [0.2]], [[0.0], [1.0], [2.0]]),
        ),
    )
    of_texts = [1.0, 2.0 + 1.0 + 1.0, 4.0 + 2.0 + 1.0]  # a single reference each: its own logit
    of_image = math.log(math.exp(3 * (0 + 1 + 1)) + math.exp(3 * (2 + 2 + 1))) / 3
    texts, images = scores.normalized(calibration)
    expected = [[3 * (2 + 5 + 1 - 0.5 * of_texts[2]), 3 * (4 + 4 + 1 - 0.5 * of_texts[0])]]
    torch.testing.assert_close(texts, torch.tensor(expected).double(), atol=1e-6, rtol=0)
    expected = [[3 * (logit - 0.5 * of_image)] for logit in (4 + 4 + 1, 0 + 3 + 1, 2 + 5 + 1)]
    torch.testing.assert_close(images, torch.tensor(expected).double(), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="have no references"):
        replace(scores, references=None).normalized(calibration)


def hubs(spread: float, count: int = 400, k: int = 8) -> RetrievalScores:
    """Scores of pairs of which a part belongs to the image alone: it is as high with the references."""
    generator = torch.Generator().manual_seed(0)
    excess = spread * torch.randn(count, generator=generator)
    ways = []
    for own in (torch.zeros(count), excess):  # texts have none
        positives = torch.zeros(count, k, dtype=torch.bool)
        positives[:, 0] = True
        others = torch.randint(count, (count, k), generator=generator)
        indices = torch.where(positives, torch.arange(count)[:, None], others)
        odds = 2.0 * positives + torch.randn(count, k, generator=generator) + own[indices]
        logits = torch.stack([torch.zeros_like(odds), odds], dim=-1)
        cosines = 0.1 * positives + 0.1 * torch.randn(count, k, generator=generator) + 0.1 * own[indices]
        ways.append(Ranking(indices, cosines, logits, positives))
    nearest = []
    for own in (excess, torch.zeros(count)):
        odds = torch.randn(count, 16, generator=generator) + own[:, None]
        logits = torch.stack([torch.zeros_like(odds), odds], dim=-1)
        cosines = 0.1 * torch.randn(count, 16, generator=generator) + 0.1 * own[:, None]
        nearest.append(Ranking(torch.zeros(count, 16).long(), cosines, logits, torch.zeros(count, 16).bool()))
    return RetrievalScores(*ways, references=tuple(nearest))


def test_references_find_out_what_many_queries_like():
    metrics = {spread: calibrate(hubs(spread), range(400), "noise") for spread in (0.0, 2.0)}
    gains = {
        spread: result.metrics["cross_fitted_normalized_image_r1"] - result.metrics["cross_fitted_image_r1"]
        for spread, result in metrics.items()
    }
    assert gains[2.0] > 10 and gains[0.0] > -3
    assert metrics[2.0].calibration.reference_weight > 0.3
    assert "x the logit, less " in metrics[2.0].summary
    without = calibrate(replace(hubs(2.0), references=None), range(400), "noise")
    assert without.calibration == replace(metrics[2.0].calibration, reference_weight=None, reference_scale=1.0)
    assert not any("normalized" in name for name in without.metrics)


@pytest.mark.parametrize(
    ("stage", "other", "without"), [("itc", "logits", without_matching), ("itm", "similarities", without_contrast)]
)
def test_each_step_is_normalized_without_the_other(stage, other, without):
    scores = hubs(2.0)
    names = [f"cross_fitted_normalized_{stage}_{way}_r{k}" for way in ("text", "image") for k in (1, 5, 10)]
    before = calibrate(scores, range(400), "noise").metrics
    for way in (scores.image_to_text, scores.text_to_image, *scores.references):
        noise = torch.randn(getattr(way, other).shape, generator=torch.Generator().manual_seed(1))
        setattr(way, other, noise)
    after = calibrate(scores, range(400), "noise").metrics
    assert [before[name] for name in names] == [after[name] for name in names]
    assert getattr(without(scores).image_to_text, other).abs().max() == 0


def test_a_calibration_without_references_is_what_earlier_releases_read():
    calibration = MatchCalibration(0.5, 10.0, 1.0, "noise")
    assert set(calibration.to_dict()) == {"scale", "cosine_weight", "bias", "fitted_on"}
    weighted = replace(calibration, reference_weight=0.4)
    for one in (calibration, weighted):
        assert MatchCalibration.from_dict(one.to_dict()) == one
    with pytest.raises(ValueError, match="reference_weight of match_calibration is nan"):
        replace(calibration, reference_weight=math.nan)


@pytest.fixture
def folder(sharp, processor, tmp_path):
    for part in (sharp, processor):
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Annotations of eight images to evaluate on, and of six others."""
    rows = []
    for index, scene in enumerate(Scenes(14, seed=3)[i] for i in range(14)):
        scene["image"].save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "caption": [scene["caption"], f"picture {index}"]})
    for index in range(2):
        shutil.copy(tmp_path / f"{index}.png", tmp_path / f"copy{index}.png")
    parts = {
        "evaluated": [row | {"image_id": index} for index, row in enumerate(rows[:8])],
        "references": rows[8:],
        "copies": [row | {"image": f"copy{row['image']}"} for row in rows[:2]],
        "missing": [rows[0] | {"image": "gone.png"}],
    }
    return {name: str(write(tmp_path, f"{name}.json", part)) for name, part in parts.items()}


def test_the_command_fits_the_weight_and_uses_it(run, folder, files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("albef_hf.tasks.retrieval.calibrate", lambda scores, *_: knowing(calibrate, scores, *_))
    command = ["evaluate", "retrieval", "--model", folder, "--output_dir", tmp_path / "results", "--rerank_k", "5"]
    command += ["--validation_files", files["evaluated"], "--image_root", tmp_path]
    references = ["--reference_files", *(files[name] for name in ("references", "copies", "missing"))]
    with pytest.raises(ValueError, match="has no weight for references; fit it on validation data first"):
        run(*command, *references)
    with pytest.raises(ValueError, match=r"no image to use \(0 images and 0 texts, 2 left out \(evaluated, too\)\)"):
        run(*command, "--calibrate", "--reference_files", files["copies"])
    with pytest.raises(ValueError, match=r"reference_files: .*\(0 images and 0 texts, 1 left out \(image_missing\)\)"):
        run(*command, "--calibrate", "--reference_files", files["missing"])
    capsys.readouterr()
    run(*command, "--calibrate", *references)
    printed = capsys.readouterr().out
    assert "\ncross-fitted, normalized " in printed
    saved = json.loads((folder / "config.json").read_text())["match_calibration"]
    assert saved["reference_weight"] > 0
    path = tmp_path / "results" / "reference_texts.json"
    rows = json.loads(Path(files["references"]).read_text())
    texts = [text for row in rows for text in (*row["caption"][0], row["caption"][1])]
    assert f"`albef index build --reference_texts`, are in {path}" in printed
    assert json.loads(path.read_text()) == texts and saved["reference_texts_sha256"] == texts_sha256(texts)
    described = "6 images and 24 texts, 1 left out (image_missing), 2 left out (evaluated, too)"
    assert f"references: {described}\n" in printed
    assert saved["fitted_on"].endswith(f"; references: {described}, of references.json, copies.json, missing.json")
    metrics = run_metrics(run, [*command, *references, "--reference_size", "5"], tmp_path)
    assert "normalized_r_mean" in metrics and "cross_fitted_r_mean" not in metrics
    assert "normalized_r_mean" not in run_metrics(run, command, tmp_path)


def knowing(calibrate, scores: RetrievalScores, *rest):
    """Calibrate scores that tell right from wrong and have hubs, which those of weights without training do not."""
    excess = 2 * torch.randn(len(scores.image_to_text.logits), generator=torch.Generator().manual_seed(0))
    scores.text_to_image.logits[..., 1] += excess[
        scores.text_to_image.indices[:, : scores.text_to_image.logits.shape[1]]
    ]
    scores.references[0].logits[..., 1] += excess[:, None]
    for way in (scores.image_to_text, scores.text_to_image):
        way.logits[..., 1] += 2.0 * way.positives[:, : way.logits.shape[1]]
    return calibrate(scores, *rest)


def run_metrics(run, command: list, tmp_path) -> dict[str, float]:
    run(*command)
    return json.loads((tmp_path / "results" / "metrics.json").read_text())


def test_options_without_effect_are_refused(run, folder, files, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("evaluate", "retrieval", *small_evaluation(folder, tmp_path / "results"), "--reference_size", "5")
    assert "reference_size has no effect without reference_files" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("finetune", "retrieval", "--model", folder, "--reference_files", files["references"])
    assert "--reference_files has no effect in this command" in capsys.readouterr().err
