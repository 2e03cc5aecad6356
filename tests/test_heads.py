"""The heads beyond pretraining: what they return, what they learn from, and how one starts from another."""

import json
from functools import partial

import pytest
import torch
from original import assert_close
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DynamicCache,
    EncoderDecoderCache,
    PreTrainedModel,
)
from transformers.utils import logging

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
    MomentumTeacher,
    classification_albef,
    matching_albef,
)
from albef_hf.compatibility_albef import CACHE_NAME, enable_activation_checkpointing
from albef_hf.configuration_albef import ENTAILMENT_CLASSES, REASONING_CLASSES
from albef_hf.losses_albef import IGNORED, sample_image_pairs
from albef_hf.outputs_albef import AlbefTeacherOutput

HEADS = [
    AlbefForRetrieval,
    AlbefForQuestionAnswering,
    AlbefForImageCaptioning,
    AlbefForVisualReasoning,
    AlbefForTextAssignment,
    AlbefForVisualEntailment,
    AlbefForImageTextClassification,
]


@pytest.fixture
def three_deep(config) -> AlbefConfig:
    """Text and multimodal encoder of different depth, which must not be taken for each other."""
    config.text_config.num_multimodal_layers = 3
    return config


@pytest.fixture
def question_model(three_deep) -> AlbefForQuestionAnswering:
    """Answers of which each token depends on its place, on those before it, and on question and image."""
    torch.manual_seed(0)
    model = AlbefForQuestionAnswering(three_deep).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)
        model.mlm_head.dense.weight.normal_()
        model.decoder.embeddings.word_embeddings.weight.normal_(std=0.02)
        model.decoder.embeddings.position_embeddings.weight.normal_(std=4)
        for layer in model.decoder.layers:
            layer.cross_attn.out_proj.weight *= 0.05
    return model


@pytest.fixture
def answers() -> torch.Tensor:
    """Six answers as labels."""
    labels = torch.full((6, 5), IGNORED)
    for row, length in enumerate([1, 3, 2, 1, 3, 2]):
        labels[row, : length + 2] = torch.tensor([101, *range(2000 + row, 2000 + row + length), 102])
    return labels


