"""Pipelines give the numbers of the plain model, take inputs as others do, and say what is wrong with wrong ones."""

import base64
import doctest
import http.server
import json
import logging
import math
import os
import subprocess
import sys
import threading
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sharp_models import make
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from albef_hf import (
    AlbefConfig,
    AlbefForImageCaptioning,
    AlbefForImageTextClassification,
    AlbefForPreTraining,
    AlbefForQuestionAnswering,
    AlbefForRetrieval,
    AlbefForTextAssignment,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
    AlbefModel,
    AlbefProcessor,
    ImageCaptioningPipeline,
    ImageTextRetrievalPipeline,
    VisualQuestionAnsweringPipeline,
    pipeline_albef,
    retrieval_albef,
)
from albef_hf.data import embedded_tokenizer, load_image
from albef_hf.heatmaps_albef import contrastive_heatmaps, matching_heatmaps, overlay, score_boxes

TEXTS = ["a red ball", "two dogs in the snow, running", "nothing"]
QUESTIONS = ["what is it?", "how many dogs are running in the snow", "is it red"]
ANSWERS = ["yes", "no", "two dogs", "a red ball"]
MATCHING = {"image-text-retrieval", "image-text-matching", "visual-grounding", "prompted-image-classification"}
HEADS = {
    "albef": AlbefForPreTraining,
    "albef-retrieval": AlbefForRetrieval,
    "albef-vqa": AlbefForQuestionAnswering,
    "albef-captioning": AlbefForImageCaptioning,
    "albef-entailment": AlbefForVisualEntailment,
    "albef-nlvr2": AlbefForVisualReasoning,
    "albef-colors": AlbefForImageTextClassification,
}


@pytest.fixture
def aligned(config) -> AlbefForRetrieval:
    return make(AlbefForRetrieval, config)


@pytest.fixture
def answering(config) -> AlbefForQuestionAnswering:
    return make(AlbefForQuestionAnswering, config)


@pytest.fixture
def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in range(3)]
    return [Image.fromarray(pixels).resize((40, 30)) for pixels in noise]


@pytest.fixture
def folder(tmp_path, monkeypatch, config, processor, images) -> Path:
    """The current directory, with models of every kind under `you/`, and two images."""
    monkeypatch.chdir(tmp_path)
    for name, kind in HEADS.items():
        make(kind, config).save_pretrained(f"you/{name}")
        processor.save_pretrained(f"you/{name}")
    images[0].save("image.png")
    images[1].save("other.png")
    return tmp_path


@torch.no_grad()
def plain(model, processor, image, text):
    """What the model itself says of a pair: probability of a match, and cosine."""
    outputs = model(**processor(images=image, text=[text], return_tensors="pt"))
    return outputs.itm_logits.softmax(-1)[0, 1].item(), (outputs.image_embeds @ outputs.text_embeds.T).item()


def close(results: list, others: list) -> bool:
    """Whether results, lists of them, or lists of lists, have the same contents up to rounding."""
    if isinstance(results, dict):
        return results.keys() == others.keys() and all(close(results[name], others[name]) for name in results)
    if isinstance(results, list):
        return len(results) == len(others) and all(map(close, results, others))
    return results == pytest.approx(others, abs=1e-5) if isinstance(results, float) else results == others


# Retrieval


def test_texts_are_ranked_by_the_probability_that_they_match(aligned, processor, images):
    retrieve = ImageTextRetrievalPipeline(aligned, processor)
    results = retrieve(images[0], candidate_texts=TEXTS)
    assert sorted(result["index"] for result in results) == [0, 1, 2]
    for result in results:
        assert result["text"] == TEXTS[result["index"]]
        expected = plain(aligned, processor, images[0], result["text"])
        assert (result["score"], result["similarity"]) == pytest.approx(expected, abs=1e-5)
    scores = [result["score"] for result in results]
    assert scores == sorted(scores, reverse=True) and scores[0] - scores[-1] > 1e-3
    assert close(retrieve(images[0], candidate_texts=TEXTS, top_k=2), results[:2])
    (single,) = (result for result in results if result["text"] == TEXTS[1])
    assert close(retrieve(images[0], candidate_texts=TEXTS[1]), [{**single, "index": 0}])


def test_images_are_ranked_by_the_probability_that_they_match(aligned, processor, images):
    find = ImageTextRetrievalPipeline(aligned, processor)
    results = find(TEXTS, candidate_images=images)
    for text, found in zip(TEXTS, results, strict=True):
        assert sorted(result["index"] for result in found) == [0, 1, 2]
        scores = [result["score"] for result in found]
        assert scores == sorted(scores, reverse=True)
        for result in found:
            assert result["image"] is images[result["index"]]
            expected = plain(aligned, processor, result["image"], text)
            assert (result["score"], result["similarity"]) == pytest.approx(expected, abs=1e-5)
    assert close(find(TEXTS[0], candidate_images=images, top_k=1), results[0][:1])
    assert len(find(TEXTS[0], candidate_images=images[0])) == 1


def test_only_the_most_similar_candidates_are_matched(aligned, processor, images):
    retrieve = ImageTextRetrievalPipeline(aligned, processor)
    everything = retrieve(images[0], candidate_texts=TEXTS)
    (result,) = retrieve(images[0], candidate_texts=TEXTS, rerank_k=1)
    assert close(result, max(everything, key=lambda one: one["similarity"]))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_retrieval_takes_inputs_as_others_do(aligned, processor, images, batch_size):
    retrieve = ImageTextRetrievalPipeline(aligned, processor, candidate_texts=TEXTS, batch_size=batch_size)
    expected = [retrieve(image) for image in images]
    assert close(retrieve(images), expected)
    assert close(retrieve(tuple(images)), expected)
    assert close(list(retrieve(image for image in images)), expected)
    rows = [{"image": image} for image in images]
    assert close(list(retrieve(KeyDataset(rows, "image"))), expected)
    find = ImageTextRetrievalPipeline(aligned, processor, candidate_images=images, batch_size=batch_size)
    expected = [find(text) for text in TEXTS]
    assert close(find(TEXTS), expected)
    assert close(list(find(np.array(TEXTS).tolist())), expected)
    assert close(list(find(text for text in TEXTS)), expected)


