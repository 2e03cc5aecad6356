"""Captions: a decoder of the encoders' weights, its loss, and what it generates."""

from types import SimpleNamespace

import pytest
import torch
from test_heads import inputs_of
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers import default_data_collator as collate

from albef_hf import AlbefConfig, AlbefForImageCaptioning, AlbefForPreTraining, MomentumTeacher, captioning_albef
from albef_hf.captioning_albef import pad_left
from albef_hf.data import embedded_tokenizer
from albef_hf.losses_albef import IGNORED
from albef_hf.tasks import find_task


@pytest.fixture
def sharp(config) -> AlbefConfig:
    """Weights at which tokens, places and images matter, and encoders of different depth."""
    config.text_config.num_multimodal_layers = 3
    config.initializer_range = config.text_config.initializer_range = config.vision_config.initializer_range = 0.3
    return config


@pytest.fixture
def captioner(sharp) -> AlbefForImageCaptioning:
    torch.manual_seed(0)
    model = AlbefForImageCaptioning(sharp).eval()
    with torch.no_grad():
        model.mlm_head.dense.weight.normal_()
        model.albef.text_model.embeddings.word_embeddings.weight.normal_(std=0.02)
        model.albef.text_model.embeddings.position_embeddings.weight.normal_(std=4)
    return model