def inputs_of(batch: dict, kind: type[PreTrainedModel]) -> dict[str, torch.Tensor]:
    """What a head is called with, labels included."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    if kind is AlbefForVisualReasoning:
        inputs["pixel_values"] = torch.stack([inputs["pixel_values"], inputs["pixel_values"].flip(0)], dim=1)
    if kind is AlbefForQuestionAnswering:
        inputs["labels"] = torch.tensor([[101, 2000 + row, 102] for row in range(4)])
    elif kind is AlbefForImageCaptioning:  # the first two tokens are a prompt
        bears_loss = inputs["attention_mask"].bool().index_fill(1, torch.tensor([0, 1]), False)
        inputs["labels"] = inputs["input_ids"].masked_fill(~bears_loss, IGNORED)
    elif kind is AlbefForRetrieval:
        inputs["labels"] = torch.tensor([7, 3, 7, 5])
    elif kind is not AlbefForTextAssignment:
        inputs["labels"] = torch.tensor([0, 1, 1, 0])
    return inputs


@pytest.mark.parametrize("kind", HEADS)
def test_every_parameter_gets_a_gradient(kind, config, batch):
    torch.manual_seed(0)
    model = kind(config).train()
    model(**inputs_of(batch, kind)).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("kind", HEADS)
def test_saved_and_loaded_a_head_gives_the_same_numbers(kind, three_deep, batch, tmp_path):
    model = kind(three_deep).eval()
    model.save_pretrained(tmp_path)
    loaded, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    inputs = inputs_of(batch, kind)
    torch.manual_seed(1)
    expected = model(**inputs).loss
    torch.manual_seed(1)
    assert torch.equal(loaded(**inputs).loss, expected)


@pytest.mark.parametrize("kind", HEADS)
def test_gradient_checkpointing_changes_no_gradient(kind, config, batch):
    gradients = []
    model = kind(config).train()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0
        elif hasattr(part, "dropout") and isinstance(part.dropout, float):
            part.dropout = 0
    for checkpointing in (False, True):
        if checkpointing:
            enable_activation_checkpointing(model)
        model.zero_grad()
        torch.manual_seed(0)
        model(**inputs_of(batch, kind)).loss.backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


@pytest.mark.parametrize("kind", HEADS)
def test_half_precision_gives_a_finite_loss(kind, config, batch, tmp_path):
    kind(config).save_pretrained(tmp_path)
    model = kind.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert torch.isfinite(model(**inputs_of(batch, kind)).loss)


# Retrieval


def test_retrieval_scores_all_pairs_and_matches_texts_with_shared_images(config, batch):
    model = AlbefForRetrieval(config).eval()
    ids, mask, images = batch["input_ids"], batch["attention_mask"], batch["pixel_values"]
    with torch.no_grad():
        two = model(ids, images[:2], mask)
        one = model(ids, images[:1], mask)
        each = model(ids, images[[0, 1, 0, 1]], mask)
    assert two.logits_per_image.shape == (2, 4) and two.logits_per_text.shape == (4, 2)
    assert one.logits_per_image.shape == (1, 4) and one.itm_logits.shape == (4, 2)
    cosine = two.image_embeds @ two.text_embeds.T
    assert torch.allclose(two.logits_per_image, cosine / model.contrastive_head.temperature)
    assert torch.allclose(two.itm_logits, each.itm_logits, atol=1e-6)
    assert torch.allclose(one.itm_logits[0], each.itm_logits[0], atol=1e-6)
    with torch.no_grad():
        uneven = model(ids, images[:3], mask)
    assert uneven.itm_logits is None
    assert torch.allclose(uneven.logits_per_image[:2], two.logits_per_image, atol=1e-6)
    with pytest.raises(ValueError, match="4 texts cannot share 3 images evenly"):
        model.albef(ids, images[:3], mask)


def test_texts_of_the_same_image_are_right_answers_and_no_negatives(config, batch, monkeypatch):
    model = AlbefForRetrieval(config).eval()
    inputs = inputs_of(batch, AlbefForRetrieval)
    drawn = []
    draw = torch.multinomial
    monkeypatch.setattr(
        "albef_hf.losses_albef.multinomial", lambda weights, n: drawn.append(weights) or draw(weights, n)
    )
    with torch.no_grad():
        outputs = model(**inputs)
        logits = model(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"])
    same = inputs["labels"][:, None] == inputs["labels"]
    for weights in drawn:
        assert torch.equal(weights == 0, same)
    shares = same / same.sum(1, keepdim=True)
    per_image = -(shares * logits.logits_per_image.log_softmax(1)).sum(1).mean()
    per_text = -(shares * logits.logits_per_text.log_softmax(1)).sum(1).mean()
    assert outputs.loss_itc.item() == pytest.approx((per_image + per_text).item() / 2, rel=1e-5)


def test_unknown_images_are_not_taken_for_the_same(config, batch):
    model = AlbefForRetrieval(config).eval()
    teacher = MomentumTeacher(model, queue_size=6).eval()
    inputs = inputs_of(batch, AlbefForRetrieval) | {"labels": torch.full((4,), IGNORED)}
    with torch.no_grad():
        targets = teacher(**inputs)
        loss = model(**inputs, teacher_outputs=targets).loss_itc
        known = model(**inputs | {"labels": torch.arange(4)}, teacher_outputs=targets).loss_itc
    assert (targets.queue_ids == IGNORED).all()
    assert torch.equal(loss, known)


@pytest.mark.parametrize("with_teacher", [False, True])
@torch.no_grad()
def test_three_right_answers_share_a_float64_target_exactly(with_teacher, config, batch):
    """Thirds are not representable: shares in float32 would move the loss by 1e-8."""
    model = AlbefForRetrieval(config).double().eval()
    inputs = inputs_of(batch, AlbefForRetrieval) | {"labels": torch.tensor([7, 7, 7, 5])}
    teacher = MomentumTeacher(model, queue_size=6).eval()
    teacher.queue.ids[:2] = torch.tensor([5, 5])
    targets = teacher(**inputs) if with_teacher else None
    outputs = model(**inputs, teacher_outputs=targets)
    keys = inputs["labels"] if targets is None else torch.cat([inputs["labels"], targets.queue_ids])
    shares = (inputs["labels"][:, None] == keys).double()
    shares /= shares.sum(1, keepdim=True)
    images, texts = outputs.image_embeds, outputs.text_embeds
    if targets is not None:
        images, texts = (
            torch.cat([targets[f"{kind}_embeds"], targets[f"{kind}_queue"]]) for kind in ("image", "text")
        )
    logits = [outputs.image_embeds @ texts.T, outputs.text_embeds @ images.T]
    losses = [-(shares * (one / model.contrastive_head.temperature).log_softmax(1)).sum(1).mean() for one in logits]
    assert outputs.loss_itc.item() == pytest.approx(sum(losses).item() / 2, rel=1e-12)


def test_a_batch_of_one_image_learns_from_its_pairs_alone(config, batch):
    model = AlbefForRetrieval(config).eval()
    inputs = inputs_of(batch, AlbefForRetrieval) | {"labels": torch.full((4,), 7)}
    with torch.no_grad():
        outputs = model(**inputs)
        pairs = model(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"]).itm_logits
    right = torch.nn.functional.cross_entropy(pairs, torch.ones(4, dtype=torch.long))
    assert outputs.loss_itm.item() == pytest.approx(right.item(), rel=1e-5)
    with pytest.raises(ValueError, match="batch of one pair"):
        model(**{name: value[:1] for name, value in inputs.items()})


@pytest.mark.parametrize("kind", [AlbefForPreTraining, AlbefForRetrieval])
def test_negatives_are_as_hard_as_wanted(kind, config, batch, monkeypatch):
    asked, draw = [], matching_albef.sample_hard_negatives
    monkeypatch.setattr(matching_albef, "sample_hard_negatives", lambda *given: asked.append(given[3]) or draw(*given))
    model, inputs = kind(config), batch if kind is AlbefForPreTraining else inputs_of(batch, kind)
    model(**inputs)
    model(**inputs, hardness_strength=0.5)
    assert asked == [1.0, 0.5]


# Question answering


def test_the_loss_weighs_answers_and_averages_questions(question_model, batch, answers):
    inputs = inputs_of(batch, AlbefForQuestionAnswering) | {"labels": answers}
    counts, weights = torch.tensor([1, 3, 0, 2]), torch.tensor([1.0, 0.5, 0.2, 0.3, 0.6, 0.4])
    model = question_model
    with torch.no_grad():
        loss = model(**inputs, answer_counts=counts, answer_weights=weights).loss
        shared = model(**inputs, answer_counts=counts).loss
        expected = torch.zeros(2)
        for answer, question in enumerate([0, 1, 1, 1, 3, 3]):
            words = answers[answer][answers[answer] != IGNORED][None]
            logits = model(
                *(inputs[name][question][None] for name in ("input_ids", "pixel_values", "attention_mask")),
                decoder_input_ids=words[:, :-1],
            ).logits
            likelihood = logits.log_softmax(-1)[0].gather(1, words[0, 1:, None]).sum()
            expected -= likelihood * torch.stack([weights[answer], 1 / counts[question]])
    assert torch.allclose(torch.stack([loss, shared]), expected / 4, rtol=1e-4)


@torch.no_grad()
def test_three_answers_share_a_float64_question_exactly(question_model, batch, answers):
    model, inputs = question_model.double(), inputs_of(batch, AlbefForQuestionAnswering) | {"labels": answers}
    counts = torch.tensor([1, 3, 0, 2])
    weights = torch.tensor([1, 1 / 3, 1 / 3, 1 / 3, 0.5, 0.5], dtype=torch.float64)
    shared = model(**inputs, answer_counts=counts).loss.item()
    assert shared == pytest.approx(
        model(**inputs, answer_counts=counts, answer_weights=weights).loss.item(), rel=1e-12
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda labels: labels.masked_fill(labels == 102, IGNORED),  # no end
        lambda labels: labels.masked_fill(labels == IGNORED, 0),  # padding as a label
        lambda labels: labels[:, 1:],  # no beginning
        lambda labels: labels.masked_fill((labels == 102) & (torch.arange(6) == 4)[:, None], IGNORED),  # one alone
        lambda labels: labels[:, 1],  # one token each, as classes have
    ],
)
def test_answers_that_are_not_encoded_as_such_are_refused(spoil, question_model, batch, answers):
    inputs = inputs_of(batch, AlbefForQuestionAnswering) | {"labels": spoil(answers), "answer_counts": [1, 3, 0, 2]}
    teacher = MomentumTeacher(question_model)
    for model in (question_model, teacher):
        with pytest.raises(ValueError, match="processor.encode_answers"):
            model(**inputs)
    assert torch.isfinite(question_model(**inputs | {"labels": answers}).loss)


def test_candidates_without_an_end_are_refused(question_model, batch, answers):
    inputs = inputs_of(batch, AlbefForQuestionAnswering)
    del inputs["labels"]
    with pytest.raises(ValueError, match="processor.encode_answers"):
        question_model.rank_answers(
            **inputs, answer_ids=answers.masked_fill((answers == IGNORED) | (answers == 102), 0)
        )


def test_answers_that_do_not_fit_their_questions_are_refused(question_model, batch, answers):
    inputs = inputs_of(batch, AlbefForQuestionAnswering) | {"labels": answers}
    with pytest.raises(ValueError, match="6 answers for 4 questions"):
        question_model(**inputs)
    with pytest.raises(ValueError, match="6 answers for 4 questions"):
        question_model(**inputs, answer_counts=torch.tensor([3, 3]))
    with pytest.raises(ValueError, match="5 answer_weights for 6 answers"):
        question_model(**inputs, answer_counts=[1, 3, 0, 2], answer_weights=torch.ones(5))


def greedy_by_hand(model: AlbefForQuestionAnswering, inputs: dict, tokens: int) -> torch.Tensor:
    written = torch.full((len(inputs["input_ids"]), 1), 101)
    for _ in range(tokens):
        next_token = model(**inputs, decoder_input_ids=written).logits[:, -1].argmax(-1, keepdim=True)
        written = torch.cat([written, next_token], dim=1)
    return written


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_greedy_answers_are_the_most_probable_tokens_with_and_without_cache(question_model, batch, attention):
    question_model.set_attn_implementation(attention)
    inputs = inputs_of(batch, AlbefForQuestionAnswering)
    del inputs["labels"]
    expected = greedy_by_hand(question_model, inputs, 6)
    assert len({tuple(row) for row in expected[:, 1:].tolist()}) > 1, "questions must have different answers"
    assert sum(len(set(row)) > 2 for row in expected[:, 1:].tolist()) >= 2, "the tokens of an answer must differ"
    for use_cache in (True, False):
        written = question_model.generate(**inputs, max_new_tokens=6, num_beams=1, use_cache=use_cache, eos_token_id=0)
        assert torch.equal(written, expected)


@torch.no_grad()
def test_beams_find_the_most_probable_answer_with_and_without_cache(question_model, batch):
    """With as many beams as there are words, a search of two tokens is exhaustive."""
    inputs = inputs_of(batch, AlbefForQuestionAnswering)
    del inputs["labels"]
    allowed = [1, 2, 3, 4, 5]
    arguments = {"max_new_tokens": 2, "num_beams": 5, "length_penalty": 0.0, "eos_token_id": 0}
    arguments["prefix_allowed_tokens_fn"] = lambda batch_id, ids: allowed
    best = []
    pairs = torch.tensor([[101, first, second] for first in allowed for second in allowed])
    for row in range(4):
        one = {name: value[row : row + 1].expand(len(pairs), *value.shape[1:]) for name, value in inputs.items()}
        logits = question_model(**one, decoder_input_ids=pairs[:, :-1]).logits
        # Likelihoods over the whole vocabulary, as generate counts them, with what is not allowed left out.
        scores = logits.log_softmax(-1).gather(2, pairs[:, 1:, None]).sum((1, 2))
        best.append(pairs[scores.argmax()])
    for use_cache in (True, False):
        assert torch.equal(question_model.generate(**inputs, use_cache=use_cache, **arguments), torch.stack(best))


@torch.no_grad()
def test_the_scores_of_long_beams_are_those_of_the_answers_read_anew(question_model, batch):
    inputs = inputs_of(batch, AlbefForQuestionAnswering)
    del inputs["labels"]
    beams = question_model.generate(
        **inputs,
        max_new_tokens=6,
        num_beams=3,
        num_return_sequences=3,
        length_penalty=0.0,
        eos_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    repeated = {name: value.repeat_interleave(3, 0) for name, value in inputs.items()}
    logits = question_model(**repeated, decoder_input_ids=beams.sequences[:, :-1]).logits.log_softmax(-1)
    anew = logits.gather(2, beams.sequences[:, 1:, None]).sum((1, 2))
    assert torch.allclose(beams.sequences_scores, anew, rtol=1e-4)
    assert len({tuple(row) for row in beams.sequences.tolist()}) == 12


@torch.no_grad()
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_tokens_follow_a_cache_under_either_of_its_names(question_model, batch, name):
    inputs = inputs_of(batch, AlbefForQuestionAnswering)
    answers = inputs.pop("labels")[:, :3]
    whole = question_model(**inputs, decoder_input_ids=answers).logits
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    first = question_model(**inputs, decoder_input_ids=answers[:, :2], **{name: cache})
    assert first.past_key_values is cache  # transformers answers to the old name too
    last = question_model(**inputs, decoder_input_ids=answers[:, 2:], **{name: first[CACHE_NAME]})
    assert torch.allclose(torch.cat([first.logits, last.logits], dim=1), whole, atol=1e-6)
    with pytest.raises(ValueError, match="names of the same argument"):
        question_model(**inputs, cache=cache, past_key_values=cache)


@torch.no_grad()
def test_a_saved_model_generates_and_keeps_its_settings(question_model, batch, tmp_path):
    inputs = inputs_of(batch, AlbefForQuestionAnswering)
    del inputs["labels"]
    question_model.generation_config.max_new_tokens = 3
    question_model.save_pretrained(tmp_path)
    loaded = AlbefForQuestionAnswering.from_pretrained(tmp_path)
    assert loaded.config.is_encoder_decoder and loaded.generation_config.max_new_tokens == 3
    assert torch.equal(loaded.generate(**inputs), question_model.generate(**inputs))
    assert loaded.generate(**inputs).shape[1] <= 4


def test_ranking_changes_no_weight_and_needs_no_label(question_model, batch, answers):
    inputs = inputs_of(batch, AlbefForQuestionAnswering)
    del inputs["labels"]
    before = {name: value.clone() for name, value in question_model.state_dict().items()}
    ids = answers.masked_fill(answers == IGNORED, 0)
    rows, probabilities = question_model.rank_answers(**inputs, answer_ids=ids, top_k=100)
    assert rows.shape == probabilities.shape == (4, 6)
    assert torch.equal(rows.sort(1).values, torch.arange(6).expand(4, 6))
    assert torch.allclose(probabilities.sum(1), torch.ones(4))
    assert (probabilities.diff(dim=1) <= 0).all()
    assert all(torch.equal(value, before[name]) for name, value in question_model.state_dict().items())
    with pytest.raises(ValueError, match="list of answers is empty"):
        question_model.rank_answers(**inputs, answer_ids=ids[:0])
    with pytest.raises(ValueError, match="k is 0"):
        question_model.rank_answers(**inputs, answer_ids=ids, top_k=0)


def test_masks_of_padding_are_the_default_of_the_ranking(question_model, batch, answers):
    inputs = inputs_of(batch, AlbefForQuestionAnswering)
    del inputs["labels"]
    ids = answers.masked_fill(answers == IGNORED, 0)
    given = question_model.rank_answers(**inputs, answer_ids=ids, answer_attention_mask=(answers != IGNORED).long())
    del inputs["attention_mask"]
    assert torch.equal(question_model.rank_answers(**inputs, answer_ids=ids)[1], given[1])


def test_probabilities_of_answers_stay_float32_under_bfloat16(question_model, batch):
    inputs = inputs_of(batch, AlbefForQuestionAnswering)
    del inputs["labels"]
    ids = torch.tensor([[101, 2000 + answer, 102] for answer in range(40)])
    model = question_model.to(torch.bfloat16)
    probabilities = model.rank_answers(**inputs, answer_ids=ids)[1]
    assert probabilities.dtype == torch.float32
    assert torch.allclose(probabilities.sum(1), torch.ones(4))


def test_the_vocabulary_of_questions_and_answers_can_grow(question_model, batch, tmp_path):
    question_model.resize_token_embeddings(30530)
    inputs = inputs_of(batch, AlbefForQuestionAnswering) | {"labels": torch.tensor([[101, 30529, 102]] * 4)}
    inputs["input_ids"][:, 1] = 30528
    loss = question_model(**inputs).loss
    question_model.save_pretrained(tmp_path)
    assert torch.equal(AlbefForQuestionAnswering.from_pretrained(tmp_path)(**inputs).loss, loss)


@torch.no_grad()
def test_padding_of_questions_changes_no_answer(question_model, batch, answers):
    inputs = inputs_of(batch, AlbefForQuestionAnswering)
    del inputs["labels"]
    ids = answers.masked_fill(answers == IGNORED, 0)
    together = question_model.rank_answers(**inputs, answer_ids=ids)[1][2:]
    short = {name: value[2:, :6] if value.ndim == 2 else value[2:] for name, value in inputs.items()}
    assert_close(question_model.rank_answers(**short, answer_ids=ids)[1], together, 1e-4, "probabilities")


# Two images


@torch.no_grad()
def test_visual_reasoning_reads_both_images_in_their_order(config, batch):
    torch.manual_seed(0)
    config.initializer_range = config.text_config.initializer_range = config.vision_config.initializer_range = 0.2
    model = AlbefForVisualReasoning(config).eval()
    inputs = inputs_of(batch, AlbefForVisualReasoning)
    logits = model(**inputs).logits
    assert logits.shape == (4, 2) and model.config.id2label == {0: "False", 1: "True"}
    for changed in (
        inputs["pixel_values"].flip(1),
        inputs["pixel_values"][:, [0, 0]],
        inputs["pixel_values"][:, [1, 1]],
    ):
        assert not torch.allclose(model(**inputs | {"pixel_values": changed}).logits, logits, atol=1e-6)
    with pytest.raises(ValueError, match="two images"):
        model(**inputs | {"pixel_values": batch["pixel_values"]})


def test_the_layers_of_a_pair_share_keys_and_values_and_nothing_else(config):
    model = AlbefForVisualReasoning(config).albef.multimodal_model
    first, second = (
        {name for name, _ in layers[0].named_parameters()} for layers in (model.layers, model.second_layers)
    )
    shared = {f"cross_attn.{name}.{part}" for name in ("k_proj", "v_proj") for part in ("weight", "bias")}
    assert first - second == shared and not second - first


def test_text_assignment_draws_each_case_a_third_of_the_time_by_similarity():
    torch.manual_seed(0)
    similarities = torch.tensor([[1, 0.9, 0.0, -1], [0.9, 1, 0.5, 0.5], [0, 0.5, 1, 0.3], [-1, 0.5, 0.3, 1.0]])
    draws = [sample_image_pairs(similarities) for _ in range(3000)]
    pairs, labels = (torch.stack(part) for part in zip(*draws, strict=True))
    own = torch.arange(4)
    assert torch.allclose(labels.flatten().bincount() / labels.numel(), torch.tensor(1 / 3), atol=0.02)
    assert torch.equal(pairs[..., 0] == own, labels == 0) and torch.equal(pairs[..., 1] == own, labels == 1)
    assert (pairs[..., 0] != pairs[..., 1]).all()
    weights = (similarities / 0.07).softmax(1).fill_diagonal_(0)
    expected = weights / weights.sum(1, keepdim=True)
    for side in (0, 1):
        wrong = pairs[:, 1, 1 - side][labels[:, 1] == side]
        assert torch.allclose(wrong.bincount(minlength=4) / len(wrong), expected[1], atol=0.05)
    with pytest.raises(ValueError, match="at least 3"):
        sample_image_pairs(similarities[:2, :2])


@torch.no_grad()
def test_text_assignment_without_labels_only_predicts(config, batch):
    model = AlbefForTextAssignment(config).eval()
    inputs = inputs_of(batch, AlbefForTextAssignment)
    outputs = model(**inputs, image_pairs=torch.tensor([[0, 1], [2, 1], [2, 3], [0, 1]]))
    assert outputs.loss is None and outputs.logits.shape == (4, 3)
    assert model(**inputs).loss is not None
    with pytest.raises(ValueError, match="pass image_pairs with them"):
        model(**inputs, labels=torch.tensor([0, 1, 2, 2]))


# Classes


@torch.no_grad()
def test_classes_have_names_and_may_be_others(config, batch):
    model = AlbefForVisualEntailment(config).eval()
    inputs = inputs_of(batch, AlbefForVisualEntailment)
    assert list(model.config.id2label.values()) == ["contradiction", "neutral", "entailment"]
    assert model(**inputs).logits.shape == (4, 3)
    assert config.num_labels == 2, "the caller's configuration stays as it is"
    config.id2label = {0: "no", 1: "yes"}
    assert AlbefForVisualEntailment(config)(**inputs).logits.shape == (4, 2)


ASKED_FOR = [
    ({"num_labels": 2}, ["LABEL_0", "LABEL_1"]),
    ({"num_labels": 4}, ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]),
    ({"id2label": {0: "False", 1: "True"}}, ["False", "True"]),
    ({"id2label": {"0": "no", "1": "yes"}}, ["no", "yes"]),
    ({"label2id": {"no": 0, "yes": 1}}, ["no", "yes"]),
    ({"id2label": dict(enumerate(ENTAILMENT_CLASSES))}, [*ENTAILMENT_CLASSES]),
]


@pytest.mark.parametrize(
    ("kind", "settings", "names"),
    [(AlbefForVisualEntailment, *case) for case in ASKED_FOR]
    + [(AlbefForVisualReasoning, *case) for case in (ASKED_FOR[0], ASKED_FOR[-1])],
)
def test_classes_are_those_that_were_asked_for(kind, settings, names, config, tmp_path):
    AlbefForPreTraining(config).save_pretrained(tmp_path / "pretrained")
    kind(config).save_pretrained(tmp_path / "default")
    models = [
        kind(AlbefConfig.from_dict(config.to_dict(), **settings)),
        kind.from_pretrained(tmp_path / "pretrained", **settings),
        kind.from_pretrained(tmp_path / "default", ignore_mismatched_sizes=True, **settings),
    ]
    # With as many classes as there were, transformers keeps their names.
    expected = [
        names,
        names,
        list(kind.default_classes) if settings == {"num_labels": len(kind.default_classes)} else names,
    ]
    models[1].save_pretrained(tmp_path / "asked")
    models += [kind.from_pretrained(tmp_path / "asked"), kind(AlbefConfig.from_dict(models[1].config.to_dict()))]
    for model, classes in zip(models, [*expected, names, names], strict=True):
        assert model.classifier.out_proj.out_features == len(classes)
        assert model.config.id2label == dict(enumerate(classes))
        assert model.config.label2id == {name: index for index, name in enumerate(classes)}


class DerivedEntailment(AlbefForVisualEntailment):
    """A head of somebody's own, which has the classes of its parent."""