def test_rows_of_the_datasets_library_are_taken_as_they_are(aligned, answering, processor, images):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": images, "question": QUESTIONS})
    answer = VisualQuestionAnsweringPipeline(answering, processor, candidate_answers=ANSWERS)
    expected = [answer(*row) for row in zip(images, QUESTIONS, strict=True)]
    assert close(list(answer(rows)), expected)
    assert close(list(answer(KeyDataset(rows, "image"), QUESTIONS[0]))[0], expected[0])


def test_candidates_of_a_pipeline_are_encoded_once(aligned, processor, images, monkeypatch):
    encoded = []
    get_image_features, get_text_features = aligned.get_image_features, aligned.get_text_features
    monkeypatch.setattr(
        aligned, "get_image_features", lambda *a, **k: encoded.append("i") or get_image_features(*a, **k)
    )
    monkeypatch.setattr(
        aligned, "get_text_features", lambda *a, **k: encoded.append("t") or get_text_features(*a, **k)
    )
    find = ImageTextRetrievalPipeline(aligned, processor, candidate_images=images)
    assert encoded == ["i"]
    find(TEXTS)
    assert encoded == ["i", "t", "t", "t"]
    retrieve = ImageTextRetrievalPipeline(aligned, processor, candidate_texts=TEXTS)
    encoded.clear()
    retrieve(images, batch_size=3)
    assert encoded == ["i"]


def test_images_that_memory_has_no_room_for_are_encoded_again(aligned, processor, images, monkeypatch):
    plenty = ImageTextRetrievalPipeline(aligned, processor, candidate_images=images)(TEXTS)
    monkeypatch.setattr(retrieval_albef, "MAX_CACHED_VALUES", 0)
    assert close(ImageTextRetrievalPipeline(aligned, processor, candidate_images=images)(TEXTS), plenty)


def test_pairs_are_scored(folder, aligned, processor, images):
    for model in (aligned, AlbefForPreTraining.from_pretrained("you/albef")):
        match = pipeline("image-text-matching", model=model, processor=processor)
        results = match(images, TEXTS, batch_size=2)
        for image, text, result in zip(images, TEXTS, results, strict=True):
            score, similarity = plain(model, processor, image, text)
            assert close(result, {"score": score, "similarity": similarity})
        assert close(match(images[1], TEXTS[1]), results[1])
        rows = [{"image": image, "text": text} for image, text in zip(images, TEXTS, strict=True)]
        assert close(list(match(row for row in rows)), results)


# Where images come from


@pytest.fixture
def server(folder):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_images_are_read_from_paths_addresses_and_base64(aligned, processor, images, server):
    retrieve = ImageTextRetrievalPipeline(aligned, processor, candidate_texts=TEXTS)
    expected = retrieve(images[0])
    encoded = base64.b64encode(Path("image.png").read_bytes()).decode()
    for image in ("image.png", Path("image.png").resolve(), f"{server}/image.png", encoded):
        assert close(retrieve(image, timeout=20), expected)
    find = ImageTextRetrievalPipeline(aligned, processor)
    sources = ["image.png", f"{server}/other.png"]
    found = find("a red ball", candidate_images=sources)
    assert [result["image"] for result in found] == [sources[result["index"]] for result in found]
    ours = find("a red ball", candidate_images=images[:2])
    assert [result["score"] for result in found] == pytest.approx([result["score"] for result in ours], abs=1e-6)


def test_images_are_converted_as_in_training(aligned, processor, folder):
    levels = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    transparent = Image.merge("LA", [Image.fromarray(levels), Image.fromarray(levels.T.copy().reshape(30, 40))])
    Image.fromarray(levels.astype(np.uint16) * 257).save("deep.png")
    transparent.save("transparent.png")
    match = pipeline("image-text-matching", model=aligned, processor=processor)
    for name in ("deep.png", "transparent.png"):
        encoded = base64.b64encode(Path(name).read_bytes()).decode()
        expected = match(load_image(name), "a red ball")
        for image in (name, Image.open(name), encoded, f"data:image/png;base64,{encoded}"):
            assert close(match(image, "a red ball"), expected)
    assert close(match("deep.png", "a red ball"), match(Image.fromarray(levels), "a red ball"))


@pytest.mark.parametrize("wrong", ["missing.png", "words.txt", "empty.png", "/nothing/there", 7, None, b"\x89PNG"])
def test_what_is_no_image_is_named(aligned, processor, folder, server, wrong):
    Path("words.txt").write_text("no image")
    Path("empty.png").write_bytes(b"")
    retrieve = ImageTextRetrievalPipeline(aligned, processor, candidate_texts=TEXTS)
    with pytest.raises(
        ValueError, match=f"{wrong!r} cannot be read as an image: .* Pass a PIL image, a path".replace("\\", "\\\\")
    ):
        retrieve(wrong)
    with pytest.raises(ValueError, match="nowhere.png' cannot be read as an image"):
        retrieve(f"{server}/nowhere.png", timeout=20)


