"""The fit of a calibration: known weights come out, hopeless data are refused, and `--calibrate` saves it."""

import json
import math

import pytest
import torch
from sharp_models import make
from task_rows import FILES, make_task, results_of, small_evaluation, write

from albef_hf import AlbefForRetrieval, AlbefProcessor
from albef_hf.calibration_albef import MatchCalibration
from albef_hf.evaluation.match_calibration import (
    MIN_SCALE,
    Pairs,
    calibrate,
    candidate_pairs,
    fit_calibration,
    save_calibration,
)
from albef_hf.retrieval_albef import Ranking, RetrievalScores

SLOPES = (0.8, 6.0)
CENTER = (1.0, 0.3)  # between right and wrong candidates, where the probability is one half


def make_scores(
    slopes: tuple[float, float] = SLOPES, images: int = 1000, texts: int = 1000, seed: int = 0
) -> RetrievalScores:
    """Return scores of which the probability is known: right and wrong ones are normal, with the same variances.

    The logit is then the slopes times the distance from the center, if half of the pairs are right. A fifth of the
    queries has no right candidate.
    """
    generator = torch.Generator().manual_seed(seed)
    rankings = []
    k = 8
    for queries in (images, texts):
        positives = torch.zeros(queries, k, dtype=torch.bool)
        positives[:, 0] = torch.rand(queries, generator=generator) < 0.8
        values = []
        for slope, center, std in zip(slopes, CENTER, (2.0, 0.1), strict=True):
            shift = slope * std**2 * (positives.double() - 0.5)
            values.append(center + shift + std * torch.randn(queries, k, generator=generator, dtype=torch.double))
        logits = torch.stack([torch.full_like(values[0], 3.0), values[0] + 3.0], dim=-1)
        rankings.append(Ranking(torch.arange(queries * k).view(queries, k), values[1], logits, positives))
    return RetrievalScores(*rankings)


def test_the_fit_recovers_the_probability():
    fitted = fit_calibration(candidate_pairs(make_scores(images=20_000, texts=20_000)), "noise")
    assert fitted.scale == pytest.approx(0.8, rel=0.03)
    assert fitted.cosine_weight == pytest.approx(6.0, rel=0.05)
    assert fitted.bias == pytest.approx(-0.8 * 1.0 - 6.0 * 0.3, abs=0.1)
    assert fitted.fitted_on == "noise"


def test_what_the_candidates_of_a_query_have_in_common_does_not_change_their_order():
    scores = make_scores(images=20_000, texts=20_000)
    for ranking in (scores.image_to_text, scores.text_to_image):
        common = 20 * torch.randn(len(ranking.logits), 1, generator=torch.Generator().manual_seed(1)).double()
        ranking.logits[..., 1] += common
    fitted = fit_calibration(candidate_pairs(scores), "noise")
    assert fitted.itc_weight == pytest.approx(SLOPES[1] / SLOPES[0], rel=0.05)


def test_a_score_that_is_right_alone_is_used_alone():
    """The other one is wrong and its mirror image, so that in a sum of both, both would have a negative weight."""
    scores = make_scores(images=20_000, texts=20_000)
    generator = torch.Generator().manual_seed(1)
    for ranking in (scores.image_to_text, scores.text_to_image):
        noise, other = torch.randn(2, *ranking.positives.shape, generator=generator).double()
        right = ranking.positives.double()
        ranking.logits = torch.stack([torch.zeros_like(noise), 0.3 * right + noise], dim=-1)
        ranking.similarities[:] = -0.4 * right - 0.9 * noise + 0.43 * other
    fitted = fit_calibration(candidate_pairs(scores), "noise")
    assert fitted.cosine_weight == 0 and fitted.scale == pytest.approx(0.3, rel=0.05)


def pairs_of(logits: list[float], is_right: list[int], weights: list[float], queries: list[int]) -> Pairs:
    values = torch.tensor(logits, dtype=torch.double)
    right, weight = (torch.tensor(column, dtype=torch.double) for column in (is_right, weights))
    return Pairs(values, values, right, weight, torch.tensor(queries))


def test_right_candidates_compete_with_wrong_ones_and_not_with_each_other():
    pairs = pairs_of([1, 2, 0, 5], [1, 1, 0, 1], [0.25, 0.25, 0.5, 0.25], [0, 0, 0, 1])  # the last one has no rival
    expected = 0.5 * (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2)))
    assert pairs.order_loss(pairs.log_odds).item() == pytest.approx(expected, rel=1e-12)