UNNAMED = ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3", "LABEL_4"]
NAMED = {"id2label": {0: "no", 1: "yes"}}
SAVED_AND_LOADED = [
    # saved by, with, then saved by, then loaded as, with -> the classes, whether the saved classifier is reused
    ("VisualEntailment", {}, None, "VisualEntailment", {}, [*ENTAILMENT_CLASSES], True),
    ("VisualEntailment", {"num_labels": 2}, None, "VisualEntailment", {}, UNNAMED[:2], True),
    ("VisualEntailment", {"num_labels": 2}, None, "VisualEntailment", NAMED, ["no", "yes"], True),
    ("VisualEntailment", {"num_labels": 2}, None, "VisualReasoning", {}, [*REASONING_CLASSES], False),
    ("VisualEntailment", {"num_labels": 5}, None, "VisualReasoning", {}, [*REASONING_CLASSES], False),
    ("VisualEntailment", {"num_labels": 2}, None, "VisualReasoning", NAMED, ["no", "yes"], False),
    ("VisualEntailment", NAMED, None, "VisualReasoning", {}, [*REASONING_CLASSES], False),
    ("VisualEntailment", {}, None, "VisualReasoning", {}, [*REASONING_CLASSES], False),
    ("VisualEntailment", {}, None, "VisualReasoning", {"num_labels": 4}, UNNAMED[:4], False),
    ("VisualReasoning", {"num_labels": 3}, None, "VisualEntailment", {}, [*ENTAILMENT_CLASSES], False),
    # With as many classes as there were, transformers keeps their names.
    ("VisualReasoning", {}, None, "VisualEntailment", {"num_labels": 2}, [*REASONING_CLASSES], False),
    ("Derived", {"num_labels": 2}, None, "VisualEntailment", {}, UNNAMED[:2], True),
    ("VisualEntailment", {"num_labels": 2}, None, "Derived", {}, UNNAMED[:2], True),
    ("Derived", NAMED, None, "VisualReasoning", {}, [*REASONING_CLASSES], False),
    ("PreTraining", {}, None, "VisualReasoning", {}, [*REASONING_CLASSES], False),
    ("PreTraining", {"num_labels": 2}, None, "VisualEntailment", {}, UNNAMED[:2], False),
    ("PreTraining", NAMED, None, "VisualReasoning", {}, ["no", "yes"], False),
    ("PreTraining", {"num_labels": 2}, "TextAssignment", "VisualReasoning", {}, UNNAMED[:2], False),
    ("VisualEntailment", {"num_labels": 2}, "PreTraining", "VisualEntailment", {}, UNNAMED[:2], False),
    ("VisualEntailment", {"num_labels": 5}, "PreTraining", "VisualReasoning", {}, [*REASONING_CLASSES], False),
    ("VisualEntailment", NAMED, "PreTraining", "VisualReasoning", {}, [*REASONING_CLASSES], False),
    # Entailment is a case of classification.
    ("ImageTextClassification", NAMED, None, "ImageTextClassification", {}, ["no", "yes"], True),
    ("ImageTextClassification", NAMED, None, "VisualEntailment", {}, ["no", "yes"], True),
    ("VisualEntailment", {}, None, "ImageTextClassification", {}, [*ENTAILMENT_CLASSES], True),
    ("VisualReasoning", {}, None, "ImageTextClassification", {}, UNNAMED[:2], False),
    ("PreTraining", {}, None, "ImageTextClassification", {}, UNNAMED[:2], False),
]