def test_an_array_is_one_thing_that_is_no_image(aligned, answering, processor, images):
    retrieve = ImageTextRetrievalPipeline(aligned, processor, candidate_texts=TEXTS)
    match = pipeline("image-text-matching", model=aligned, processor=processor)
    find = ImageTextRetrievalPipeline(aligned, processor)
    pixels = np.asarray(images[0])
    for array in (pixels, pixels / 255, torch.tensor(pixels)):
        with pytest.raises(ValueError, match=r"^(array|tensor)\(.* cannot be read as an image: .* Pass a PIL image"):
            retrieve(array)
        with pytest.raises(ValueError, match="cannot be read as an image"):
            match(array, TEXTS)
        with pytest.raises(ValueError, match="cannot be read as an image"):
            find("a ball", candidate_images=array)
        with pytest.raises(ValueError, match=r"candidate text (array|tensor)\(.* it must be a string"):
            find(images[0], candidate_texts=array)
    found = find(images[0], candidate_texts=np.array(TEXTS))
    assert close(found, retrieve(images[0]))


@pytest.mark.parametrize("long", ["a" * 10**6, f"http://127.0.0.1:1/{'a' * 10**6}", f"/{'a' * 10**6}.png"])
def test_errors_are_short(aligned, processor, long):
    retrieve = ImageTextRetrievalPipeline(aligned, processor, candidate_texts=TEXTS)
    with pytest.raises(ValueError, match="cannot be read as an image") as caught:
        retrieve(long)
    assert len("".join(traceback.format_exception(caught.value))) < 10**4
    match = pipeline("image-text-matching", model=aligned, processor=processor)
    with pytest.raises(ValueError, match="is incomplete: pass image and text") as caught:
        match([{"image": long}])
    assert len(str(caught.value)) < 400


# Questions


def test_answers_from_a_list_are_those_of_rank_answers(answering, processor, images):
    answer = VisualQuestionAnsweringPipeline(answering, processor, candidate_answers=ANSWERS)
    results = answer(images, QUESTIONS, top_k=4)
    tokens = processor.encode_answers(ANSWERS)
    for image, question, result in zip(images, QUESTIONS, results, strict=True):
        inputs = processor(images=image, text=[question], return_tensors="pt")
        rows, probabilities = answering.rank_answers(**inputs, answer_ids=tokens["input_ids"])
        assert [one["answer"] for one in result] == [ANSWERS[row] for row in rows[0]]
        assert [one["score"] for one in result] == pytest.approx(probabilities[0].tolist(), abs=1e-5)
    assert close(answer(images, QUESTIONS), [result[:1] for result in results])
    assert close(answer(images, QUESTIONS, top_k=2, batch_size=3), [result[:2] for result in results])


def test_written_answers_come_with_their_probability(answering, processor, images):
    answer = VisualQuestionAnsweringPipeline(answering, processor)
    settings = {"top_k": 3, "num_beams": 4, "max_new_tokens": 5}
    results = answer(images, QUESTIONS, **settings)
    assert close(answer(images, QUESTIONS, batch_size=2, **settings), results)
    for image, question, result in zip(images, QUESTIONS, results, strict=True):
        inputs = processor(images=image, text=[question], return_tensors="pt")
        written = answering.generate(
            **inputs,
            num_beams=4,
            num_return_sequences=3,
            max_new_tokens=5,
            min_new_tokens=1,
            length_penalty=0.0,
        )
        assert [one["answer"] for one in result] == processor.decode_answers(written)
        assert all(one["answer"] for one in result)
        scores = [one["score"] for one in result]
        assert scores == sorted(scores, reverse=True)
        for tokens, score in zip(written, scores, strict=True):
            tokens = tokens[None, : (tokens != 0).sum()]
            with torch.no_grad():
                logits = answering(**inputs, decoder_input_ids=tokens).logits[:, :-1].log_softmax(-1)
            likelihood = logits.gather(-1, tokens[:, 1:, None]).sum()
            assert score == pytest.approx(likelihood.exp().item(), rel=1e-4)


def test_a_written_answer_has_a_word(answering, processor, images):
    with torch.no_grad():
        answering.mlm_head.out_proj.bias[102] = 100  # nothing but the end of the answer is likely
    results = VisualQuestionAnsweringPipeline(answering, processor)(images[0], "what?", top_k=2)
    assert all(one["answer"] and 0 <= one["score"] < 1e-9 for one in results)


def test_captions_continue_the_prompt_and_come_with_their_mean_probability(config, processor, images):
    model = make(AlbefForImageCaptioning, config)
    processor.prompt = "a picture of"
    write = ImageCaptioningPipeline(model, processor)
    settings = {"top_k": 2, "num_beams": 3, "max_new_tokens": 5}
    results = write(images, **settings)
    assert close(write(images, batch_size=2, **settings), results)
    assert close(write(images[0]), [write(images, max_new_tokens=20)[0][0]])
    for image, result in zip(images, results, strict=True):
        inputs = processor(images=image, text=["a picture of"], return_tensors="pt")
        written = model.generate(**inputs, num_beams=3, num_return_sequences=2, max_new_tokens=5, min_new_tokens=1)
        assert [one["caption"] for one in result] == processor.decode_answers(written[:, 4:])
        for tokens, one in zip(written, result, strict=True):
            tokens = tokens[None, : (tokens != 0).sum()]
            with torch.no_grad():
                logits = model(tokens[:, :-1], inputs["pixel_values"]).logits[:, 3:].log_softmax(-1)
            likelihood = logits.gather(-1, tokens[:, 4:, None]).mean()
            assert one["score"] == pytest.approx(likelihood.exp().item(), rel=1e-4)
    assert not close(write(images[0], prompt="", **settings), results[0])
    assert write(images[0], max_new_tokens=37)
    with pytest.raises(ValueError, match="max_new_tokens is 38: it must be at most 37"):
        write(images[0], max_new_tokens=38)


