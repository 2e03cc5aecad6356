"""Zero-shot classification: prompts, ITC and ITM, from a command and a pipeline."""

import pytest
import torch
from PIL import Image
from task_rows import evaluated, make_task, results_of, small_evaluation
from transformers import pipeline

from albef_hf import AlbefForRetrieval
from albef_hf.calibration_albef import MatchCalibration, matching_log_odds
from albef_hf.evaluation.prompts import read_classes, read_templates
from albef_hf.zero_shot_albef import ClassRanking, encode_classes, rank_classes

NAMES = ["red ball", "blue star", "dog"]
TEMPLATES = ["a {}", "a photo of a {}, nearby"]


@pytest.fixture
def sharp(config) -> AlbefForRetrieval:
    """A model to which different texts and images give different numbers."""
    config.initializer_range = config.text_config.initializer_range = config.vision_config.initializer_range = 0.3
    torch.manual_seed(0)
    return AlbefForRetrieval(config).eval()


@torch.no_grad()
@pytest.mark.parametrize("calibration", [None, MatchCalibration(0.5, 3.0, 0.1, "some data").to_dict()])
def test_features_and_scores_of_a_class_are_means_over_its_prompts(sharp, processor, calibration):
    sharp.config.match_calibration = calibration
    classes = encode_classes(sharp, processor, NAMES, TEMPLATES)
    pixels = torch.randn(2, 3, 32, 32)
    ranking = rank_classes(sharp, sharp.get_image_features(pixels), classes, rerank_k=2)
    for index, name in enumerate(NAMES):
        prompts = processor(text=[template.format(name) for template in TEMPLATES], return_tensors="pt")
        mean = sharp.get_text_features(**prompts).pooler_output.mean(0)
        assert torch.allclose(classes.embeds[index], mean / mean.norm(), atol=1e-5)
        for row in range(2):
            outputs = sharp(**prompts, pixel_values=pixels[row : row + 1])
            cosines = outputs.text_embeds @ outputs.image_embeds[0]
            logits = matching_log_odds(outputs.itm_logits)
            if calibration:
                logits = 0.5 * logits + 3 * cosines + 0.1
            rank = ranking.indices[row].tolist().index(index)
            cosine = classes.embeds[index] @ outputs.image_embeds[0]
            assert ranking.similarities[row, rank].item() == pytest.approx(cosine.item(), abs=1e-5)
            if rank < 2:
                assert ranking.logits[row, rank].item() == pytest.approx(logits.mean().item(), abs=1e-4)
    assert ranking.logits.shape == (2, 2) and (ranking.similarities.diff(dim=1) <= 0).all()


def test_matched_classes_come_first_and_the_others_stay():
    ranking = ClassRanking(torch.tensor([[3, 1, 0, 2]]), torch.zeros(1, 4), torch.tensor([[-1.0, 2.0]]))
    assert ranking.reranked().tolist() == [[1, 3, 0, 2]]


def test_classes_and_templates_are_read(tmp_path):
    (tmp_path / "classes.txt").write_text("# folders\nn01\tgreat white shark\npolar_bear\n\n")
    assert read_classes(str(tmp_path / "classes.txt")) == {"n01": "great white shark", "polar_bear": "polar bear"}
    (tmp_path / "own.txt").write_text("a {}\nthe {}!\n")
    assert read_templates(["one {}", str(tmp_path / "own.txt")]) == ["one {}", "a {}", "the {}!"]
    photo = read_templates(["photo"])
    assert len(photo) >= 5 and all(template.count("{}") == 1 for template in photo)
    with pytest.raises(ValueError, match="templates contains 'imagenet': .* name of a list, photo"):
        read_templates(["imagenet"])
    (tmp_path / "twice.txt").write_text("a\na\n")
    for name, message in (("twice", "has the class 'a' twice"), ("none", "cannot be read")):
        with pytest.raises(ValueError, match=message):
            read_classes(str(tmp_path / f"{name}.txt"))


def test_classes_of_rows_are_without_white_space_around_them(processor, monkeypatch):
    task = make_task("zero_shot", processor)
    rows = [{"label": label} for label in (" polar_bear", "polar_bear ", " ", None)]
    monkeypatch.setattr(task, "uses_synthetic_data", False)
    monkeypatch.setattr(task, "validation_rows", lambda: rows)
    assert task.classes == {"polar_bear": "polar bear"} and task.label(rows[0]) == "polar_bear"


