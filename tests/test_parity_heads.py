"""The heads compute what the original code computed, in float64: losses, gradients, teacher, queues, inference.

Every model here comes from a checkpoint in the original's names, through the converter.
"""

import pytest
import torch
from original import (
    TASKS,
    ImposedNegatives,
    assert_close,
    assert_gradients,
    convert,
    load,
    student_and_teacher,
    to_ours,
)

from albef_hf import AlbefForRetrieval, AlbefForTextAssignment
from albef_hf.losses_albef import sample_image_pairs
from albef_hf.retrieval_albef import best_matches, encode_tokenized_texts, recall, rerank

RUNS = ["fp64_alpha0", "fp64_alpha0.4", "fp64_alpha0_nodistill"]


def batch_of(name: str, inputs: dict) -> dict[str, torch.Tensor]:
    """The golden inputs under our names."""
    images = inputs["image"].double()
    if name == "vqa":
        padding = inputs["answer_attention_mask"] == 0
        return {
            "input_ids": inputs["question_input_ids"],
            "attention_mask": inputs["question_attention_mask"],
            "pixel_values": images,
            "labels": inputs["answer_input_ids"].masked_fill(padding, -100),
            "answer_counts": torch.tensor(inputs["k"]),
            "answer_weights": inputs["weights"].double(),
        }
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        # The original has all first images, then all second ones.
        "pixel_values": torch.stack(images.chunk(2), dim=1) if name == "nlvr" else images,
        "labels": inputs["idx"] if name == "retrieval" else inputs["targets"],
    }


def step(name: str, run: str, monkeypatch: pytest.MonkeyPatch) -> tuple:
    """One step as the golden run took it: golden file, student, teacher, the teacher's outputs, the student's."""
    golden = load(name)
    student, teacher = student_and_teacher(golden, TASKS[name])
    if name == "retrieval":
        golden["negatives"] = ImposedNegatives(golden["rng"]["tape"], monkeypatch)
    batch = batch_of(name, golden["inputs"])
    targets = teacher(**batch)
    alpha = 0.4 if run == "fp64_alpha0.4" else 0.0
    # The original without distillation has no teacher, but for the keys of its contrastive loss.
    given = None if run.endswith("nodistill") and name != "retrieval" else targets
    outputs = student(**batch, teacher_outputs=given, alpha=alpha)
    outputs.loss.backward()
    return golden, student, teacher, targets, outputs


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ["retrieval", "vqa", "nlvr", "ve"])
def test_losses_and_gradients(name, run, monkeypatch):
    golden, student, _, _, outputs = step(name, run, monkeypatch)
    expected = golden["runs"][run]
    assert_close(outputs.loss.detach(), expected["loss"], 1e-9, "loss")
    if name == "retrieval":
        assert_close(outputs.loss_itc.detach(), expected["loss_ita"], 1e-9, "loss_itc")
        assert_close(outputs.loss_itm.detach(), expected["loss_itm"], 1e-9, "loss_itm")
    if "grads" in expected:
        assert_gradients(student, to_ours(expected["grads"], student.config, TASKS[name]))

    # Norms of all gradients; of what the original fuses, the norm of the parts together.
    squares = {key: parameter.grad.square().sum() for key, parameter in student.named_parameters()}
    norms = {key: torch.tensor(norm, dtype=torch.float64) for key, norm in expected["grad_norms"].items()}
    largest = max(norms.values())
    reached = set()
    for key, norm in norms.items():
        parts = to_ours({key: torch.zeros(3)}, student.config, TASKS[name])
        assert parts, key
        reached |= parts.keys()
        assert_close(sum(squares[part] for part in parts).sqrt(), norm, 1e-9 if norm > 1e-9 * largest else 1, key)
    assert reached == squares.keys(), "a parameter that the original's loss does not reach"


@pytest.mark.parametrize("name", ["retrieval", "vqa", "nlvr", "ve"])
def test_teacher_and_queue_after_the_step(name, monkeypatch):
    golden, student, teacher, targets, _ = step(name, "fp64_alpha0.4", monkeypatch)
    after = golden["runs"]["fp64_alpha0.4"]["after"]
    weights, expected = teacher.model.state_dict(), to_ours(after, student.config, TASKS[name], teacher=True)
    assert len(expected) > 5
    for key, weight in expected.items():
        assert_close(weights[key], weight, 1e-12, key)
    if name == "retrieval":
        teacher.enqueue(targets.image_embeds, targets.text_embeds, golden["inputs"]["idx"])
        assert_close(teacher.queue.image_features, after["image_queue"].T, 1e-9, "image queue")
        assert_close(teacher.queue.text_features, after["text_queue"].T, 1e-9, "text queue")
        assert torch.equal(teacher.queue.ids, after["idx_queue"][0])
        assert teacher.queue.pointer == after["queue_ptr"][0]


def test_retrieval_draws_with_the_weights_of_the_original(monkeypatch):
    golden, *_, outputs = step("retrieval", "fp64_alpha0.4", monkeypatch)
    expected = golden["runs"]["fp64_alpha0.4"]
    weights = torch.cat(golden["negatives"].weights)
    assert not golden["negatives"].drawn
    theirs = expected["multinomial_weights"]
    assert_close(weights / weights.sum(1, keepdim=True), theirs / theirs.sum(1, keepdim=True), 1e-9, "weights")
    assert_close(outputs.itm_logits.detach(), expected["vl_output"], 1e-9, "itm_logits")