def test_transformers_own_pipeline_writes_the_same_captions(folder):
    ours = pipeline("image-captioning", model="you/albef-captioning", prompt="a dog")
    theirs = pipeline("image-text-to-text", model="you/albef-captioning")
    settings = {"num_beams": 3, "min_new_tokens": 1, "max_new_tokens": 5}
    found = theirs(images="image.png", text="a dog", generate_kwargs=settings)
    assert found[0]["generated_text"].split()[2:] == ours("image.png", max_new_tokens=5)[0]["caption"].split()


def test_questions_and_images_may_be_one_for_all(answering, processor, images):
    answer = VisualQuestionAnsweringPipeline(answering, processor, candidate_answers=ANSWERS)
    one = answer(image=images[0], question=QUESTIONS[0])
    assert isinstance(one, list) and one[0].keys() == {"score", "answer"}
    about_one = answer(images[0], QUESTIONS)
    assert close(about_one, [answer(images[0], question)[:1] for question in QUESTIONS])
    of_all = answer(images, QUESTIONS[0])
    assert close(of_all, [answer(image, QUESTIONS[0]) for image in images])
    rows = [{"image": image, "question": QUESTIONS[0]} for image in images]
    assert close(answer(rows), of_all) and close(list(answer(row for row in rows)), of_all)
    assert close(answer(rows[0]), one)
    assert close(list(answer((image for image in images), QUESTIONS[0])), of_all)


def test_answers_that_the_model_has_no_positions_for_are_named(answering, processor, images):
    """It has forty: for an answer with its two ends, or for all but the last of the tokens that it writes."""
    long = " ".join(38 * ["dog"])
    assert VisualQuestionAnsweringPipeline(answering, processor)(images[0], "what?", candidate_answers=[long])
    with pytest.raises(ValueError, match="candidate answer 'dog dog .* has 41 tokens including .* the model has 40"):
        VisualQuestionAnsweringPipeline(answering, processor, candidate_answers=["yes", f"{long} dog"])
    with torch.no_grad():
        answering.mlm_head.out_proj.bias[102] = -100  # answers have no end
    answer = VisualQuestionAnsweringPipeline(answering, processor)
    assert answer(images[0], "what?", max_new_tokens=40)
    with pytest.raises(ValueError, match="max_new_tokens is 41: it must be at most 40"):
        answer(images[0], "what?", max_new_tokens=41)


def test_only_lists_go_side_by_side(answering, processor, images):
    answer = VisualQuestionAnsweringPipeline(answering, processor, candidate_answers=ANSWERS)
    lazy = (image for image in images)
    for given, questions in ((lazy, QUESTIONS), (images, iter(QUESTIONS)), (KeyDataset([{}], "image"), QUESTIONS)):
        with pytest.raises(ValueError, match='separately only as lists: pass lists, or yield rows {"image": ..., '):
            answer(given, questions)


# Entailment and reasoning


def test_entailment_names_its_classes_by_probability(config, processor, images):
    model = make(AlbefForVisualEntailment, config)
    judge = pipeline("visual-entailment", model=model, processor=processor)
    results = judge(images, TEXTS, batch_size=2)
    for image, text, result in zip(images, TEXTS, results, strict=True):
        with torch.no_grad():
            logits = model(**processor(images=image, text=[text], return_tensors="pt")).logits
        expected = dict(zip(("contradiction", "neutral", "entailment"), logits.softmax(-1)[0].tolist(), strict=True))
        assert {one["label"]: one["score"] for one in result} == pytest.approx(expected, abs=1e-5)
        assert close([one["score"] for one in result], sorted(expected.values(), reverse=True))
    assert close(judge(images[0], TEXTS[0], top_k=1), results[0][:1])


@pytest.mark.parametrize(
    ("classes", "problem_type", "scores_of"),
    [
        (3, "multi_label_classification", torch.sigmoid),
        (2, "regression", torch.clone),
        (1, None, torch.clone),
        (2, None, lambda logits: logits.softmax(-1)),
    ],
)
def test_scores_are_those_of_the_problem_type(classes, problem_type, scores_of, config, processor, images):
    config.num_labels, config.problem_type = classes, problem_type
    model = make(AlbefForVisualEntailment, config)
    results = pipeline("visual-entailment", model=model, processor=processor)(images[0], TEXTS[0])
    with torch.no_grad():
        logits = model(**processor(images=images[0], text=TEXTS[:1], return_tensors="pt")).logits[0]
    expected = scores_of(logits).sort(descending=True).values.tolist()
    assert [one["score"] for one in results] == pytest.approx(expected, abs=1e-5)


