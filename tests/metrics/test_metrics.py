"""Metrics: values computed by hand, loading by path without network access, and errors for invalid input."""

import ast
import doctest
import json
import math
import re
import socket
from pathlib import Path

import evaluate
import numpy as np
import pytest
from paths import REPOSITORY
from task_rows import NEEDS_CAPTION_SCORES

from albef_hf.metrics.caption_scores.scoring import caption_scores, caption_words
from albef_hf.metrics.entailment_accuracy.scoring import entailment_accuracy
from albef_hf.metrics.grounding_accuracy.scoring import box_iou, grounding_accuracy
from albef_hf.metrics.nlvr2_accuracy.scoring import nlvr2_accuracy
from albef_hf.metrics.retrieval_recall.scoring import recall_at, retrieval_metrics
from albef_hf.metrics.vqa_accuracy import scoring as vqa_scoring
from albef_hf.metrics.vqa_accuracy.scoring import answer_accuracy, normalize_answer, vqa_accuracy

METRICS = REPOSITORY / "albef_hf" / "metrics"
NAMES = [
    pytest.param("caption_scores", marks=NEEDS_CAPTION_SCORES),
    "entailment_accuracy",
    "grounding_accuracy",
    "nlvr2_accuracy",
    "retrieval_recall",
    "vqa_accuracy",
]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load the folder of a metric with `evaluate.load`, without network access, and with a cache of its own."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("a metric accessed the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)
    monkeypatch.chdir(REPOSITORY)
    return lambda name: evaluate.load(f"albef_hf/metrics/{name}")


# Captions


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("Two dogs , one isn't brown; a T-shirt.", "two dogs one is n't brown a t-shirt"),
        ("A man's hat, 10:30 o’clock: 1,000 people!", "a man 's hat 10:30 o'clock 1,000 people"),
        ("we'll (they’re) 50% of the boys' \"1/2\"", "we 'll they 're 50 % of the boys 1/2"),
    ],
)
def test_captions_are_split_as_by_the_tokenizer_of_coco(caption, words):
    """What its Java program makes of them, apart from brackets, which it keeps as words."""
    assert caption_words(caption) == words


@NEEDS_CAPTION_SCORES
def test_scores_of_captions_by_hand():
    other = ["x y z w v"]
    # Equal to the only reference, which has no word of the other image's: the cosine of each length is 1, times 10.
    assert caption_scores(["a b c d", *other], [["a b c d"], other])["cider"] == pytest.approx(1000)
    # Four of five words, all of weight log(2): 4/sqrt(20), 3/sqrt(12), 2/sqrt(6), 1/sqrt(2) for lengths 1 to 4. The
    # length is that of the bigrams, 3 and 4: exp(-1/72).
    cosines = [4 / 20**0.5, 3 / 12**0.5, 2 / 6**0.5, 1 / 2**0.5]
    scores = caption_scores(["a b c d", *other], [["a b c d e"], other])
    expected = (10 * sum(cosines) / 4 * math.exp(-1 / 72) + 10) / 2
    assert scores["cider"] == pytest.approx(100 * expected)
    # All n-grams of nine words are right, one less than the references have.
    assert scores["bleu4"] == pytest.approx(100 * math.exp(1 - 10 / 9))
    # Of precision 1 and recall 0.8, with beta 1.2.
    assert scores["rouge_l"] == pytest.approx(100 * (2.44 * 0.8 / (0.8 + 1.44) + 1) / 2)


@NEEDS_CAPTION_SCORES
def test_the_longest_common_subsequence_is_that_of_the_paper():
    """Lin 2004, section 3.1: police killed the gunman, police kill the gunman, the gunman kill police."""
    for caption, share in (("police kill the gunman", 75), ("the gunman kill police", 50)):
        assert caption_scores([caption], [["police killed the gunman"]])["rouge_l"] == pytest.approx(share)


# Retrieval


def test_recall_counts_the_best_correct_candidate():
    rankings = [
        [7, 1, 2],  # 7 is first
        [1, 2, 3, 4, 5, 6],  # 6 and 5 are right; the better is at place 5
        [9, 8],  # 3 is not ranked
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 0],  # 0 is at place 10
    ]
    right = [[7], [6, 5], [3], [0]]
    # at 1: 1 of 4; at 5: 2 of 4; at 10: 3 of 4; mean (25 + 50 + 75) / 3 = 50
    assert recall_at(rankings, right) == {"r1": 25.0, "r5": 50.0, "r10": 75.0, "r_mean": 50.0}
    # just before the places: at 4 the second query misses, at 9 the last one
    assert recall_at(rankings, right, (4, 9)) == {"r4": 25.0, "r9": 50.0, "r_mean": 37.5}


