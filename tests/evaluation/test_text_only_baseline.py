"""The classifier that sees only texts."""

from albef_hf.evaluation import text_only_baseline
from albef_hf.evaluation.text_only_baseline import text_only_answers


def test_a_thousand_answers_are_enough_for_the_baseline(monkeypatch):
    monkeypatch.setattr(text_only_baseline, "MAX_CLASSES", 2)
    texts = ["red", "blue", "red", "blue", "green"] * 4
    assert text_only_baseline.text_only_answers(texts, texts, ["red", "blue", "something else"])[:2] == ["red", "blue"]
    assert text_only_baseline.text_only_answers(texts, texts, ["green"])[0] in ("red", "blue")


def test_a_classifier_of_texts_learns_from_words():
    texts = [f"is it {color} or {other}" for color in ("red", "blue") for other in ("green", "pink")] * 20
    labels = ["yes" if "red" in text else "no" for text in texts]
    assert text_only_answers(texts, labels, ["is it red", "is it blue"]) == ["yes", "no"]