@pytest.mark.parametrize(
    ("saved_by", "settings", "between", "loaded_as", "asked", "names", "reused"), SAVED_AND_LOADED
)
def test_classes_are_those_of_the_head_unless_it_saved_others(
    saved_by, settings, between, loaded_as, asked, names, reused, config, tmp_path, monkeypatch
):
    kinds = {kind.__name__.removeprefix("AlbefFor"): kind for kind in [AlbefForPreTraining, *HEADS]}
    kinds["Derived"] = DerivedEntailment
    lines = []
    monkeypatch.setattr(classification_albef.logger, "warning", lines.append)
    model = kinds[saved_by](AlbefConfig.from_dict(config.to_dict(), **settings))
    if hasattr(model, "classifier"):
        torch.nn.init.ones_(model.classifier.dense.bias)
    model.save_pretrained(tmp_path)
    if between is not None:
        kinds[between].from_pretrained(tmp_path).save_pretrained(tmp_path)
    model, report = kinds[loaded_as].from_pretrained(
        tmp_path, ignore_mismatched_sizes=True, output_loading_info=True, **asked
    )
    assert model.config.id2label == dict(enumerate(names))
    assert model.config.label2id == {name: index for index, name in enumerate(names)}
    assert model.classifier.out_proj.out_features == len(names)
    assert bool((model.classifier.dense.bias == 1).all()) is reused
    assert ("classifier.dense.bias" in report["missing_keys"]) is not reused
    other = "AlbefForVisualReasoning" if saved_by == "VisualReasoning" else "AlbefForVisualEntailment"
    expected = [(f"saved by {other}", f"that of AlbefFor{loaded_as} is newly initialized")]
    from_classifier = between is None and saved_by != "PreTraining"
    found = [tuple(part for part in expected[0] if part in line) for line in lines if "classifier" in line]
    assert found == (expected if from_classifier and not reused else [])
    assert kinds[loaded_as](AutoConfig.from_pretrained(tmp_path, **asked)).config.id2label == model.config.id2label
    model.save_pretrained(tmp_path)
    assert kinds[loaded_as].from_pretrained(tmp_path).config.id2label == dict(enumerate(names))