def test_reasoning_reads_pairs_of_images(config, processor, images):
    model = make(AlbefForVisualReasoning, config)
    judge = pipeline("visual-reasoning", model=model, processor=processor)
    pairs = [images[:2], tuple(images[1:]), images[::2]]
    results = judge(pairs, TEXTS, batch_size=2)
    for pair, text, result in zip(pairs, TEXTS, results, strict=True):
        inputs = processor(images=list(pair), text=[text], return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"][None]
        with torch.no_grad():
            expected = dict(zip(("False", "True"), model(**inputs).logits.softmax(-1)[0].tolist(), strict=True))
        assert {one["label"]: one["score"] for one in result} == pytest.approx(expected, abs=1e-5)
    assert close(judge(tuple(images[:2]), TEXTS[0]), results[0])
    assert close(judge(images[:2], TEXTS)[0], results[0])
    assert close(judge([{"images": pair, "text": text} for pair, text in zip(pairs, TEXTS, strict=True)]), results)
    with pytest.raises(ValueError, match="is not a pair of images: pass a list of two"):
        judge(images, "three")


# Grounding


def test_heat_maps_are_those_of_the_plain_functions(aligned, processor, images):
    ground = pipeline("visual-grounding", model=aligned, processor=processor)
    boxes = [[0, 0, 20, 15], [20, 15, 20, 15], [-5, -5, 30, 30], [0.0, 0.0, 40.0, 30.0]]
    for name, layer in (("matching", 1), ("contrast", 0)):
        results = ground(images, TEXTS, boxes=boxes, heatmap=name, layer=layer, box_alpha=0.7, batch_size=2)
        for image, text, result in zip(images, TEXTS, results, strict=True):
            inputs = processor(images=image, text=[text], return_tensors="pt")
            maps = contrastive_heatmaps if name == "contrast" else matching_heatmaps
            heat = maps(aligned, **inputs, layer=layer)
            heat = heat[0] if name == "contrast" else heat[0].mean(0)
            assert result["heatmap"].shape == (30, 40) and result["heatmap"].max() > 0
            scores = score_boxes(heat, boxes, image.size, 0.7)
            assert [boxes.index(box["box"]) for box in result["boxes"]] == scores.argsort(descending=True).tolist()
            found = [box["score"] for box in result["boxes"]]
            assert found == pytest.approx(sorted(scores.tolist(), reverse=True), rel=1e-4)
            assert result["score"] == pytest.approx(plain(aligned, processor, image, text)[0], abs=1e-5)
            expected = np.asarray(overlay(image, heat, probability=result["score"]), dtype=float)
            assert np.abs(np.asarray(result["overlay"], dtype=float) - expected).max() <= 1
    assert aligned.config._attn_implementation == "sdpa"
    assert all(weight.grad is None for weight in aligned.parameters())


def test_the_overlay_of_a_text_that_does_not_match_has_no_color_and_its_heat_map_stays(aligned, processor, images):
    ground = pipeline("visual-grounding", model=aligned, processor=processor)
    before = ground(images[0], TEXTS[0])
    with torch.no_grad():
        aligned.itm_head.bias += torch.tensor([60.0, -60.0])  # the gradient and the heat stay
    after = ground(images[0], TEXTS[0])
    assert np.array_equal(after["heatmap"], before["heatmap"]) and before["heatmap"].any()
    assert before["score"] > 1e-3 > 1e-9 > after["score"]
    gray = np.asarray(images[0].convert("L").convert("RGB"))
    assert np.array_equal(after["overlay"], gray) and not np.array_equal(before["overlay"], gray)


def test_rows_may_have_boxes_of_their_own(aligned, processor, images):
    ground = pipeline("visual-grounding", model=aligned, processor=processor)
    rows = [
        {"image": images[0], "text": TEXTS[0], "boxes": [[0, 0, 9, 9]]},
        {"image": images[1], "text": TEXTS[1]},
    ]
    first, second = ground(rows, boxes=np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), batch_size=2)
    assert [box["box"] for box in first["boxes"]] == [[0, 0, 9, 9]]
    assert sorted(box["box"] for box in second["boxes"]) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert "boxes" not in ground(rows[1])


@pytest.mark.parametrize("boxes", [[0, 0, 5, 5], [[0, 0, 5]], 3, [[0, 0, 5, float("nan")]], [["a", 0, 5, 5]]])
def test_boxes_that_are_none_are_named(aligned, processor, images, boxes):
    ground = pipeline("visual-grounding", model=aligned, processor=processor)
    with pytest.raises(ValueError, match=r"is not a box: pass a list of \[left, top, width, height\] in pixels"):
        ground(images[0], "a ball", boxes=boxes)
    with pytest.raises(ValueError, match="has no area"):
        ground(images[0], "a ball", boxes=[[5, 5, 0, 3]])
    with pytest.raises(ValueError, match="heatmap is 'both': choose matching or contrast"):
        ground(images[0], "a ball", heatmap="both")


def test_settings_of_grounding_that_cannot_be_are_named(aligned, processor, images):
    ground = pipeline("visual-grounding", model=aligned, processor=processor)
    for wrong in (99, "x"):
        with pytest.raises(ValueError, match=f"layer is {wrong!r}: it must be a whole number from 0 to 1"):
            ground(images[0], "a ball", layer=wrong)
    for wrong in ("x", float("nan"), [0.5]):
        with pytest.raises(ValueError, match="box_alpha is .*: it must be a number, such as 0.5"):
            ground(images[0], "a ball", boxes=[[0, 0, 9, 9]], box_alpha=wrong)


# Short models


def test_texts_are_cut_to_the_positions_that_there_are(config, processor, images):
    config.text_config.max_position_embeddings = 12
    long, short = " ".join(20 * ["dog"]), " ".join(11 * ["dog"])
    aligned, answering = make(AlbefForRetrieval, config), make(AlbefForQuestionAnswering, config)
    entailing = make(AlbefForVisualEntailment, config)
    for one in (
        pipeline("image-text-matching", model=aligned, processor=processor),
        pipeline("visual-entailment", model=entailing, processor=processor),
        VisualQuestionAnsweringPipeline(answering, processor, candidate_answers=ANSWERS),
    ):
        assert close(one(images[0], long), one(images[0], short))
    find = ImageTextRetrievalPipeline(aligned, processor, candidate_images=images)
    assert close(find(long), find(short))
    ground = pipeline("visual-grounding", model=aligned, processor=processor)
    cut, whole = (ground(images[0], text)["heatmap"] for text in (long, short))
    assert np.allclose(cut, whole, atol=1e-6) and cut.any()


