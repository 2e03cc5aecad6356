"""Scores of captions beside the ratings of people."""

import pytest
from PIL import Image
from scipy.stats import kendalltau
from task_rows import evaluated, make_task, results_of, small_evaluation

from albef_hf.calibration_albef import MatchCalibration
from albef_hf.data import InvalidSampleError
from albef_hf.data.caption_ratings import read_flickr8k_ratings

# Written by hand in the form of Flickr8k's files.
CAPTIONS = """a.png#0\tA red square .
a.png#1\tEverything is red
b.png#0\tA blue square .
b.png#1\tA red square .
"""
RATINGS = """a.png\tb.png#0\t1\t2\t1
a.png\ta.png#1\t4\t4\t4
a.png\tb.png#1\t4\t4\t4
b.png\ta.png#1\t1\t1\t1
b.png\ta.png#0\t2\t3\t2
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "Flickr8k.token.txt").write_text(CAPTIONS)
    (tmp_path / "ExpertAnnotations.txt").write_text(RATINGS)
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (40, 30), color).save(tmp_path / f"{name}.png")
    return {
        "ratings": str(tmp_path / "ExpertAnnotations.txt"),
        "captions": str(tmp_path / "Flickr8k.token.txt"),
        "image_root": str(tmp_path),
    }


def test_ratings_of_captions_that_belong_to_an_image_do_not_count(files):
    """Neither the caption's own image, nor one that has the same caption."""
    assert read_flickr8k_ratings(files["ratings"], files["captions"]) == [
        {"image": "a.png", "text": "A blue square .", "rating": [1, 2, 1]},
        {"image": "b.png", "text": "Everything is red", "rating": [1, 1, 1]},
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png\tc.png#0\t1\t1\t1", "has no caption 'c.png#0'"),
        ("a.png\tb.png#0\t5\t1\t1", "has the rating '5'; ratings are from 1 to 4"),
        ("a.png b.png#0 1 1 1", "Line 1 of .* has 1 columns, but needs an image"),
    ],
)
def test_other_files_are_refused(files, line, message, tmp_path):
    (tmp_path / "other.txt").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_flickr8k_ratings(str(tmp_path / "other.txt"), files["captions"])


def test_tau_is_that_of_scipy_over_all_ratings(config, processor):
    config.match_calibration = MatchCalibration(0.5, 3.0, 0.1, "some data").to_dict()
    task = make_task("caption_scores", processor, validation_size=12)
    rows = task.validation_rows()
    rows = [rows[index] for index in range(12)]
    rows[3]["rating"] = [4, "2", 1.5]
    metrics, predictions = evaluated(task, config, rows)
    for name in ("itc", "itm", "calibrated"):
        pairs = [
            (prediction[name], float(rating))
            for prediction, row in zip(predictions, rows, strict=True)
            for rating in (row["rating"] if isinstance(row["rating"], list) else [row["rating"]])
        ]
        assert len(pairs) == 14
        for variant in "bc":
            expected = kendalltau(*zip(*pairs, strict=True), variant=variant).statistic
            assert metrics.pop(f"{name}_tau_{variant}") == pytest.approx(100 * expected)
    assert metrics == {}
    for rating in (None, "much", [], [1, None]):
        with pytest.raises(InvalidSampleError, match="are not ratings"):
            task.ratings({"rating": rating})


def test_tau_by_hand(processor):
    """Of six pairs with different ratings, five are in the right order: (5 - 1) / 6."""
    task = make_task("caption_scores", processor)
    predictions = [{"row": row, "itc": score} for row, score in enumerate([0.1, 0.3, 0.2, 0.9])]
    metrics = task.score(predictions, [{"rating": rating} for rating in (1, 2, 3, 4)])
    assert metrics == {"itc_tau_b": pytest.approx(100 * 4 / 6), "itc_tau_c": pytest.approx(100 * 4 / 6)}


def test_the_command_reads_the_published_files(run, pretrained, files, tmp_path):
    run("evaluate", "caption_scores", *small_evaluation(pretrained, tmp_path / "out", **files))
    metrics, predictions = results_of(tmp_path / "out")
    assert {"itc_tau_c", "itm_tau_b"} <= metrics.keys()
    assert [prediction["text"] for prediction in predictions] == ["a blue square", "everything is red"]
    with pytest.raises(SystemExit):
        run("evaluate", "caption_scores", "--model", "m", "--ratings", files["ratings"])