def test_a_configuration_that_is_given_stands_for_that_of_the_folder(config, tmp_path):
    settings = config.to_dict()
    AlbefForVisualEntailment(AlbefConfig.from_dict(settings, num_labels=2)).save_pretrained(tmp_path)
    given = AlbefConfig.from_dict(config.to_dict(), num_labels=2)
    _, report = AlbefForVisualReasoning.from_pretrained(tmp_path, config=given, output_loading_info=True)
    assert not [name for name in report["missing_keys"] if name.startswith("classifier.")]


def test_the_configuration_of_one_model_serves_another(config):
    entailment = AlbefForVisualEntailment(AlbefConfig.from_dict(config.to_dict(), num_labels=5)).config
    assert AlbefForVisualReasoning(entailment).config.num_labels == 2
    assert AlbefForVisualEntailment(entailment).config.num_labels == 5
    settings = entailment.to_dict()
    assert AlbefForVisualReasoning(AlbefConfig.from_dict(settings)).config.num_labels == 2
    assert AlbefForVisualEntailment(AlbefConfig.from_dict(settings, num_labels=4)).config.num_labels == 4


def test_auto_classes_give_the_classes_that_were_asked_for(config, tmp_path):
    for kind, folder in ((AlbefForPreTraining, "pretrained"), (AlbefForVisualEntailment, "three")):
        kind(config).save_pretrained(tmp_path / folder)
        model = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / folder, num_labels=2, ignore_mismatched_sizes=True
        )
        assert type(model) is AlbefForVisualEntailment and model.classifier.out_proj.out_features == 2
    config.num_labels = 2  # which it has anyway, but now it has been asked for
    assert AutoModelForSequenceClassification.from_config(config).classifier.out_proj.out_features == 2


def test_classes_that_a_head_cannot_have_are_refused(config):
    with pytest.raises(ValueError, match="ids have to be 0, 1, 2, ..., such as {0: 'contradiction'"):
        AlbefForVisualEntailment(AlbefConfig.from_dict(config.to_dict(), id2label={1: "a", 2: "b"}))
    for both in ({"id2label": {0: "a", 1: "b"}}, {"label2id": {"a": 0, "b": 1}}):
        for make in (AlbefConfig, partial(AlbefConfig.from_dict, config.to_dict())):
            with pytest.raises(ValueError, match="num_labels is 4, but id2label or label2id has 2 classes"):
                make(num_labels=4, **both)
            assert make(num_labels=2, **both).num_labels == 2
    config.num_labels = 4
    with pytest.raises(ValueError, match="has three classes .*, not 4"):
        AlbefForTextAssignment(config)