# Loading


def test_three_lines_suffice(folder, processor, images):
    retrieve = pipeline("image-text-retrieval", model="you/albef")
    assert isinstance(retrieve, ImageTextRetrievalPipeline) and isinstance(retrieve.model, AlbefForRetrieval)
    expected = plain(AlbefForPreTraining.from_pretrained("you/albef"), processor, images[0], TEXTS[0])
    (result,) = retrieve("image.png", candidate_texts=TEXTS[:1])
    assert (result["score"], result["similarity"]) == pytest.approx(expected, abs=1e-5)


def test_examples_of_the_classes(folder):
    failed, tried = doctest.testmod(pipeline_albef)
    assert tried > 15 and not failed


def test_half_precision_and_device_are_those_of_transformers(folder, images):
    retrieve = pipeline("image-text-retrieval", model="you/albef", dtype=torch.bfloat16, device="cpu")
    assert retrieve.model.dtype == torch.bfloat16
    exact = pipeline("image-text-retrieval", model="you/albef")
    both = [one(images, candidate_texts=TEXTS[:1], batch_size=2) for one in (retrieve, exact)]
    for rough, fine in zip(*both, strict=True):
        assert rough[0]["score"] == pytest.approx(fine[0]["score"], abs=0.05)
    find = pipeline("image-text-retrieval", model="you/albef", dtype="bfloat16", candidate_images=images)
    assert len(find(TEXTS[0])) == 3
    answer = pipeline("visual-question-answering", model="you/albef-vqa", dtype=torch.bfloat16)
    assert answer(images[0], "what?")[0]["answer"]
    assert answer(images[0], "what?", candidate_answers=ANSWERS)[0]["answer"] in ANSWERS
    ground = pipeline("visual-grounding", model="you/albef", dtype=torch.bfloat16)
    assert np.isfinite(ground(images[0], "a ball")["heatmap"]).all()
    judge = pipeline("visual-entailment", model="you/albef-entailment", dtype=torch.bfloat16)
    assert sum(one["score"] for one in judge(images[0], "a ball")) == pytest.approx(1, abs=1e-3)


def test_a_pipeline_leaves_dropout_out(config, processor, images):
    model = make(AlbefForVisualEntailment, config).train()
    judge = pipeline("visual-entailment", model=model, processor=processor)
    assert judge(images[0], TEXTS[0]) == judge(images[0], TEXTS[0])


# What transformers brings along


def test_zero_shot_image_classification_of_transformers(folder, processor, images, caplog):
    with caplog.at_level(logging.WARNING):
        classify = pipeline("zero-shot-image-classification", model="you/albef")
    assert isinstance(classify.model, AlbefForRetrieval)
    assert not [record for record in caplog.records if "not supported" in record.message]
    template = "a photo of {} and nothing else"
    results = classify(images, candidate_labels=["dogs", "a ball", "snow"], hypothesis_template=template)
    labels = ["dogs", "a ball", "snow"]
    with torch.no_grad():
        inputs = processor(images=images, text=[template.format(label) for label in labels], return_tensors="pt")
        expected = classify.model(**inputs).logits_per_image.softmax(-1)
    for result, row in zip(results, expected, strict=True):
        probabilities = dict(zip(labels, row.tolist(), strict=True))
        assert {one["label"]: one["score"] for one in result} == pytest.approx(probabilities, abs=1e-5)
    batched = classify(images, candidate_labels=labels, hypothesis_template=template, batch_size=2)
    assert close(batched, results)


def test_special_tokens_in_a_label_stay_text(folder, images):
    classify = pipeline("zero-shot-image-classification", model="you/albef")
    seen = []
    embeddings = classify.model.albef.text_model.embeddings
    embeddings.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    classify(images[0], candidate_labels=["a [SEP] [MASK] [UNK]"], hypothesis_template="{}")
    (ids,) = seen[0].tolist()
    assert classify.tokenizer.decode(ids).replace(" ", "") == "[CLS]a[sep][mask][unk]" and ids.count(101) == 1


# Wrong inputs


@pytest.mark.parametrize("wrong", [7, None, 1.5, ["a list"], b"bytes"])
def test_what_is_no_text_is_named(aligned, answering, processor, images, wrong):
    with pytest.raises(ValueError, match="candidate text .* is a .*: it must be a string"):
        ImageTextRetrievalPipeline(aligned, processor)(images[0], candidate_texts=["fine", wrong])
    with pytest.raises(ValueError, match="text .* is a .*: it must be a string"):
        ImageTextRetrievalPipeline(aligned, processor, candidate_images=images)(["fine", wrong])
    rows = [{"image": images[0], "question": wrong}]
    with pytest.raises(ValueError, match="question .* is a .*: it must be a string"):
        VisualQuestionAnsweringPipeline(answering, processor)(rows)


@pytest.mark.parametrize("empty", ["", "  \n", "?!", "\u200b"])
def test_a_text_has_a_word(aligned, answering, processor, images, empty):
    with pytest.raises(ValueError, match="candidate text .* has no word: pass"):
        ImageTextRetrievalPipeline(aligned, processor)(images[0], candidate_texts=["fine", empty])
    with pytest.raises(ValueError, match="text .* has no word: pass"):
        ImageTextRetrievalPipeline(aligned, processor, candidate_images=images)(empty)
    with pytest.raises(ValueError, match="question .* has no word: pass"):
        VisualQuestionAnsweringPipeline(answering, processor)(images[0], empty)