@pytest.fixture
def inputs(batch) -> dict[str, torch.Tensor]:
    """Four images with texts, two of them padded."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}


# The decoder


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_the_first_token_is_that_of_the_encoder(attention, captioner, inputs, tmp_path):
    captioner.save_pretrained(tmp_path)
    encoder = AlbefForPreTraining.from_pretrained(tmp_path, attn_implementation=attention).albef
    captioner.set_attn_implementation(attention)
    first = {"input_ids": inputs["input_ids"][:, :1], "pixel_values": inputs["pixel_values"]}
    for mask in (None, torch.ones(4, 1, dtype=torch.long)):
        decoded = captioner.albef(**first, attention_mask=mask).last_hidden_state
        assert torch.equal(decoded, encoder(**first, attention_mask=mask).last_hidden_state)


@torch.no_grad()
def test_without_the_causal_mask_it_is_the_encoder(captioner, inputs, tmp_path, monkeypatch):
    captioner.save_pretrained(tmp_path)
    encoder = AlbefForPreTraining.from_pretrained(tmp_path).albef
    ones = inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])}
    causal = captioner.albef(**ones).last_hidden_state
    monkeypatch.setattr(captioning_albef, "causal_mask", lambda *args: torch.zeros(4, 1, 9, 9))
    expected = encoder(**ones).last_hidden_state
    assert torch.allclose(captioner.albef(**ones).last_hidden_state, expected, atol=1e-5)
    assert not torch.allclose(causal[:, :-1], expected[:, :-1], atol=1e-2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_a_token_depends_on_the_image_and_on_what_comes_before_it(attention, captioner, inputs):
    captioner.set_attn_implementation(attention)
    logits = captioner(**inputs).logits
    changed = inputs["input_ids"].clone()
    changed[:, 4] = 150
    difference = (captioner(**inputs | {"input_ids": changed}).logits - logits).abs().amax((0, 2))
    assert (difference[:4] == 0).all() and (difference[4:] > 1e-4).all()
    others = captioner(**inputs | {"pixel_values": inputs["pixel_values"].flip(0)}).logits
    assert (others - logits).abs().amax((0, 2)).min() > 1e-4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(attention, captioner, inputs):
    captioner.set_attn_implementation(attention)
    right = captioner(**inputs).logits
    ids, mask = pad_left(inputs["input_ids"], inputs["attention_mask"], 0)
    assert not mask[2:, :3].any() and not ids[2:, :3].any()
    left = captioner(ids, inputs["pixel_values"], mask).logits
    assert torch.isfinite(left).all()
    assert torch.allclose(left[:2], right[:2], atol=1e-5)
    assert torch.allclose(left[2:, 3:], right[2:, :6], atol=1e-5)


@torch.no_grad()
def test_several_texts_share_an_image(captioner, inputs):
    each = captioner(inputs["input_ids"], inputs["pixel_values"][[0, 1, 0, 1]]).logits
    shared = captioner(inputs["input_ids"], inputs["pixel_values"][:2]).logits
    assert torch.allclose(shared, each, atol=1e-5)


# The loss


@torch.no_grad()
def test_the_loss_is_that_of_each_next_token_alone(captioner, inputs):
    """Teacher forcing equals step by step; prompt and padding bear no loss."""
    labels = inputs_of(inputs, AlbefForImageCaptioning)["labels"]
    losses = []
    for row, label in enumerate(labels):
        for place in (label != IGNORED).nonzero()[:, 0].tolist():
            written = inputs["input_ids"][row : row + 1, :place]
            logits = captioner(written, inputs["pixel_values"][row : row + 1]).logits
            losses.append(F.cross_entropy(logits[0, -1], label[place]))
    outputs = captioner(**inputs, labels=labels)
    assert len(losses) == len(outputs.logits) == 2 * 7 + 2 * 4
    assert outputs.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    known = (labels.flatten() != IGNORED).nonzero()[:, 0]
    assert torch.equal(captioner(**inputs, labels=labels, target_positions=known).loss, outputs.loss)


@torch.no_grad()
def test_smoothing_and_teacher_by_hand(captioner, inputs):
    labels = inputs_of(inputs, AlbefForImageCaptioning)["labels"]
    teacher = MomentumTeacher(captioner).eval()
    for weight in teacher.model.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    targets = teacher(**inputs, labels=labels)
    logits = captioner(**inputs, labels=labels).logits
    hard = F.cross_entropy(logits, labels[labels != IGNORED], label_smoothing=0.1)
    soft = F.cross_entropy(logits, targets.logits.softmax(-1))
    smooth = captioner(**inputs, labels=labels, smoothing=0.1).loss
    assert smooth.item() == pytest.approx(hard.item(), rel=1e-5)
    loss = captioner(**inputs, labels=labels, smoothing=0.1, teacher_outputs=targets, alpha=0.4).loss
    assert loss.item() == pytest.approx((0.6 * hard + 0.4 * soft).item(), rel=1e-5)
    with pytest.raises(ValueError, match="smoothing is 1.5: pass"):
        captioner(**inputs, labels=labels, smoothing=1.5)
    assert abs(hard - soft) > 1e-3 and abs(smooth - captioner(**inputs, labels=labels).loss) > 1e-3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda labels: labels[:, 1:],
        lambda labels: torch.full_like(labels, IGNORED),
        lambda labels: labels.index_fill(1, torch.tensor([0]), 101),
    ],
)
def test_labels_that_are_not_encoded_as_such_are_refused(spoil, captioner, inputs):
    labels = spoil(inputs_of(inputs, AlbefForImageCaptioning)["labels"])
    for model in (captioner, MomentumTeacher(captioner)):
        with pytest.raises(ValueError, match="processor.encode_captions"):
            model(**inputs, labels=labels)


def test_training_needs_labels_and_inference_an_image(captioner, inputs):
    with pytest.raises(ValueError, match="pass pixel_values"):
        captioner()
    with pytest.raises(ValueError, match="trained with labels, which are missing"):
        captioner.train()(**inputs)


def test_captions_are_encoded_behind_their_prompt(processor):
    tokenizer = processor.tokenizer
    encoded = processor.encode_captions(["Two dogs!", "a red ball in the snow"], "A picture of")
    rows = [tokenizer.convert_ids_to_tokens(row) for row in encoded["input_ids"].tolist()]
    assert rows[0] == ["[CLS]", "a", "picture", "of", "two", "dogs", "[SEP]"] + 4 * ["[PAD]"]
    assert rows[1][3:] == ["of", "a", "red", "ball", "in", "the", "snow", "[SEP]"]
    assert encoded["labels"].tolist()[0] == [IGNORED] * 4 + encoded["input_ids"][0, 4:7].tolist() + [IGNORED] * 4
    assert encoded["labels"].tolist()[1][-1] == tokenizer.sep_token_id
    cut = processor.encode_captions("a red ball in the snow", "a picture of", max_length=6)
    assert tokenizer.convert_ids_to_tokens(cut["input_ids"][0].tolist())[4:] == ["a", "red"]
    with pytest.raises(ValueError, match="has 4 tokens, and max_length is 4: shorten it"):
        processor.encode_captions("a ball", "a picture of", max_length=4)


def test_captions_longer_than_the_positions_of_the_model_are_refused(processor, monkeypatch):
    monkeypatch.setattr("albef_hf.tasks.captioning.import_scorers", lambda: None)
    task = find_task("captioning")
    processor.tokenizer.model_max_length = 40
    assert task(task.arguments_class(model="m", max_length=40), processor)
    with pytest.raises(ValueError, match="max_length is 41, but the model has 40 positions: lower it"):
        task(task.arguments_class(model="m", max_length=41), processor)


def test_the_training_smooths_labels_as_the_options_say(processor):
    task = find_task("captioning")
    for options, settings in (({}, {"smoothing": 0.1}), ({"label_smoothing": 0.0}, {})):
        args = task.arguments_class(model="m", **options)
        trained = SimpleNamespace(args=args)
        assert task.forward_settings.fget(trained) == settings


def test_adapters_are_saved_beside_the_weights(captioner, inputs, tmp_path):
    pytest.importorskip("peft")
    modules = r"(vision_model|text_model)\..*(q_proj|v_proj)"
    captioner.config.lora_config = {"r": 2, "lora_alpha": 4, "target_modules": modules}
    model = AlbefForImageCaptioning(captioner.config).eval()
    adapters = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    assert len(adapters) == 2 * 2 + 2 * 2
    with torch.no_grad():
        plain = model(**inputs).logits
        for weight in adapters:
            weight.normal_()
        expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    loaded = AlbefForImageCaptioning.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, expected) and not torch.allclose(expected, plain)


# Generation


def greedy_by_hand(model: AlbefForImageCaptioning, ids: torch.Tensor, pixels: torch.Tensor, tokens: int):
    for _ in range(tokens):
        ids = torch.cat([ids, model(ids, pixels).logits[:, -1:].argmax(-1)], dim=1)
    return ids


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_greedy_captions_are_the_most_probable_tokens_with_and_without_cache(attention, captioner, inputs):
    """With the cache, scores differ in the last digits: the product of one row rounds otherwise than that of many."""
    captioner.set_attn_implementation(attention)
    prompts, pixels = inputs["input_ids"][:, :3], inputs["pixel_values"]
    expected = greedy_by_hand(captioner, prompts, pixels, 6)
    assert len({tuple(row) for row in expected[:, 3:].tolist()}) > 1, "images must have different captions"
    assert sum(len(set(row)) > 2 for row in expected[:, 3:].tolist()) >= 2, "the tokens of a caption must differ"
    settings = {"max_new_tokens": 6, "num_beams": 1, "eos_token_id": 0}
    for use_cache in (True, False):
        written = captioner.generate(pixel_values=pixels, input_ids=prompts, use_cache=use_cache, **settings)
        assert torch.equal(written, expected)
    without_prompt = captioner.generate(pixel_values=pixels, **settings)
    assert torch.equal(without_prompt, greedy_by_hand(captioner, torch.full((4, 1), 101), pixels, 6))
    assert torch.equal(captioner(pixel_values=pixels).logits[:, -1].argmax(-1), without_prompt[:, 1])


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 3}])
@torch.no_grad()
def test_prompts_of_different_length_are_continued_as_they_are_alone(settings, captioner, inputs):
    lengths = [4, 2, 1, 3]
    mask = (torch.arange(4) < torch.tensor(lengths)[:, None]).long()
    settings = {"max_new_tokens": 5, "eos_token_id": 0, **settings}
    prompts = inputs["input_ids"][:, :4].masked_fill(mask == 0, 0)
    given = {"pixel_values": inputs["pixel_values"], "input_ids": prompts}
    together = captioner.generate(**given, attention_mask=mask, **settings)
    assert torch.equal(captioner.generate(**given, **settings), together), "padding is known by its token"
    for row, (length, pixels) in enumerate(zip(lengths, inputs["pixel_values"].split(1), strict=True)):
        alone = captioner.generate(pixel_values=pixels, input_ids=prompts[row : row + 1, :length], **settings)
        count = len(alone)
        assert torch.equal(together[row * count : (row + 1) * count, 4 - length :], alone)


@torch.no_grad()
def test_the_separator_after_a_prompt_does_not_end_the_caption(captioner, inputs):
    prompts, pixels = inputs["input_ids"][:, :3], inputs["pixel_values"]
    ended = F.pad(prompts, (0, 1), value=102)
    expected = captioner.generate(pixel_values=pixels, input_ids=prompts, max_new_tokens=4)
    assert torch.equal(captioner.generate(pixel_values=pixels, input_ids=ended, max_new_tokens=4), expected)


@torch.no_grad()
def test_beams_of_several_prompts_share_an_image(captioner, inputs):
    prompts, pixels = inputs["input_ids"][:, :2], inputs["pixel_values"][:2]
    settings = {"num_beams": 2, "max_new_tokens": 4}
    shared = captioner.generate(pixel_values=pixels, input_ids=prompts, **settings)
    assert torch.equal(
        captioner.generate(pixel_values=pixels.repeat(2, 1, 1, 1), input_ids=prompts, **settings), shared
    )
    with pytest.raises(ValueError, match="3 prompts for 2 images"):
        captioner.generate(pixel_values=pixels, input_ids=prompts[:3])


@torch.no_grad()
def test_the_scores_of_beams_are_those_of_the_captions_read_anew(captioner, inputs):
    prompts, pixels = inputs["input_ids"][:, :2], inputs["pixel_values"]
    settings = {"max_new_tokens": 6, "length_penalty": 0.0, "eos_token_id": 0, "num_return_sequences": 3}
    beams = captioner.generate(
        pixel_values=pixels,
        input_ids=prompts,
        num_beams=3,
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    repeated = pixels.repeat_interleave(3, 0)
    logits = captioner(beams.sequences[:, :-1], repeated).logits.log_softmax(-1)[:, 1:]
    anew = logits.gather(2, beams.sequences[:, 2:, None]).sum((1, 2))
    assert torch.allclose(beams.sequences_scores, anew, rtol=1e-4)
    assert len({tuple(row) for row in beams.sequences.tolist()}) == 12


@torch.no_grad()
def test_drawn_captions_come_with_all_that_is_asked_for(captioner, inputs):
    captioner.set_attn_implementation("eager")
    settings = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 3, "eos_token_id": 0}
    written = captioner.generate(
        pixel_values=inputs["pixel_values"],
        return_dict_in_generate=True,
        output_attentions=True,
        output_hidden_states=True,
        **settings,
    )
    assert written.sequences.shape == (8, 4) and len({tuple(row) for row in written.sequences.tolist()}) > 4
    for length, attentions in enumerate(written.attentions, start=1):
        assert [attention.shape for attention in attentions] == 3 * [(8, 2, 1, length)]
    assert [states.shape for states in written.hidden_states[1]] == 4 * [(8, 1, 32)]


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@torch.no_grad()
def test_tokens_and_images_follow_a_cache_under_either_of_its_names(name, captioner, inputs):
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    whole = captioner(ids, pixels).logits
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    first = captioner(ids[:, :3], pixels, **{name: cache})
    assert first.past_key_values is cache  # transformers answers to the old name too
    rest = [captioner(ids[:, place : place + 1], **{name: cache}).logits for place in range(3, 9)]
    assert torch.allclose(torch.cat([first.logits, *rest], dim=1), whole, atol=1e-5)


@torch.no_grad()
def test_images_are_encoded_once_for_all_beams(captioner, inputs, monkeypatch):
    counts = []
    encoder = captioner.albef.vision_model.layers[0]
    encoder.register_forward_hook(lambda module, args, output: counts.append(len(output)))
    captioner.generate(pixel_values=inputs["pixel_values"], num_beams=3, max_new_tokens=3)
    assert counts == [4]


def test_another_cache_is_refused(captioner, inputs):
    with pytest.raises(ValueError, match="cache_implementation is static"):
        captioner.generate(pixel_values=inputs["pixel_values"], cache_implementation="static")


@torch.no_grad()
def test_the_trainer_generates_from_the_prompts(captioner, inputs, tmp_path):
    """Of a batch for the loss, what bears loss is not shown."""
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        predict_with_generate=True,
        generation_max_length=7,
    )
    trainer = Seq2SeqTrainer(captioner, arguments, collate, processing_class=embedded_tokenizer())
    rows = inputs_of(inputs, AlbefForImageCaptioning)
    rows = [{name: value[row] for name, value in rows.items()} for row in range(4)]
    predicted = torch.tensor(trainer.predict(rows).predictions)
    expected = captioner.generate(
        pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"][:, :2], max_length=7
    )
    assert torch.equal(predicted[:, : expected.shape[1]], expected)