def test_text_assignment_takes_one_of_three_classes(config, batch):
    pairs = torch.tensor([[0, 1], [2, 1], [2, 3], [0, 1]])
    model, inputs = AlbefForTextAssignment(config).eval(), inputs_of(batch, AlbefForTextAssignment)
    inputs["image_pairs"] = pairs
    losses = [model(**inputs | {"labels": torch.tensor([0, 1, 2, 0], dtype=kind)}).loss for kind in (int, torch.int)]
    assert losses[0] == losses[1]
    for labels in (torch.eye(4, 3), torch.zeros(4), torch.zeros(3, dtype=int), torch.zeros(4, 1, dtype=int)):
        with pytest.raises(ValueError, match="as an integer for each of the 4 texts"):
            model(**inputs | {"labels": labels})
    config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="does not support problem_type multi_label_classification: remove it"):
        AlbefForTextAssignment(config)


@pytest.mark.parametrize(
    ("classes", "problem_type", "labels", "loss"),
    [
        (3, None, torch.tensor([0, 2, 1, 1]), F.cross_entropy),
        (3, None, torch.tensor([0, -100, 1, -100]), F.cross_entropy),
        (3, None, torch.tensor([[0], [2], [1], [1]]), lambda logits, labels: F.cross_entropy(logits, labels[:, 0])),
        (3, None, torch.tensor([[1.0, 0, 1]] * 4), F.binary_cross_entropy_with_logits),
        (3, "multi_label_classification", torch.tensor([[1, 0, 1]] * 4), F.binary_cross_entropy_with_logits),
        (1, None, torch.tensor([0.1, 0.2, 0.9, 0.4]), lambda logits, labels: F.mse_loss(logits[:, 0], labels)),
        (1, None, torch.tensor([[3], [1], [2], [4]]), F.mse_loss),
        (2, "regression", torch.tensor([[0.1, 2.0]] * 4), F.mse_loss),
    ],
)
@pytest.mark.parametrize("kind", [AlbefForVisualEntailment, AlbefForVisualReasoning])
def test_the_loss_is_that_of_the_problem_type(kind, classes, problem_type, labels, loss, config, batch):
    config.num_labels, config.problem_type = classes, problem_type
    model = kind(config).double().eval()
    outputs = model(**inputs_of(batch, kind) | {"labels": labels})
    labels = labels if loss is F.cross_entropy or labels.shape[1:] == (1,) and classes == 3 else labels.double()
    assert outputs.loss.item() == pytest.approx(loss(outputs.logits, labels).item(), rel=1e-12)
    outputs.loss.backward()
    assert model.classifier.out_proj.weight.grad.abs().sum() > 0


def test_labels_that_do_not_fit_the_problem_type_are_refused(config, batch):
    model = AlbefForVisualEntailment(config)
    for labels in (torch.ones(4, 3, dtype=torch.long), torch.tensor([0.0, 1, 2, 1]), torch.ones(3, dtype=torch.long)):
        with pytest.raises(ValueError, match="do not fit .* set config.problem_type"):
            model(**inputs_of(batch, AlbefForVisualEntailment) | {"labels": labels})


@pytest.mark.parametrize("shape", [(3, 4), (12,), (1, 4, 3)])
@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_labels_of_another_shape_than_the_logits_are_refused(problem_type, shape, config, batch):
    config.num_labels, config.problem_type = 3, problem_type
    model, inputs = AlbefForVisualEntailment(config), inputs_of(batch, AlbefForVisualEntailment)
    with pytest.raises(ValueError, match=f"do not fit {problem_type}"):
        model(**inputs | {"labels": torch.ones(shape)})
    with pytest.raises(ValueError, match="alpha is 2.0"):
        model(**inputs | {"labels": torch.ones(4, 3)}, alpha=2.0)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_distillation_of_several_labels_and_numbers_by_hand(problem_type, config, batch):
    config.num_labels, config.problem_type = 3, problem_type
    model = AlbefForImageTextClassification(config).double().eval()
    inputs = inputs_of(batch, AlbefForImageTextClassification)
    inputs["labels"] = torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0]], dtype=torch.double)
    teacher = AlbefTeacherOutput(logits=torch.randn(4, 3, dtype=torch.double))
    logits = model(**inputs).logits
    loss = model(**inputs, teacher_outputs=teacher, alpha=0.4).loss.item()
    if problem_type == "regression":
        expected = (logits - (0.6 * inputs["labels"] + 0.4 * teacher.logits)).square().mean()
    else:
        hard = F.binary_cross_entropy(logits.sigmoid(), inputs["labels"])
        expected = 0.6 * hard + 0.4 * F.binary_cross_entropy(logits.sigmoid(), teacher.logits.sigmoid())
    assert loss == pytest.approx(expected.item(), rel=1e-9)
    assert torch.equal(model(**inputs, teacher_outputs=teacher).loss, model(**inputs).loss)


def test_classes_are_weighed(config, batch):
    config.num_labels = 3
    model = AlbefForImageTextClassification(config).double().eval()
    inputs = inputs_of(batch, AlbefForImageTextClassification)
    logits, weights = model(**inputs).logits, torch.tensor([0.5, 2.0, 7.0], dtype=torch.double)
    one, several = torch.tensor([0, 1, -100, 2]), torch.tensor([[1.0, 0, 1]] * 4)
    for labels, loss in (
        (one, F.cross_entropy(logits, one, weights)),
        (several, F.binary_cross_entropy_with_logits(logits, several.double(), pos_weight=weights)),
    ):
        actual = model(**inputs | {"labels": labels}, class_weights=weights).loss
        assert actual.item() == pytest.approx(loss.item(), rel=1e-12)
        assert MomentumTeacher(model)(**inputs | {"labels": labels, "class_weights": weights}).logits is not None
    model.config.problem_type = "regression"
    with pytest.raises(ValueError, match="remove class_weights"):
        model(**inputs | {"labels": several}, class_weights=weights)


def test_a_classifier_is_replaced_by_one_for_other_classes(config, tmp_path):
    model = AlbefForImageTextClassification(config)
    model.config.class_thresholds = [0.2, 0.3]
    old = model.classifier
    model.reset_classifier(["cat", "dog", "owl"], "multi_label_classification")
    assert model.config.class_thresholds is None and model.config.thresholds == [0.5] * 3
    assert model.classifier.out_proj.out_features == 3 and not model.classifier.out_proj.bias.any()
    assert not torch.equal(model.classifier.dense.weight, old.dense.weight)
    model.config.class_thresholds = [0.2, 0.3, 0.9]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is AlbefForImageTextClassification and loaded.config.thresholds == [0.2, 0.3, 0.9]
    assert [*loaded.config.id2label.values()] == ["cat", "dog", "owl"]
    assert loaded.config.problem_type == "multi_label_classification"
    assert torch.equal(loaded.classifier.out_proj.weight, model.classifier.out_proj.weight)
    other = AlbefForImageTextClassification.from_pretrained(tmp_path, num_labels=2, ignore_mismatched_sizes=True)
    assert other.config.class_thresholds is None, "those of other classes"
    with pytest.raises(ValueError, match="class_thresholds is .*, between 0 and 1"):
        model.config.class_thresholds = [1.5]
    model.config.class_thresholds = [0.5]
    with pytest.raises(ValueError, match="class_thresholds has 1 numbers for 3 classes"):
        _ = model.config.thresholds