def test_retrieval_metrics_have_the_names_and_means_of_the_original():
    metrics = retrieval_metrics([[0, 1], [0, 1]], [[0], [1]], [[1, 0], [0, 1]], [[0], [1]])
    assert metrics == {
        "txt_r1": 50.0,  # the second image finds a wrong text first
        "txt_r5": 100.0,
        "txt_r10": 100.0,
        "txt_r_mean": pytest.approx(250 / 3),
        "img_r1": 0.0,
        "img_r5": 100.0,
        "img_r10": 100.0,
        "img_r_mean": pytest.approx(200 / 3),
        "r_mean": pytest.approx(75),  # (83.33 + 66.67) / 2
    }


@pytest.mark.parametrize("name", [lambda index: index, lambda index: f"image {index}"], ids=["integers", "strings"])
def test_ids_are_integers_or_strings_also_after_an_empty_ranking(load, name):
    rankings = [[], [name(2), name(1)]]
    right = [[name(0)], [name(1)]]
    result = load("retrieval_recall").compute(predictions=rankings, references=right, ranks=[1, 2])
    assert result == {"r1": 0.0, "r2": 50.0, "r_mean": 25.0}


# Answers to questions


@pytest.mark.parametrize(
    ("matches", "percent"),
    [
        (0, 0),
        (1, 30),  # 9 times a third, once nothing
        (2, 60),  # 8 times two thirds, twice one third: (16 + 2) / 30
        (3, 90),  # 7 times 1, three times two thirds: (21 + 6) / 30
        (4, 100),
        (9, 100),
    ],
)
def test_accuracy_by_the_number_of_ten_people_who_gave_the_answer(matches, percent):
    assert answer_accuracy("dog", ["dog"] * matches + ["cat"] * (10 - matches)) == percent


@pytest.mark.parametrize(
    ("answers", "percent"),
    [
        (["dog"], 100),
        (["cat"], 0),
        (["dog", "dog"], 100),
        (["dog", "cat"], 50),  # the other one matches once of two
        (["dog", "dog", "cat"], 200 / 3),  # of the two others match 1, 1 and 2: (1/2 + 1/2 + 1) / 3
        (["dog", "cat", "cat", "cat"], 25),  # of the three others match 0, 1, 1 and 1: (0 + 3 · 1/3) / 4
    ],
)
def test_accuracy_with_fewer_people(answers, percent):
    assert answer_accuracy("dog", answers) == pytest.approx(percent)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Yes", "yes"),
        (" a\tman and\nthe  woman ", "man and woman"),
        ("None", "0"),
        ("ten of eleven", "10 of eleven"),
        ("a", ""),
        ("black-white", "black white"),  # between letters a mark becomes a space
        ("black -white/red", "black white red"),  # beside a space it goes; the slash is elsewhere
        ("black -white-red", "black whitered"),  # once beside a space, it goes everywhere
        ("black- white-red", "black whitered"),
        ("1,000-2,000", "10002000"),  # a comma between digits removes all marks
        ("7,b", "7 b"),
        ("3.5", "3.5"),
        ("3. 5.", "3 5"),
        ("st. louis.", "st louis"),
        (".5", ".5"),
        ("5:30 o'clock", "5:30 o'clock"),  # colons and apostrophes stay
        ("dont", "don't"),
        ("couldnt've couldn'tve", "couldn't've couldn't've"),
        ("twas oclock", "'twas o'clock"),
        ("lets", "lets"),
        ("somebody'd", "somebodyd"),
        ("." * 33, "."),
    ],
)
def test_normalized_answer(text, normal):
    assert normalize_answer(text) == normal


def test_docstring_examples_of_normalization():
    failed, tried = doctest.testmod(vqa_scoring)
    assert tried and not failed