def test_the_order_has_a_finite_loss_and_gradient_however_far_candidates_are_apart():
    pairs = pairs_of([2000, 0, -3000, 1000, 0], [1, 1, 0, 0, 1], [0.25] * 5, [0, 0, 0, 1, 1])
    logits = pairs.log_odds.clone().requires_grad_()
    loss = pairs.order_loss(logits)
    loss.backward()
    assert loss.item() == pytest.approx(500)  # of the last one, which is 1000 below a wrong one
    assert logits.grad.tolist() == [0, 0, 0, 0.5, -0.5]


def test_right_and_wrong_candidates_count_equally_in_each_direction():
    scores = make_scores()
    pairs = candidate_pairs(scores)
    right = pairs.is_right.bool()
    size = scores.image_to_text.positives.numel()
    for part in (slice(size), slice(size, None)):
        for chosen in (right[part], ~right[part]):
            assert pairs.weights[part][chosen].sum().item() == pytest.approx(0.25)
    plain = pairs.log_odds
    losses = torch.where(right, plain.sigmoid(), 1 - plain.sigmoid()).log().neg()
    assert pairs.log_loss(plain).item() == pytest.approx((pairs.weights * losses).sum().item())
    certain = torch.where(right, 50.0, -50.0).double()
    assert pairs.calibration_error(certain) == pytest.approx(0, abs=1e-6)
    assert pairs.calibration_error(-certain) == pytest.approx(100)
    assert pairs.calibration_error(torch.full_like(plain, math.log(3))) == pytest.approx(25), (
        "75 %, but half are right"
    )


def test_the_order_is_that_of_the_probability():
    scores = make_scores()
    fitted = fit_calibration(candidate_pairs(scores), "noise")
    ranking = scores.text_to_image
    probability = fitted.probability(ranking.logits.diff(dim=-1).squeeze(-1), ranking.similarities)
    by_probability = ranking.indices.gather(1, probability.argsort(descending=True, stable=True))
    assert torch.equal(ranking.reranked(fitted.itc_weight), by_probability)
    assert not torch.equal(ranking.reranked(), by_probability)


def test_it_improves_unseen_queries_and_says_what_it_did():
    scores = make_scores()
    result = calibrate(scores, range(1000), "noise")
    assert result.calibration == fit_calibration(candidate_pairs(scores), "noise")
    metrics = result.metrics
    assert metrics["calibration/log_loss_after"] < 0.9 * metrics["calibration/log_loss_before"]
    assert metrics["calibration/error_after"] < 3 < 10 < metrics["calibration/error_before"]
    assert set(metrics) >= {f"cross_fitted_{way}_r{k}" for way in ("text", "image") for k in (1, 5, 10)}
    scores.calibration = result.calibration
    recalls = scores.metrics()
    assert recalls["calibrated_text_r1"] > recalls["itm_text_r1"] + 2 and recalls["itm_text_r1"] > 20
    assert metrics["cross_fitted_text_r1"] == pytest.approx(recalls["calibrated_text_r1"], abs=2)
    missed = [int((~ranking.positives.any(1)).sum()) for ranking in (scores.image_to_text, scores.text_to_image)]
    assert f"not among the candidates of {missed[0]} images and {missed[1]} texts" in result.summary
    right = sum(int(ranking.positives.sum()) for ranking in (scores.image_to_text, scores.text_to_image))
    assert f"fitted on 16,000 candidates, {right:,} of them right: noise" in result.summary


def test_a_query_is_judged_by_the_half_that_it_is_not_in():
    """For even images the cosine counts, for odd ones it is noise: each half judges the other one badly."""
    telling, useless = make_scores(), make_scores(slopes=(0.8, 0.0), seed=1)
    even = torch.arange(1000) % 2 == 0
    for way in ("image_to_text", "text_to_image"):
        for name in ("similarities", "logits", "positives"):
            mixed, other = (getattr(getattr(scores, way), name) for scores in (telling, useless))
            mixed[~even] = other[~even]
    result = calibrate(telling, range(1000), "noise")
    parts = {half: candidate_pairs(telling, [chosen] * 2) for half, chosen in (("even", even), ("odd", ~even))}
    fits = {half: fit_calibration(pairs, "noise") for half, pairs in parts.items()}
    assert fits["even"].cosine_weight > 3 > 1 > fits["odd"].cosine_weight
    seen = sum(pairs.log_loss(fits[half].logit(pairs.log_odds, pairs.cosines)) / 2 for half, pairs in parts.items())
    unseen = sum(
        pairs.log_loss(fits[other].logit(pairs.log_odds, pairs.cosines)) / 2
        for pairs, other in zip(parts.values(), ("odd", "even"), strict=True)
    )
    assert result.metrics["calibration/log_loss_after"] == pytest.approx(unseen.item(), rel=1e-3)
    assert unseen > 1.02 * seen