@pytest.mark.parametrize("rerank_k", [0, 2])
def test_metrics_agree_with_the_predictions(processor, config, rerank_k):
    task = make_task("zero_shot", processor, rerank_k=rerank_k, scenes_attribute="shape", validation_size=12)
    metrics, predictions = evaluated(task, config, task.validation_rows())
    assert len(predictions) == 12 and task.baselines([], []) == {"chance_top1": 12.5, "chance_top5": 62.5}
    stages = ["itc", "itm"] if rerank_k else ["itc"]
    for stage in stages:
        for k in (1, 5):
            hits = [prediction["label"] in prediction[stage][:k] for prediction in predictions]
            assert metrics.pop(f"{stage}_top{k}") == pytest.approx(100 * sum(hits) / 12)
    assert metrics == {} and task.metric == f"{stages[-1]}_top1"


def test_a_folder_of_images_is_evaluated_by_its_classes(run, pretrained, tmp_path, capsys):
    for name, color in (("red_thing", "red"), ("n07", "blue"), ("other", "green")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (40, 30), color).save(tmp_path / "images" / name / f"{index}.png")
    (tmp_path / "classes.txt").write_text("red_thing\nn07\tblue star\n")
    options = {"dataset": tmp_path / "images", "classes": tmp_path / "classes.txt", "templates": "a {}"}
    run("evaluate", "zero_shot", *small_evaluation(pretrained, tmp_path / "out", **options))
    metrics, predictions = results_of(tmp_path / "out")
    assert metrics["rows/label_unknown"] == 2 and metrics["itc_top5"] == 100 and metrics["chance_top1"] == 50
    assert "2 classes, 1 prompts each: itc_top1" in capsys.readouterr().out
    assert sorted({prediction["label"] for prediction in predictions}) == ["n07", "red_thing"]
    assert Image.open(tmp_path / "out" / "confusion.png").size[0] > 100


def test_there_is_nothing_to_train(run, capsys):
    with pytest.raises(SystemExit):
        run("finetune", "zero_shot", "--model", "m")
    assert "zero_shot trains nothing: albef evaluate zero_shot takes a pretrained model" in capsys.readouterr().err


def test_the_pipeline_ranks_classes_by_similarity_or_by_matching(sharp, processor):
    classify = pipeline("prompted-image-classification", model=sharp, processor=processor)
    image = Image.new("RGB", (40, 30), "red")
    with torch.no_grad():
        features = sharp.get_image_features(**processor(images=[image], return_tensors="pt"))
        ranking = rank_classes(sharp, features, encode_classes(sharp, processor, NAMES, TEMPLATES), 2)
    options = {"candidate_labels": NAMES, "hypothesis_template": TEMPLATES}
    by_similarity = classify(image, **options)
    assert [result["label"] for result in by_similarity] == [NAMES[index] for index in ranking.indices[0].tolist()]
    expected = (ranking.similarities / sharp.contrastive_head.temperature).softmax(-1)[0].tolist()
    assert [result["score"] for result in by_similarity] == pytest.approx(expected, abs=1e-5)
    by_matching = classify([image, image], rerank_k=2, top_k=1, **options)
    best = ranking.reranked()[0, 0].item()
    score = ranking.logits.softmax(-1).max().item()
    assert by_matching == [[{"score": pytest.approx(score, abs=1e-5), "label": NAMES[best]}]] * 2
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    one = pipeline("zero-shot-image-classification", model=sharp, **parts)
    theirs = one(image, candidate_labels=NAMES, hypothesis_template="a {}")
    ours = classify(image, candidate_labels=NAMES, hypothesis_template="a {}")
    assert [result["score"] for result in ours] == pytest.approx([result["score"] for result in theirs], abs=1e-4)
    for options, message in (
        ({}, "pass candidate_labels"),
        ({"candidate_labels": NAMES, "hypothesis_template": "a photo"}, "has no {}"),
        ({"candidate_labels": ["!"]}, "has no word"),
        ({"candidate_labels": NAMES, "rerank_k": -1}, "rerank_k is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            classify(image, **options)