def test_answers_are_normalized_only_if_people_disagree():
    assert answer_accuracy("Two.", ["two"] * 10) == 0
    assert answer_accuracy("2", ["two"] * 10) == 0
    assert answer_accuracy("\ttwo ", ["two", " two", "two\n"]) == 100
    assert answer_accuracy("hot\tdog", ["hot\ndog"]) == 100
    assert answer_accuracy("Two", ["two", " two", "two\n"]) == 0
    assert answer_accuracy("Two.", ["two"] * 9 + ["three"]) == 100
    assert answer_accuracy("2", ["the two"] * 4 + ["two!"] * 4 + ["few"] * 2) == 100
    # They differ as written, but not after normalization.
    assert answer_accuracy("2", ["two"] * 9 + ["Two"]) == 100


def test_vqa_accuracy_of_each_type():
    people = [["yes"] * 10, ["no"] * 9 + ["yes"], ["2"] * 2 + ["3"] * 8, ["red"] * 3 + ["blue"] * 7]
    results = vqa_accuracy(
        ["yes", "yes", "2", "red"],  # 100, 30, 60, 90
        people,
        answer_types=["yes/no", "yes/no", "number", "other"],
        question_types=["is the", "are there", "how many", "is the"],
    )
    assert results == {
        "accuracy": 70.0,
        "per_answer_type": {"yes/no": 65.0, "number": 60.0, "other": 90.0},
        "per_question_type": {"is the": 95.0, "are there": 30.0, "how many": 60.0},
    }
    assert vqa_accuracy(["yes"], [["yes"]]) == {"accuracy": 100.0}


# Pairs of images


def test_nlvr2_accuracy_and_consistency():
    guesses = [1, 0, 1, 0, 1]
    truths = [1, 0, 1, 1, 1]
    assert nlvr2_accuracy(guesses, truths) == {"accuracy": 80.0}  # 4 of 5
    # the first statement has an error, the second and third have none
    groups = ["first", "second", "first", "first", "third"]
    assert nlvr2_accuracy(guesses, truths, groups) == {"accuracy": 80.0, "consistency": pytest.approx(200 / 3)}


@pytest.mark.parametrize("yes", [True, 1, np.int64(1), "True", "true", "TRUE", "1"])
@pytest.mark.parametrize("no", [False, 0, np.int64(0), "False", "false", "FALSE", "0"])
def test_judgments_have_several_forms(yes, no):
    assert nlvr2_accuracy([yes, no, yes, no], ["True", "false", 0, True]) == {"accuracy": 50.0}


@pytest.mark.parametrize("guesses", [[1, 0, 0], [True, False, False], ["True", "false", "FALSE"], np.array([1, 0, 0])])
@pytest.mark.parametrize("truths", [[1, 0, 1], ["True", "False", "True"]])
def test_nlvr2_through_evaluate(load, guesses, truths):
    result = load("nlvr2_accuracy").compute(predictions=guesses, references=truths, groups=[7, 7, 8])
    assert result == {"accuracy": pytest.approx(200 / 3), "consistency": 50.0}


# Entailment


def test_entailment_by_label_and_confusion():
    truths = ["entailment", "entailment", "entailment", "neutral", "entailment"]
    guesses = ["entailment", "neutral", "contradiction", "neutral", "entailment"]
    expected = {
        "accuracy": 60.0,  # 3 of 5
        "per_label": {"neutral": 100.0, "entailment": 50.0},  # 1 of 1 and 2 of 4; no text is a contradiction
        "confusion": {
            "contradiction": {"contradiction": 0, "neutral": 0, "entailment": 0},
            "neutral": {"contradiction": 0, "neutral": 1, "entailment": 0},
            "entailment": {"contradiction": 1, "neutral": 1, "entailment": 2},
        },
    }
    assert entailment_accuracy(guesses, truths) == expected
    assert entailment_accuracy(np.array([2, 1, 0, 1, 2]), truths) == expected


def test_entailment_with_other_labels(load):
    labels = ["entailment", "neutral", "contradiction"]
    result = load("entailment_accuracy").compute(predictions=[0, 1], references=["entailment"] * 2, labels=labels)
    assert result["accuracy"] == 50.0
    assert result["confusion"]["entailment"] == {"entailment": 1, "neutral": 1, "contradiction": 0}


# Boxes