def test_weights_of_separable_candidates_are_finite():
    scores = make_scores(images=50, texts=50)
    for ranking in (scores.image_to_text, scores.text_to_image):
        ranking.logits[..., 1] = torch.where(ranking.positives, 5.0, -5.0)
    fitted = fit_calibration(candidate_pairs(scores), "noise")
    assert 0 < fitted.scale < 2.5 and abs(fitted.cosine_weight) < 5
    probability = fitted.probability(torch.tensor([2.0, -8.0]), torch.tensor([0.3, 0.3]))
    assert probability[0] > 0.99 and probability[1] < 0.01


def test_scores_that_mislead_get_no_weight():
    result = calibrate(make_scores(slopes=(-0.8, 6.0)), range(1000), "noise")
    assert result.calibration.scale == MIN_SCALE and result.calibration.cosine_weight == pytest.approx(6, rel=0.15)
    assert "matching adds nothing to the cosine" in result.summary
    result = calibrate(make_scores(slopes=(0.8, -6.0)), range(1000), "noise")
    assert result.calibration.cosine_weight == 0 and result.calibration.scale == pytest.approx(0.8, rel=0.1)
    assert "the cosine adds nothing to matching" in result.summary
    with pytest.raises(ValueError, match="Neither the matching nor the cosine .* train it further"):
        calibrate(make_scores(slopes=(-0.8, -6.0)), range(1000), "noise")


def test_candidates_that_allow_no_fit_are_refused():
    for value, kind in ((False, "right"), (True, "wrong")):
        scores = make_scores(images=10, texts=10)
        scores.text_to_image.positives[:] = value
        with pytest.raises(ValueError, match=f"No candidate of 80 is {kind}: calibrate on more images"):
            candidate_pairs(scores)
    scores = make_scores(images=10, texts=10)
    scores.text_to_image.logits[0, :3] = math.nan
    scores.text_to_image.similarities[1, 0] = math.inf
    with pytest.raises(ValueError, match="scores of 4 of 80 candidates are not finite"):
        candidate_pairs(scores)


@pytest.fixture
def folder(config, processor, tmp_path):
    """A saved model that tells some scenes from others."""
    make(AlbefForRetrieval, config).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_command_fits_prints_and_saves(run, folder, tmp_path, capsys, monkeypatch):
    synthetic = make_scores(images=10, texts=30)
    monkeypatch.setattr("albef_hf.tasks.retrieval.score_all", lambda *_, **__: synthetic)
    monkeypatch.setattr("albef_hf.tasks.retrieval.Retrieval._predictions", lambda *_: [])
    config = (folder / "config.json").read_text()
    options = small_evaluation(folder, tmp_path / "results", rerank_k=8)
    run("evaluate", "retrieval", *options)
    assert "calibrated" not in capsys.readouterr().out and (folder / "config.json").read_text() == config
    run("evaluate", "retrieval", *options, "--calibrate")
    printed = capsys.readouterr().out
    for expected in (
        "\ncalibrated  ",
        "\ncross-fitted",
        "P(match) = sigmoid(",
        "expected calibration error",
        "saved in",
    ):
        assert expected in printed
    saved = json.loads((folder / "config.json").read_text())
    calibration = MatchCalibration(**saved.pop("match_calibration"))
    assert calibration.fitted_on.startswith(
        "10 images and 30 texts, with up to 8 candidates each, of 10 built-in rows"
    )
    assert calibration == fit_calibration(candidate_pairs(synthetic), calibration.fitted_on)
    assert saved == json.loads(config)
    assert "10 images and 30 texts" in (folder / "README.md").read_text()
    metrics = results_of(tmp_path / "results")[0]
    assert metrics.keys() >= {"calibrated_text_r1", "cross_fitted_r_mean", "itm_r_mean", "calibration/error_after"}