def test_classes_are_in_the_order_of_the_logits_also_if_a_file_is_sorted(config, tmp_path):
    model = AlbefForImageTextClassification(config)
    names = [f"class {index}" for index in range(11)]
    model.reset_classifier(names, "single_label_classification")
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()), sort_keys=True))
    assert [*AlbefConfig.from_pretrained(tmp_path).id2label.values()] == names
    shuffled = AlbefConfig.from_pretrained(tmp_path, id2label={10 - index: name for index, name in enumerate(names)})
    assert [*shuffled.id2label.values()] == names[::-1]


def test_distillation_of_classes_by_hand(config, batch):
    model = AlbefForVisualEntailment(config).eval()
    inputs = inputs_of(batch, AlbefForVisualEntailment)
    teacher = MomentumTeacher(model).eval()
    with torch.no_grad():
        for weight in teacher.model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        targets = teacher(**inputs)
        logits = model(**inputs).logits.log_softmax(-1)
        loss = model(**inputs, teacher_outputs=targets, alpha=0.4).loss
    hard = -logits[torch.arange(4), inputs["labels"]].mean()
    soft = -(targets.logits.softmax(-1) * logits).sum(1).mean()
    assert loss.item() == pytest.approx((0.6 * hard + 0.4 * soft).item(), rel=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_a_teacher_takes_the_batch_of_its_student(kind, config, batch):
    torch.manual_seed(0)
    model = kind(config)
    inputs = inputs_of(batch, kind)
    if kind is AlbefForTextAssignment:
        inputs |= {"image_pairs": torch.tensor([[0, 1], [2, 1], [2, 3], [0, 1]]), "labels": torch.tensor([0, 1, 0, 2])}
    teacher = MomentumTeacher(model, queue_size=4)
    model.eval()
    teacher.eval()
    for mask in ({}, {"attention_mask": None}):
        loss = model(**inputs | mask, teacher_outputs=teacher(**inputs | mask), alpha=0.4).loss
        assert torch.isfinite(loss)


@pytest.mark.parametrize("kind", [AlbefForRetrieval, AlbefForVisualEntailment, AlbefForVisualReasoning])
@torch.no_grad()
def test_tuples_are_returned_where_the_configuration_says_so(kind, config, batch):
    model = kind(config).eval()
    inputs = inputs_of(batch, kind)
    torch.manual_seed(1)
    expected = model(**inputs).loss
    config.return_dict = False
    model = kind(config).eval()
    model.load_state_dict(kind(config).state_dict())
    outputs = model(**inputs)
    assert isinstance(outputs, tuple) and outputs[0].shape == expected.shape


# From one checkpoint to another


@pytest.fixture
def pretrained(three_deep, tmp_path) -> AlbefForPreTraining:
    torch.manual_seed(0)
    model = AlbefForPreTraining(three_deep)
    model.save_pretrained(tmp_path)
    teacher = MomentumTeacher(model, queue_size=8)
    with torch.no_grad():
        for weight in teacher.model.parameters():
            weight.mul_(1.5)
    teacher.save_pretrained(tmp_path)
    return model


@pytest.mark.parametrize(
    "kind, fresh",
    [
        (AlbefModel, set()),
        (AlbefForRetrieval, set()),
        (AlbefForQuestionAnswering, set()),
        (AlbefForImageCaptioning, set()),
        (AlbefForVisualReasoning, {"classifier.dense", "classifier.out_proj"}),
        (AlbefForVisualEntailment, {"classifier.dense", "classifier.out_proj"}),
        (AlbefForTextAssignment, {"assignment_head"}),
    ],
)
def test_what_is_new_is_reported_and_nothing_else(kind, fresh, pretrained, tmp_path):
    model, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.rpartition(".")[0] for name in report["missing_keys"]} == fresh
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    loaded, source = model.state_dict(), pretrained.state_dict()
    for name, weight in loaded.items():
        name = name if kind is not AlbefModel else f"albef.{name}"
        if name in source:
            assert torch.equal(weight, source[name]), name


@pytest.mark.parametrize("kind", [AlbefForQuestionAnswering, AlbefForImageCaptioning])
def test_a_head_that_is_not_in_the_checkpoint_is_new(kind, three_deep, tmp_path):
    AlbefForRetrieval(three_deep).save_pretrained(tmp_path)
    _, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.rpartition(".")[0] for name in report["missing_keys"]} == {
        "mlm_head.dense",
        "mlm_head.norm",
        "mlm_head.out_proj",
    }
    assert "mlm_head.out_proj.weight" not in report["missing_keys"], "it is tied to a copy"


@pytest.mark.parametrize("kind", [AlbefForPreTraining, AlbefForQuestionAnswering])
@torch.no_grad()
def test_tied_weights_are_saved_as_tied_whatever_the_configuration_says(kind, three_deep, batch, tmp_path):
    """PEFT's `merge_and_unload` declares them untied, where the output is not tied to the input embeddings."""
    model = kind(three_deep).eval()
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert torch.equal(loaded.mlm_head.out_proj.weight, model.mlm_head.out_proj.weight)
    assert loaded.config.tie_word_embeddings
    inputs = inputs_of(batch, AlbefForQuestionAnswering)
    del inputs["labels"]
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("start", [AlbefForPreTraining, AlbefForQuestionAnswering])
@pytest.mark.parametrize("kind", [AlbefForPreTraining, AlbefForQuestionAnswering, AlbefForImageCaptioning])
def test_an_untied_output_starts_as_what_it_was_tied_to(start, kind, three_deep, tmp_path):
    source = start(three_deep)
    source.save_pretrained(tmp_path)
    model, report = kind.from_pretrained(tmp_path, tie_word_embeddings=False, output_loading_info=True)
    assert "mlm_head.out_proj.weight" not in report["missing_keys"]
    output = model.mlm_head.out_proj.weight
    other = model.get_parameter(kind._tied_weights_keys["mlm_head.out_proj.weight"])
    assert output is not other and torch.equal(output, other)
    with torch.no_grad():
        output.add_(1)
    model.save_pretrained(tmp_path / "untied")
    loaded = kind.from_pretrained(tmp_path / "untied")
    assert not loaded.config.tie_word_embeddings
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())


def test_a_part_of_a_copy_that_is_missing_is_reported_and_not_copied(three_deep, tmp_path):
    for kind, name in (
        (AlbefForQuestionAnswering, "decoder.layers.1.mlp.fc1.weight"),
        (AlbefForVisualReasoning, "albef.multimodal_model.second_layers.0.mlp.fc1.weight"),
    ):
        kind(three_deep).save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights[name]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        _, report = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert report["missing_keys"] == {name}


def test_what_cannot_be_copied_is_reported(three_deep, tmp_path):
    three_deep.vision_config.hidden_size = three_deep.text_config.encoder_hidden_size = 64
    AlbefForPreTraining(three_deep).save_pretrained(tmp_path)
    _, report = AlbefForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    keys = {f"decoder.layers.{layer}.cross_attn.{name}_proj.weight" for layer in range(3) for name in "kv"}
    assert report["missing_keys"] == keys