@pytest.mark.parametrize(
    ("first", "second", "iou"),
    [
        ([0, 0, 10, 10], [0, 0, 10, 10], 1),
        ([0, 0, 10, 10], [5, 0, 10, 10], 50 / 150),
        ([0, 0, 10, 10], [2, 4, 4, 4], 16 / 100),
        ([0, 0, 10, 10], [9, 0, 10, 10], 0),  # one column of pixels in common: none, for the original
        ([0, 0, 10, 10], [0, 9, 10, 10], 0),  # one row
        ([0, 0, 10, 10], [0, 8, 10, 10], 20 / 180),  # two rows
        ([0, 0, 10, 10], [20, 20, 5, 5], 0),
        ([0, 0, 1, 1], [0, 0, 1, 1], 0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 0),
        ([0.5, 0.5, 2.5, 4], [1, 0.5, 2, 4], 8 / 10),
    ],
)
def test_iou(first, second, iou):
    assert box_iou(first, second) == box_iou(second, first) == pytest.approx(iou)


def test_grounding_of_each_split():
    truth = [10, 10, 20, 20]
    results = grounding_accuracy(
        [[10, 10, 40, 20], [10, 10, 41, 20], truth],  # IoU 400 / 800, just enough; 400 / 820; 1
        [truth] * 3,
        points=[[29, 29], [10, 30], [9, 15]],  # the last pixel inside; below; to the left
        splits=["val", "testA", "val"],
    )
    assert results == {
        "accuracy": pytest.approx(200 / 3),
        "pointing": pytest.approx(100 / 3),
        "per_split": {"val": {"accuracy": 100.0, "pointing": 50.0}, "testA": {"accuracy": 0.0, "pointing": 0.0}},
    }
    assert grounding_accuracy([truth], [truth]) == {"accuracy": 100.0}


def test_a_point_on_the_first_pixel_is_inside():
    box = [10, 20, 5, 5]
    inside = [([10, 20], 100), ([14, 24], 100), ([15, 20], 0), ([10, 25], 0), ([10, 19], 0), ([9.9, 20], 0)]
    for point, percent in inside:
        assert grounding_accuracy([box], [box], points=[point])["pointing"] == percent