def test_without_words_an_image_is_classified_alone(config, processor, images):
    model = make(AlbefForImageTextClassification, config)
    classify = pipeline("image-text-classification", model=model, processor=processor)
    alone = classify(images[0])
    for text in ("", " ", "?!", None, math.nan):
        assert classify({"image": images[0], "text": text}) == alone
    assert classify([images[0]] * 2, [None, "dogs"])[0] == alone != classify(images[0], "dogs")


def test_a_separator_is_no_word(aligned, processor, images):
    ending = AlbefProcessor(processor.image_processor, embedded_tokenizer(), add_separator=True)
    with pytest.raises(ValueError, match="candidate text .* has no word: pass"):
        ImageTextRetrievalPipeline(aligned, ending)(images[0], candidate_texts=["?!"])


def test_what_is_missing_is_named(aligned, answering, processor, images):
    retrieve = ImageTextRetrievalPipeline(aligned, processor)
    with pytest.raises(ValueError, match="pass candidate_texts or candidate_images"):
        retrieve(images[0])
    with pytest.raises(ValueError, match="not both"):
        retrieve(images[0], candidate_texts=TEXTS, candidate_images=images)
    with pytest.raises(ValueError, match="candidate_texts is empty"):
        retrieve(images[0], candidate_texts=[])
    with pytest.raises(ValueError, match="candidate_images is empty"):
        retrieve("a ball", candidate_images=[])
    with pytest.raises(ValueError, match="candidate_texts is 7: pass a list"):
        retrieve(images[0], candidate_texts=7)
    with pytest.raises(ValueError, match="inputs is an empty list"):
        retrieve([], candidate_texts=TEXTS)
    assert len(retrieve(images[0], candidate_texts=TEXTS, top_k=np.int64(1), rerank_k=torch.tensor(2))) == 1
    for name, wrong in (("top_k", 0), ("top_k", "many"), ("rerank_k", -1), ("top_k", 1.5)):
        with pytest.raises(ValueError, match=f"{name} is {wrong!r}: it must be an integer of at least 1"):
            retrieve(images[0], candidate_texts=TEXTS, **{name: wrong})
    answer = VisualQuestionAnsweringPipeline(answering, processor)
    for inputs in ((images[0],), ("image.png",), ({"image": images[0]},), ([{"question": "what?"}],)):
        with pytest.raises(ValueError, match="is incomplete: pass image and question, or rows"):
            answer(*inputs)
    with pytest.raises(ValueError, match="3 of image and 2 of question: pass the same number of both, or one for all"):
        answer(images, QUESTIONS[:2])
    for inputs, name in (([[], "what?"], "image"), ([[]], "image"), ([images, []], "question")):
        with pytest.raises(ValueError, match=f"{name} is an empty list"):
            answer(*inputs)
    with pytest.raises(ValueError, match="answers must be strings"):
        answer(images[0], "what?", candidate_answers=["yes", 3])
    with pytest.raises(ValueError, match="candidate_answers is empty"):
        answer(images[0], "what?", candidate_answers=[])


@pytest.mark.parametrize(("task", "given"), [("image-feature-extraction", "image.png"), ("feature-extraction", "a")])
def test_pipelines_for_features_say_what_to_use(folder, task, given):
    with pytest.raises(
        ValueError, match="load the model as AlbefForRetrieval and call get_image_features or get_text"
    ):
        pipeline(task, model="you/albef")(given)


def test_special_tokens_in_somebodys_text_stay_text(aligned, answering, processor, images, monkeypatch):
    seen = []
    for model in (aligned, answering):
        model.albef.text_model.embeddings.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    text = "a [SEP] [MASK] ball [CLS] [PAD]"
    ImageTextRetrievalPipeline(aligned, processor)(images[0], candidate_texts=[text, "a ball"])
    ImageTextRetrievalPipeline(aligned, processor)(text, candidate_images=images)
    VisualQuestionAnsweringPipeline(answering, processor)(images[0], text)
    assert len(seen) == 3
    for ids in seen:
        longest = ids[(ids != 0).sum(1).argmax()]
        words = processor.tokenizer.decode(longest).replace(" ", "")
        assert words == "[CLS]a[sep][mask]ball[cls][pad]" and longest.tolist().count(101) == 1
        assert not {102, 103} & set(ids.flatten().tolist())


def test_a_wrong_vocabulary_is_refused(aligned, answering, processor):
    processor.tokenizer.add_tokens(["surfboarding"])
    with pytest.raises(ValueError, match="30523 tokens and the model 30522: they do not belong together"):
        ImageTextRetrievalPipeline(aligned, processor)


def test_other_special_tokens_are_refused(aligned, answering, processor):
    for model, kind in ((aligned, ImageTextRetrievalPipeline), (answering, VisualQuestionAnsweringPipeline)):
        model.config.text_config.eos_token_id = 3
        with pytest.raises(ValueError, match=r"are \(101, 3, 0\) in the model and \(101, 102, 0\) in the tok"):
            kind(model, processor)
        model.config.text_config.eos_token_id = processor.tokenizer.sep_token_id  # the remedy
        kind(model, processor)


def test_a_model_of_another_kind_is_refused(aligned, answering, config, processor):
    with pytest.raises(
        ValueError, match="AlbefForQuestionAnswering cannot do this: load the model as AlbefForRetrieval"
    ):
        ImageTextRetrievalPipeline(answering, processor)
    with pytest.raises(ValueError, match="load the model as AlbefForQuestionAnswering"):
        VisualQuestionAnsweringPipeline(aligned, processor)
    with pytest.raises(ValueError, match="load the model as AlbefForVisualReasoning"):
        pipeline("visual-reasoning", model=AlbefForVisualEntailment(config), processor=processor)
    with pytest.raises(ValueError, match="TextAssignment cannot do this: load the model as AlbefForVisualReasoning"):
        pipeline("visual-reasoning", model=AlbefForTextAssignment(config), processor=processor)
    with pytest.raises(ValueError, match="needs a processor"):
        ImageTextRetrievalPipeline(aligned)