def test_classes_of_another_head_are_not_taken_over(config, tmp_path):
    AlbefForVisualEntailment(config).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AlbefForVisualReasoning.from_pretrained(tmp_path)
    model = AlbefForVisualReasoning.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert model.config.id2label == {0: "False", 1: "True"} and model.classifier.out_proj.out_features == 2


def test_nothing_looks_corrupted(pretrained, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(logging.get_logger("transformers.modeling_utils"), "warning", lines.append)
    AlbefForQuestionAnswering.from_pretrained(tmp_path)
    assert not any("corrupted" in line for line in lines)


def test_a_teacher_stays_float32_beside_a_bfloat16_student(pretrained, tmp_path):
    student = AlbefForRetrieval.from_pretrained(tmp_path, dtype=torch.bfloat16)
    saved = load_file(tmp_path / "momentum.safetensors")
    teacher = MomentumTeacher.from_pretrained(tmp_path, student).state_dict()
    for name, weight in saved.items():
        if name in teacher:
            assert torch.equal(teacher[name], weight), name


def test_teachers_of_heads_without_a_queue_or_with_two_images_serve_retrieval(three_deep, tmp_path):
    for kind in (AlbefForQuestionAnswering, AlbefForVisualReasoning):
        model = kind(three_deep)
        model.save_pretrained(tmp_path)
        MomentumTeacher(model).save_pretrained(tmp_path)
        teacher = MomentumTeacher.from_pretrained(tmp_path, AlbefForRetrieval.from_pretrained(tmp_path))
        assert len(teacher.queue.image_features) == 65536


def test_the_decoder_starts_from_the_multimodal_encoder(pretrained, tmp_path, warnings_of_albef):
    weights = AlbefForQuestionAnswering.from_pretrained(tmp_path).state_dict()
    source = pretrained.state_dict()
    copied = [name for name in weights if name.startswith("decoder.")]
    assert len(copied) > 80
    for name in copied:
        origin = name.replace("decoder.layers", "albef.multimodal_model.layers")
        origin = origin.replace("decoder.embeddings", "albef.text_model.embeddings")
        assert torch.equal(weights[name], source[origin]), name
    assert "no decoder.layers: matching weights of albef.multimodal_model.layers" in "".join(warnings_of_albef)


def test_the_second_layers_start_from_the_first(pretrained, tmp_path):
    for kind in (AlbefForVisualReasoning, AlbefForTextAssignment):
        weights = kind.from_pretrained(tmp_path).state_dict()
        copied = [name for name in weights if ".second_layers." in name]
        assert len(copied) == 3 * 22
        for name in copied:
            assert torch.equal(weights[name], pretrained.state_dict()[name.replace("second_layers", "layers")]), name


def test_trained_copies_are_loaded_not_copied_again(three_deep, tmp_path):
    for kind in (AlbefForQuestionAnswering, AlbefForVisualReasoning):
        model = kind(three_deep)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        model.save_pretrained(tmp_path)
        loaded = kind.from_pretrained(tmp_path).state_dict()
        assert all(torch.equal(weight, loaded[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("kind", HEADS)
def test_positions_are_interpolated_to_the_resolution_of_the_configuration(kind, pretrained, tmp_path):
    config = AlbefConfig.from_pretrained(tmp_path)
    config.vision_config.image_size = 64
    model = kind.from_pretrained(tmp_path, config=config)
    positions = model.albef.vision_model.embeddings.position_embeddings
    own = pretrained.albef.vision_model.embeddings.position_embeddings
    assert positions.shape == (1, 17, 32) and own.shape == (1, 5, 32)
    assert torch.equal(positions[:, 0], own[:, 0])
    assert positions[:, 1:].mean().item() == pytest.approx(own[:, 1:].mean().item(), abs=1e-2)
    model.save_pretrained(tmp_path / "larger")
    loaded = kind.from_pretrained(tmp_path / "larger")
    assert torch.equal(loaded.albef.vision_model.embeddings.position_embeddings, positions)


@pytest.mark.parametrize("kind", [AlbefForPreTraining, *HEADS])
def test_teachers_and_ranked_answers_interpolate_positions(kind, config, batch, tmp_path):
    """As a model does that has been resampled to the larger images."""
    kind(config).save_pretrained(tmp_path)
    config = AlbefConfig.from_pretrained(tmp_path)
    config.vision_config.image_size = 64
    inputs = batch if kind is AlbefForPreTraining else inputs_of(batch, kind)
    inputs = inputs | {"pixel_values": F.interpolate(inputs["pixel_values"].flatten(0, -4), 64)}
    if kind is AlbefForVisualReasoning:
        inputs["pixel_values"] = inputs["pixel_values"].unflatten(0, (4, 2))
    if kind is AlbefForTextAssignment:
        inputs["image_pairs"] = torch.tensor([[0, 1], [2, 1], [2, 3], [0, 1]])
    model, larger = kind.from_pretrained(tmp_path), kind.from_pretrained(tmp_path, config=config)
    found = MomentumTeacher(model, queue_size=0).eval()(**inputs, interpolate_pos_encoding=True)
    expected = MomentumTeacher(larger, queue_size=0).eval()(**inputs)
    for name in ("image_embeds", "logits"):
        if expected.get(name) is not None:
            assert torch.equal(found[name], expected[name])
    if kind is AlbefForQuestionAnswering:
        inputs["answer_ids"] = inputs.pop("labels")
        ranked = model.rank_answers(**inputs, interpolate_pos_encoding=True)[1], larger.rank_answers(**inputs)[1]
        assert torch.equal(*ranked)
    if kind is AlbefForTextAssignment:
        model.draw_image_pairs(inputs["pixel_values"], interpolate_pos_encoding=True)


@pytest.mark.parametrize("kind", [AlbefForRetrieval, AlbefForQuestionAnswering, AlbefForVisualReasoning])
def test_the_teacher_goes_along_to_another_head(kind, pretrained, tmp_path):
    config = AlbefConfig.from_pretrained(tmp_path)
    config.vision_config.image_size = 64
    student = kind.from_pretrained(tmp_path, config=config)
    teacher = MomentumTeacher.from_pretrained(tmp_path, student)
    weights, own = teacher.model.state_dict(), student.state_dict()
    for name, weight in weights.items():
        factor = 1 if name.startswith("classifier.") or name.endswith("position_embeddings") else 1.5
        assert torch.allclose(weight, factor * own[name]) or name.endswith("position_embeddings"), name
    assert weights["albef.vision_model.embeddings.position_embeddings"].shape == (1, 17, 32)
    assert len(teacher.queue.image_features) == (8 if kind is AlbefForRetrieval else 0)
    teacher.update(student)
    assert not any(weight.requires_grad for weight in teacher.model.parameters())


def test_a_teacher_of_another_architecture_is_refused(pretrained, config, tmp_path):
    config.text_config.num_multimodal_layers = 4
    with pytest.raises(ValueError, match="does not fit the student"):
        MomentumTeacher.from_pretrained(tmp_path, AlbefForRetrieval(config))
    config.text_config.num_multimodal_layers = 1
    with pytest.raises(ValueError, match="does not fit the student"):
        MomentumTeacher.from_pretrained(tmp_path, AlbefForRetrieval(config))