def test_question_answering_logits(monkeypatch):
    golden, *_, outputs = step("vqa", "fp64_alpha0.4", monkeypatch)
    answered = golden["inputs"]["answer_attention_mask"][:, 1:] == 1
    logits = golden["runs"]["fp64_alpha0.4"]["decoder_logits"]
    assert_close(outputs.logits.detach(), logits[:, :-1][answered], 1e-9, "logits")


@pytest.mark.parametrize("batch_size", [1, 5, 1024])
def test_ranked_answers(batch_size):
    golden = load("vqa")
    student, _ = student_and_teacher(golden, "vqa")
    inputs = golden["inputs"]
    rows, probabilities = student.eval().rank_answers(
        inputs["question_input_ids"],
        inputs["image"].double(),
        inputs["answer_list_input_ids"],
        inputs["question_attention_mask"],
        inputs["answer_list_attention_mask"],
        top_k=inputs["k_test"],
        batch_size=batch_size,
    )
    assert torch.equal(rows, golden["inference"]["topk_ids"])
    assert_close(probabilities, golden["inference"]["topk_probs"], 1e-9, "probabilities")


@pytest.mark.parametrize("name", ["nlvr", "ve"])
def test_classes(name):
    golden = load(name)
    student, _ = student_and_teacher(golden, TASKS[name])
    batch = batch_of(name, golden["inputs"])
    del batch["labels"]
    assert_close(student.eval()(**batch).logits.detach(), golden["inference"]["logits"], 1e-9, "logits")


def assignment_model(golden: dict, folder) -> AlbefForTextAssignment:
    return AlbefForTextAssignment.from_pretrained(convert(golden, "nlvr2-pretraining", folder)).double().train()


def test_text_assignment(tmp_path):
    golden = load("pretrain_nlvr")
    run, inputs, drawn = golden["runs"]["fp64"], golden["inputs"], golden["rng"]
    model = assignment_model(golden, tmp_path)
    pairs = torch.stack([drawn["image0_idx"], drawn["image1_idx"]], dim=1)
    outputs = model(
        inputs["input_ids"], inputs["image"].double(), inputs["attention_mask"], pairs, labels=drawn["labels"]
    )
    outputs.loss.backward()
    assert_close(outputs.logits.detach(), run["pred"], 1e-9, "logits")
    assert_close(outputs.loss.detach(), run["loss"], 1e-9, "loss")
    assert_gradients(model, to_ours(run["grads"], model.config, "nlvr2-pretraining"))


def test_text_assignment_draws_with_the_weights_of_the_original(tmp_path, monkeypatch):
    golden = load("pretrain_nlvr")
    model = assignment_model(golden, tmp_path)
    asked = []
    draw = torch.multinomial
    monkeypatch.setattr(
        "albef_hf.losses_albef.multinomial", lambda weights, n: asked.append(weights.clone()) or draw(weights, n)
    )
    sample_image_pairs(model._image_similarities(model.albef.vision_model(golden["inputs"]["image"].double())[0]))
    assert_close(asked[0], golden["runs"]["fp64"]["weights"], 1e-9, "weights")


def test_retrieval_evaluation(tmp_path):
    golden = load("eval_retrieval")
    inputs, expected = golden["inputs"], golden["expected"]
    model = AlbefForRetrieval.from_pretrained(convert(golden, "retrieval", tmp_path)).double().eval()
    with torch.no_grad():
        images = model.get_image_features(inputs["images"].double())
    features = encode_tokenized_texts(model, inputs["input_ids"], inputs["attention_mask"])
    k, owner = inputs["k_test"], torch.tensor([inputs["txt2img"][text] for text in range(len(inputs["input_ids"]))])
    similarities, of_images = best_matches(images.pooler_output, features.embeds, k)
    _, of_texts = best_matches(features.embeds, images.pooler_output, k)
    assert_close(similarities, expected["sims_matrix_i2t"].gather(1, of_images), 1e-9, "similarities")
    states = enumerate(images.last_hidden_state.split(1))
    image_logits, text_logits = rerank(model, states, features, of_images, of_texts)
    image_scores, text_scores = image_logits[..., 1], text_logits[..., 1]  # the original's: of a match alone
    for ways, numbers, scores in (("i2t", of_images, image_scores), ("t2i", of_texts, text_scores)):
        theirs = expected[f"score_matrix_{ways}"].double()  # kept in float32 there; -100 where not reranked
        ours = torch.full_like(theirs, -100).scatter(1, numbers, scores)
        assert_close(ours, theirs, 1e-6, ways)
    metrics = expected["itm_eval"]
    texts_found = recall(image_scores, owner[of_images] == torch.arange(len(of_images))[:, None], (1, 5))
    images_found = recall(text_scores, of_texts == owner[:, None], (1, 5))
    assert texts_found == pytest.approx({1: metrics["txt_r1"], 5: metrics["txt_r5"]}, abs=1e-3)
    assert images_found == pytest.approx({1: metrics["img_r1"], 5: metrics["img_r5"]}, abs=1e-3)