def test_the_folder_of_another_task_is_refused(folder, config, processor):
    """Its head would start fresh, and answer by chance."""
    for new, kind in (("base", AlbefModel), ("assignment", AlbefForTextAssignment)):
        make(kind, config).save_pretrained(f"you/{new}")
        processor.save_pretrained(f"you/{new}")
    for task, name, remedy in (
        ("visual-entailment", "albef-nlvr2", "pipeline is visual-reasoning: for visual-entailment load a folder of"),
        ("visual-reasoning", "albef-entailment", "pipeline is visual-entailment: for visual-reasoning load"),
        ("image-text-matching", "albef-vqa", "load a folder of AlbefForPreTraining or AlbefForRetrieval"),
        ("visual-entailment", "albef-vqa", "whose pipeline is visual-question-answering"),
        ("visual-question-answering", "albef", "is image-text-retrieval or image-text-matching or visual-grounding"),
        ("visual-grounding", "base", "folder of AlbefModel, for which there is no pipeline"),
        ("visual-reasoning", "assignment", "folder of AlbefForTextAssignment, for which there is no pipeline"),
    ):
        with pytest.raises(ValueError, match=remedy):
            pipeline(task, model=f"you/{name}")


def test_what_has_been_trained_since_is_taken_once_it_is_saved(folder, processor):
    model = AlbefForVisualEntailment.from_pretrained("you/albef")
    with pytest.raises(ValueError, match="If you have trained the model for this task since, save it"):
        pipeline("visual-entailment", model=model, processor=processor)
    model.save_pretrained("trained")
    pipeline("visual-entailment", model=model, processor=processor)


def test_wrapped_and_derived_models_are_known(config, processor, images, tmp_path):
    class Derived(AlbefForRetrieval):
        pass

    model = make(Derived, config)
    model.save_pretrained(tmp_path)
    assert model.config.architectures == ["Derived"]
    for one in (model, torch.compile(model, backend="eager")):
        retrieve = ImageTextRetrievalPipeline(one, processor)
        assert len(retrieve(images[0], candidate_texts=TEXTS)) == 3


# Without the package


def test_a_saved_model_names_its_pipelines_and_the_package_needs_no_trust(folder):
    named = {}
    for name in HEADS:
        settings = json.loads(Path(f"you/{name}/config.json").read_text())
        named[name] = set(settings["custom_pipelines"])
        for task, entry in settings["custom_pipelines"].items():
            module, _, kind = entry["impl"].partition(".")
            assert module == "pipeline_albef" and task in getattr(pipeline_albef, kind).__doc__
        assert not hasattr(AlbefConfig.from_pretrained(f"you/{name}"), "custom_pipelines")
    assert named == {
        "albef": MATCHING,
        "albef-retrieval": MATCHING,
        "albef-vqa": {"visual-question-answering"},
        "albef-captioning": {"image-captioning"},
        "albef-entailment": {"visual-entailment"},
        "albef-nlvr2": {"visual-reasoning"},
        "albef-colors": {"image-text-classification"},
    }


STRANGER = """
import json, sys
sys.modules["albef_hf"] = None  # as if it were not installed
from transformers import PreTrainedModel, pipeline
retrieve = pipeline("image-text-retrieval", model="you/albef", trust_remote_code=True)
answer = pipeline("visual-question-answering", model="you/albef-vqa", trust_remote_code=True)
assert type(answer.model).__module__.startswith("transformers_modules.")
ground = pipeline("visual-grounding", model="you/albef", trust_remote_code=True)
print(json.dumps({
    "retrieval": retrieve("deep.png", candidate_texts=["a red ball", "snow"]),
    "vqa": answer("image.png", "what is it?", candidate_answers=["yes", "no"], top_k=2),
    "grounding": ground("image.png", "a ball", boxes=[[0, 0, 20, 15], [5, 5, 20, 15]])["boxes"],
}))
"""


def test_the_code_that_a_pipeline_saves_runs_without_the_package(folder):
    retrieve = pipeline("image-text-retrieval", model="you/albef")
    answer = pipeline("visual-question-answering", model="you/albef-vqa")
    ground = pipeline("visual-grounding", model="you/albef")
    gray = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    Image.fromarray(gray.astype(np.uint16) * 257).save("deep.png")
    expected = {
        "retrieval": retrieve(Image.fromarray(gray), candidate_texts=["a red ball", "snow"]),
        "vqa": answer("image.png", "what is it?", candidate_answers=["yes", "no"], top_k=2),
        "grounding": ground("image.png", "a ball", boxes=[[0, 0, 20, 15], [5, 5, 20, 15]])["boxes"],
    }
    for one, name in ((retrieve, "albef"), (answer, "albef-vqa")):
        one.save_pretrained(f"you/{name}")
    settings = os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", STRANGER], env=settings, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert close(json.loads(run.stdout), expected)


def test_a_saved_pipeline_loads_again(folder, aligned, processor, images):
    short = AlbefProcessor(processor.image_processor, processor.tokenizer, max_words=2)
    retrieve = ImageTextRetrievalPipeline(aligned, short, task="image-text-retrieval")
    expected = retrieve(images[0], candidate_texts=TEXTS)
    assert not close(expected, ImageTextRetrievalPipeline(aligned, processor)(images[0], candidate_texts=TEXTS))
    retrieve.save_pretrained("saved")
    assert close(pipeline("image-text-retrieval", model="saved")(images[0], candidate_texts=TEXTS), expected)