# All of them


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("load")
def test_readme_snippet_runs(name):
    """The last expression of the snippet has the value in the comment after it."""
    code = re.search(r"```python\n(.*?)```", (METRICS / name / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    *statements, shown = ast.parse(code).body
    variables: dict = {}
    exec(compile(ast.Module(statements, []), name, "exec"), variables)
    comment = "\n".join(code.splitlines()[shown.lineno - 1 :]).partition("# ")[2].replace("\n#", "")
    assert eval(compile(ast.Expression(shown.value), name, "eval"), variables) == ast.literal_eval(comment)


@pytest.mark.parametrize("name", NAMES)
def test_results_are_json_and_the_metric_has_a_description(name, load):
    inputs = {
        "caption_scores": (["a b c d", "e f g h"], [["a b c d"], ["e f g h"]]),
        "entailment_accuracy": ([2], [2]),
        "grounding_accuracy": (np.array([[0, 0, 4, 4]]), [(0, 0, 4, 4)]),
        "nlvr2_accuracy": (np.array([1]), [True]),
        "retrieval_recall": (np.array([[5, 6]]), [[5]]),
        "vqa_accuracy": (["yes"], [["yes"]]),
    }
    metric = load(name)
    predictions, references = inputs[name]
    result = metric.compute(predictions=predictions, references=references)
    assert json.loads(json.dumps(result)) == result
    assert result.get("accuracy", result.get("r1", result.get("rouge_l"))) == 100.0
    for text in (metric.description, metric.citation, metric.inputs_description):
        assert text.strip()
    assert "Returns:" in metric.inputs_description and metric.citation.startswith("@")


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_is_self_contained(name):
    """Its folder can be pushed to the Hub."""
    standard = {(0, module) for module in ("collections.abc", "math", "numbers", "re", "statistics", "typing")}
    imports = {imported for imported in imports_of(METRICS / name / "scoring.py") if "pycoco" not in imported[1]}
    assert imports <= standard, "the tasks need no other library for it"
    module = imports_of(METRICS / name / f"{name}.py")
    assert module <= standard | {(0, "datasets"), (0, "evaluate"), (1, "scoring")}


def imports_of(path: Path) -> set[tuple[int, str]]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    absolute = {(0, alias.name) for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return absolute | {(node.level, node.module) for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("name", NAMES)
def test_evaluate_refuses_an_empty_list(name, load):
    with pytest.raises(ValueError, match="nothing to score: give"):
        load(name).compute(predictions=[], references=[])


BOX = [0, 0, 4, 4]


@pytest.mark.parametrize(
    ("metric", "arguments", "remedy"),
    [
        (recall_at, ([], []), "at least one query"),
        (recall_at, ([[1]], [[1], [2]]), "1 predictions but 2 references: give one"),
        (recall_at, ([[1], [2]], [[1], []]), "Query 1 .* remove it"),
        (recall_at, ([[1]], [[1]], (0, 5)), "none below 1"),
        (recall_at, ([[1]], [[1]], ()), "give at least one"),
        (caption_scores, ([], []), "at least one image"),
        (caption_scores, (["a", "b"], [["a"]]), "2 predictions but 1 references: give one"),
        (caption_scores, (["a", "b"], [["a"], []]), "give a list of one or more"),
        (caption_scores, (["a"], ["a"]), "give a list of one or more"),
        (vqa_accuracy, ([], []), "at least one question"),
        (vqa_accuracy, (["a", "b"], [["a"]]), "2 predictions but 1 references: give one"),
        (vqa_accuracy, (["a"], [["a"]], ["other", "other"]), "but 2 answer_types: give one"),
        (vqa_accuracy, (["a"], [["a"]], None, []), "but 0 question_types: give one"),
        (vqa_accuracy, (["a"], [[]]), "give a list of one or more"),
        (vqa_accuracy, (["a"], ["a"]), "give a list of one or more"),
        (nlvr2_accuracy, ([], []), "at least one judgment"),
        (nlvr2_accuracy, ([1], [1, 0]), "1 predictions but 2 references: give one"),
        (nlvr2_accuracy, ([1], [1], ["a", "b"]), "but 2 groups: give one"),
        (nlvr2_accuracy, (["yes"], [1]), "'yes': use True or False"),
        (nlvr2_accuracy, ([1], [2]), "2: use True or False"),
        (nlvr2_accuracy, ([0.7], [1]), "0.7: use True or False"),
        (entailment_accuracy, ([], []), "at least one label"),
        (entailment_accuracy, ([1], [1, 0]), "1 predictions but 2 references: give one"),
        (entailment_accuracy, (["neutral"], ["-"]), "'-', known are contradiction .0., .* remove"),
        (entailment_accuracy, ([3], [1]), "label is 3, known"),
        (entailment_accuracy, ([1], [-1]), "label is -1, known"),
        (grounding_accuracy, ([], []), "at least one expression"),
        (grounding_accuracy, ([BOX], [BOX, BOX]), "1 predictions but 2 references: give one"),
        (grounding_accuracy, ([BOX], [BOX], [[0, 0]] * 2), "but 2 points: give one"),
        (grounding_accuracy, ([BOX], [BOX], None, []), "but 0 splits: give one"),
        (grounding_accuracy, ([[5, 5, -1, 4]], [BOX]), "negative size: give left, top, width and height"),
        (grounding_accuracy, ([BOX], [[5, 5, 4, -1]]), "negative size: give left, top, width and height"),
        (grounding_accuracy, ([[0, 0, 4]], [BOX]), "give left, top, width and height"),
        (grounding_accuracy, ([[0, 0, 4, float("nan")]], [BOX]), "give left, top, width and height"),
        (grounding_accuracy, ([BOX], [BOX], [[1, 2, 3]]), "give x and y"),
    ],
)
def test_invalid_input_raises_an_error_with_a_remedy(metric, arguments, remedy):
    with pytest.raises(ValueError, match=remedy):
        metric(*arguments)


@pytest.mark.parametrize(
    ("name", "predictions", "references"),
    [
        ("entailment_accuracy", [1, 2], [1]),
        ("grounding_accuracy", [BOX, BOX], [BOX]),
        ("nlvr2_accuracy", [1, 0], [1]),
        ("retrieval_recall", [[1], [2]], [[1]]),
        ("vqa_accuracy", ["a", "b"], [["a"]]),
    ],
)
def test_evaluate_refuses_different_lengths(name, predictions, references, load):
    with pytest.raises(ValueError, match=r"predictions \(2\) and references \(1\)"):
        load(name).compute(predictions=predictions, references=references)