def test_a_calibrated_model_is_evaluated_by_its_calibration(folder, processor, photographs):
    from accelerate import Accelerator

    model = AlbefForRetrieval.from_pretrained(folder)
    model.config.match_calibration = MatchCalibration(1e-3, 50.0, 0.0, "noise").to_dict()
    rows = [{"image": f"{name}.png", "caption": [f"a {name} one", f"the {name}"]} for name in "abcd"]
    found = {}
    for name, options in (
        ("calibrated", {}),
        ("explicit", {"itc_weight": 0.0}),
        ("by match", {"mismatch_weight": 0.0}),
    ):
        task = make_task("retrieval", processor, image_root=str(photographs), **options)
        metrics, predictions = task.evaluate(model, rows, Accelerator(cpu=True))
        found[name] = [prediction["texts"] for prediction in predictions if "texts" in prediction]
        assert metrics["calibrated_r_mean"] == metrics["itc_r_mean"], "the cosine decides"
        assert "cross_fitted_r_mean" not in metrics
        assert "\ncalibrated  " in task.format_metrics(metrics, rows)
    model.config.match_calibration = None
    task = make_task("retrieval", processor, image_root=str(photographs))
    metrics, predictions = task.evaluate(model, rows, Accelerator(cpu=True))
    plain = [prediction["texts"] for prediction in predictions if "texts" in prediction]
    assert found["explicit"] == plain != found["calibrated"]
    assert found["by match"] != found["calibrated"]
    assert not any(name.startswith("calibrat") for name in metrics)


def test_what_cannot_be_calibrated_is_refused(run, folder, tmp_path, capsys):
    for model, options, message in (
        ("you/albef", (), "hf download you/albef --local-dir FOLDER"),
        (folder, ("--image_size", 64), "remove image_size"),
    ):
        with pytest.raises(ValueError, match=message):
            run("evaluate", "retrieval", *small_evaluation(model, tmp_path / "results"), "--calibrate", *options)
    for command in (("finetune", "retrieval"), ("evaluate", "grounding")):
        with pytest.raises(SystemExit):
            run(*command, "--model", folder, "--calibrate")
    printed = capsys.readouterr().err
    assert "--calibrate has no effect in this command" in printed and "no option --calibrate" in printed


def test_a_recipe_does_not_calibrate_a_training(processor, config, photographs):
    from accelerate import Accelerator

    task = make_task("retrieval", processor, image_root=str(photographs), calibrate=True)
    metrics, _ = task.evaluate(make(AlbefForRetrieval, config), FILES["retrieval"], Accelerator(cpu=True))
    assert task.calibration is None and not any("calibrat" in name for name in metrics)


def test_old_code_in_the_folder_is_reported(folder, capsys):
    from albef_hf.evaluation.evaluate import _describe_saved

    assert "renew" not in _describe_saved(folder)
    (folder / "calibration_albef.py").write_text("# older than references")
    assert f"may refuse their weight: run `albef renew {folder}`" in _describe_saved(folder)
    (folder / "calibration_albef.py").unlink()
    assert f"run `albef renew {folder}`" in _describe_saved(folder)


def test_a_folder_whose_card_cannot_be_read_keeps_its_configuration(folder):
    (folder / "README.md").write_bytes(b"\xff\xfe")
    config = (folder / "config.json").read_bytes()
    with pytest.raises(ValueError, match="not encoded in UTF-8"):
        save_calibration(folder, MatchCalibration(1.0, 2.0, 3.0, "noise"))
    assert (folder / "config.json").read_bytes() == config
    (folder / "README.md").unlink()
    save_calibration(folder, MatchCalibration(1.0, 2.0, 3.0, "noise"))
    assert "Fitted on: noise." in (folder / "README.md").read_text()
    AlbefForRetrieval.from_pretrained(folder), AlbefProcessor.from_pretrained(folder)


def test_the_data_are_named_without_their_folder(processor, photographs, tmp_path):
    rows = write(tmp_path, "validation.json", FILES["retrieval"] * 3)
    task = make_task("retrieval", processor, validation_files=[str(rows)], train_files=[str(rows)])
    assert task.args.describe_validation_data() == "the rows of validation.json"
