"""The models do what transformers expects of a model: Trainer, generate, device maps, attention, export."""

import copy
import logging as standard_logging
import os

import pytest
import torch
from accelerate import infer_auto_device_map
from accelerate.utils import get_balanced_memory
from safetensors.torch import load_file
from test_heads import HEADS, inputs_of
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.utils.data import SequentialSampler
from transformers import (
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    default_data_collator,
)
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface
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
    AlbefMultimodalModel,
    AlbefTextModel,
    AlbefVisionConfig,
    AlbefVisionModel,
    MomentumTeacher,
)
from albef_hf.data import embedded_tokenizer
from albef_hf.encoders_albef import AlbefAttention
from albef_hf.losses_albef import IGNORED
from albef_hf.retrieval_albef import encode_tokenized_texts, match, match_images

KINDS = [AlbefModel, AlbefForPreTraining, *HEADS]


def questions_of(batch: dict, kind: type[PreTrainedModel]) -> dict[str, torch.Tensor]:
    """What a head is called with to predict something."""
    inputs = inputs_of(batch, kind)
    inputs.pop("labels", None)
    if kind is AlbefForTextAssignment:
        inputs["image_pairs"] = torch.tensor([[0, 1], [2, 1], [2, 3], [0, 1]])
    return inputs


@pytest.fixture
def sharp(config) -> AlbefConfig:
    """Weights at which different texts and images give different numbers, and no dropout."""
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    config.initializer_range = config.text_config.initializer_range = config.vision_config.initializer_range = 0.2
    return config


@pytest.fixture
def hardest_negatives(monkeypatch):
    monkeypatch.setattr("albef_hf.losses_albef.multinomial", lambda weights, number: weights.topk(number).indices)


# Trainer


class InOrder(Trainer):
    def _get_train_sampler(self, *args) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def arguments_of(folder, **changes) -> dict:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    } | changes


def rows_of(inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    return [{name: value[row] for name, value in inputs.items()} for row in range(len(inputs["labels"]))]


@pytest.mark.parametrize("kind", [AlbefForRetrieval, AlbefForQuestionAnswering])
def test_trainer_averages_the_losses_of_micro_batches(kind, sharp, batch, tmp_path, hardest_negatives):
    """Also where one has more tokens to answer than the other: losses are means over pairs, not over tokens."""
    torch.manual_seed(0)
    model = kind(sharp).train()
    plain = copy.deepcopy(model)
    halves = [inputs_of(batch, kind), {name: value.flip(0) for name, value in inputs_of(batch, kind).items()}]
    if kind is AlbefForQuestionAnswering:
        long = torch.tensor([[101, 2000 + row, 2001, 2002, 102] for row in range(4)])
        halves[0]["labels"] = torch.cat([halves[0]["labels"], torch.full((4, 2), IGNORED)], dim=1)
        halves[1]["labels"] = long
    torch.stack([plain(**half).loss for half in halves]).mean().backward()
    changes = {"gradient_accumulation_steps": 2, "max_steps": 1, "optim": "sgd", "max_grad_norm": 0}
    rows = [row for half in halves for row in rows_of(half)]
    InOrder(model, TrainingArguments(**arguments_of(tmp_path, **changes)), train_dataset=rows).train()
    for (name, weight), start in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(weight, start - 0.1 * start.grad, atol=1e-6), name


def test_trainer_goes_on_from_a_checkpoint(config, batch, tmp_path):
    """With tied weights, dropout, and activations computed twice."""
    rows = 2 * rows_of(batch)
    changes = {"max_steps": 2, "save_steps": 1, "gradient_checkpointing": True, "learning_rate": 1e-3}
    trained = []
    for checkpoint in (None, str(tmp_path / "checkpoint-1")):
        torch.manual_seed(0)
        trainer = Trainer(
            AlbefForPreTraining(config), TrainingArguments(**arguments_of(tmp_path, **changes)), train_dataset=rows
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        trained.append(trainer.model.state_dict())
    for name, weight in trained[0].items():
        assert torch.equal(weight, trained[1][name]), name
    loaded = AlbefForPreTraining.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in trained[0].items())


@torch.no_grad()
def test_trainer_evaluates_and_predicts(sharp, batch, tmp_path):
    model = AlbefForVisualEntailment(sharp).eval()
    inputs = inputs_of(batch, AlbefForVisualEntailment)
    trainer = Trainer(
        model,
        TrainingArguments(**arguments_of(tmp_path)),
        eval_dataset=rows_of(inputs),
        compute_metrics=lambda results: {"right": (results[0].argmax(1) == results[1]).mean()},
    )
    expected = model(**inputs)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    assert metrics["eval_right"] == (expected.logits.argmax(1) == inputs["labels"]).float().mean().item()
    answers = AlbefForQuestionAnswering(sharp).eval()
    inputs = inputs_of(batch, AlbefForQuestionAnswering)
    arguments = Seq2SeqTrainingArguments(
        **arguments_of(tmp_path, predict_with_generate=True, generation_max_length=5, generation_num_beams=2)
    )
    trainer = Seq2SeqTrainer(answers, arguments, default_data_collator, processing_class=embedded_tokenizer())
    predicted = trainer.predict(rows_of(inputs)).predictions
    del inputs["labels"]
    written = answers.generate(**inputs, max_length=5, num_beams=2)
    assert torch.equal(torch.tensor(predicted)[:, :5], written) and not predicted[:, 5:].any()


def test_trainer_trains_several_labels(sharp, batch, tmp_path):
    sharp.num_labels, sharp.problem_type = 3, "multi_label_classification"
    model = AlbefForImageTextClassification(sharp)
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0]])
    inputs = inputs_of(batch, AlbefForImageTextClassification) | {"labels": labels}
    before = copy.deepcopy(model.classifier.out_proj.weight)
    arguments = TrainingArguments(**arguments_of(tmp_path, max_steps=1))
    trainer = Trainer(model, arguments, train_dataset=rows_of(inputs), eval_dataset=rows_of(inputs))
    trainer.train()
    assert not torch.equal(model.classifier.out_proj.weight, before)
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    "kind", [AlbefForPreTraining, AlbefForRetrieval, AlbefForQuestionAnswering, AlbefForImageCaptioning]
)
def test_label_smoothing_is_refused_where_it_would_take_the_labels_away(kind, config, batch, tmp_path):
    inputs = batch if kind is AlbefForPreTraining else inputs_of(batch, kind)
    arguments = TrainingArguments(**arguments_of(tmp_path, label_smoothing_factor=0.1, max_steps=1))
    with pytest.raises(ValueError, match="leave label_smoothing_factor at 0"):
        Trainer(kind(config), arguments, train_dataset=rows_of(inputs)).train()


@pytest.mark.parametrize("name", ["answer_counts", "answer_weights"])
def test_label_smoothing_is_refused_in_evaluation_of_counted_answers(name, config, batch, tmp_path):
    inputs = inputs_of(batch, AlbefForQuestionAnswering) | {name: torch.ones(4, dtype=torch.long)}
    arguments = TrainingArguments(**arguments_of(tmp_path, label_smoothing_factor=0.1))
    with pytest.raises(ValueError, match="leave label_smoothing_factor at 0"):
        Trainer(AlbefForQuestionAnswering(config), arguments, eval_dataset=rows_of(inputs)).evaluate()


def test_label_smoothing_of_classes_is_that_of_torch(sharp, batch, tmp_path):
    model, inputs = AlbefForVisualEntailment(sharp).eval(), inputs_of(batch, AlbefForVisualEntailment)
    arguments = TrainingArguments(**arguments_of(tmp_path, label_smoothing_factor=0.1))
    loss = Trainer(model, arguments, eval_dataset=rows_of(inputs)).evaluate()["eval_loss"]
    with torch.no_grad():
        logits = model(**inputs).logits
    expected = torch.nn.functional.cross_entropy(logits, inputs["labels"], label_smoothing=0.1)
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_a_last_pair_alone_is_refused_with_the_remedy_of_trainer(config, batch, tmp_path):
    inputs = inputs_of(batch, AlbefForRetrieval)
    rows = rows_of(inputs) + rows_of(inputs)[:1]
    model = AlbefForRetrieval(config)
    with pytest.raises(ValueError, match="dataloader_drop_last=True"):
        Trainer(model, TrainingArguments(**arguments_of(tmp_path)), eval_dataset=rows).evaluate()
    arguments = TrainingArguments(**arguments_of(tmp_path, dataloader_drop_last=True, max_steps=2))
    Trainer(model, arguments, train_dataset=rows, eval_dataset=rows).train()


@pytest.mark.parametrize("kind", KINDS)
def test_keywords_that_change_nothing_are_refused(kind, config, batch):
    model = kind(config).eval()
    inputs = inputs_of(batch, kind) if kind in HEADS else questions_of(batch, kind)
    others = () if kind is AlbefForQuestionAnswering else ("answer_counts", "answer_weights")
    others += ("labels",) if kind is AlbefModel else ()
    for wrong in ("return_loss", "label", "attention_masks", "position_ids", *others):
        with pytest.raises(ValueError, match=f"forward does not accept {wrong}: check the spelling"):
            model(**questions_of(batch, kind), **{wrong: torch.ones(4)})
    if kind is not AlbefForTextAssignment:
        model(**inputs, output_hidden_states=False, interpolate_pos_encoding=True, inputs_embeds=None)
        model(**inputs, return_loss=False, token_type_ids=torch.zeros_like(inputs["input_ids"]))
    with pytest.raises(ValueError, match="uses token type 0 .*: do not pass token_type_ids"):
        model(**inputs, token_type_ids=torch.ones_like(inputs["input_ids"]))
    if kind in (AlbefModel, AlbefForVisualReasoning):
        states, multimodal = torch.zeros(4, 3, 32), getattr(model, "albef", model).multimodal_model
        images = [multimodal.project_images(states)] * (1 if kind is AlbefModel else 2)
        with pytest.raises(ValueError, match="forward does not accept misspelt"):
            multimodal(states, None, *images, misspelt=1)


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_none_are_asked_for(kind, config, batch):
    model, inputs = kind(config).eval(), questions_of(batch, kind)
    with pytest.raises(ValueError, match="pixel_values"):
        model(**inputs | {"pixel_values": None})
    encoders = getattr(model, "albef", model)
    for encoder in (encoders.vision_model, encoders.text_model):
        with pytest.raises(ValueError, match="is None: pass"):
            encoder(None)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_is_refused(kind, config, batch):
    model, inputs = kind(config).eval(), questions_of(batch, kind)
    for empty in (("pixel_values",), ("input_ids", "attention_mask")):
        with pytest.raises(ValueError, match="pass at least one"):
            model(**inputs | {name: inputs[name][:0] for name in empty})


# Precision


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_dynamically_quantized_model_is_close(kind, config, batch):
    torch.manual_seed(0)
    model, inputs = kind(config).eval(), questions_of(batch, kind)
    small = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    for name, value in model(**inputs).items():
        if isinstance(value, torch.Tensor):
            assert torch.allclose(small(**inputs)[name], value, atol=0.2), name
    if kind is AlbefForQuestionAnswering:
        assert small.generate(**inputs, max_new_tokens=2).shape == (4, 3)
    if kind is AlbefForRetrieval:
        texts = encode_tokenized_texts(small, inputs["input_ids"], inputs["attention_mask"])
        states = small.get_image_features(inputs["pixel_values"]).last_hidden_state
        expected = small(**inputs).itm_logits
        for row in range(4):
            found = match(small, states[row : row + 1], texts, torch.tensor([row]))
            assert torch.allclose(found, expected[row], atol=0.02)
        assert match_images(small, states, texts.select(0)).shape == (4, 2)


class QuantizedWeight(torch.Tensor):
    """The weight that torchao gives to an `nn.Linear`: it can multiply, but has no other shape."""


def test_weights_of_another_class_are_not_absorbed(config):
    attention = AlbefForRetrieval(config).albef.multimodal_model.layers[0].cross_attn
    assert attention.can_absorb
    attention.k_proj.weight = torch.nn.Parameter(attention.k_proj.weight.data.as_subclass(QuantizedWeight))
    assert not attention.can_absorb


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_every_precision_is_kept(dtype, config, batch, tmp_path):
    for kind in KINDS:
        model = kind(config).to(dtype)
        model.save_pretrained(tmp_path)
        loaded = kind.from_pretrained(tmp_path)
        assert all(
            torch.equal(weight, model.state_dict()[name]) and weight.dtype == dtype
            for name, weight in loaded.state_dict().items()
        )
        outputs = loaded(**questions_of(batch, kind))
        assert all(torch.isfinite(value).all() for value in outputs.values() if isinstance(value, torch.Tensor))


# Devices


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_model_runs_from_where_accelerate_puts_it(kind, config, batch, tmp_path):
    """Without a GPU that is there, or on the disk, from which each layer is fetched in its turn."""
    model = kind(config).eval()
    model.save_pretrained(tmp_path)
    inputs = questions_of(batch, kind)
    for device_map in ("auto", {"": "disk"}):
        placed = kind.from_pretrained(tmp_path, device_map=device_map, offload_folder=tmp_path / "offload")
        assert {weight.is_meta for weight in placed.parameters()} == {device_map != "auto"}
        assert torch.equal(placed(**inputs)[0], model(**inputs)[0])
        if kind is AlbefForQuestionAnswering:
            written = placed.generate(**inputs, max_new_tokens=3)
            assert torch.equal(written, model.generate(**inputs, max_new_tokens=3))


@pytest.mark.parametrize(
    "kind", [AlbefForPreTraining, AlbefForQuestionAnswering, AlbefForImageCaptioning, AlbefForVisualReasoning]
)
def test_of_several_devices_a_model_takes_the_first(kind):
    with torch.device("meta"):
        model = kind(AlbefConfig())
    whole = model._no_split_modules
    memory = get_balanced_memory(model, dict.fromkeys(range(8), 10**10), no_split_module_classes=whole)
    assert set(infer_auto_device_map(model, memory, no_split_module_classes=whole).values()) == {0}


@torch.no_grad()
def test_keys_and_values_are_projected_where_the_weights_are(config):
    """Devices of a machine that has two, on tensors without data."""
    attention = AlbefAttention(config.text_config, key_value_size=32)
    with FakeTensorMode():
        for linear in (attention.k_proj, attention.v_proj):
            shapes = {name: weight.shape for name, weight in linear.named_parameters()}
            linear._parameters = {name: torch.empty(shape, device="cuda:1") for name, shape in shapes.items()}
        key, value = attention.project_key_values(torch.empty(2, 5, 32, device="cuda:0"))
    assert key.device == value.device == torch.device("cuda:1")


# Attention


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_attention_goes_through_the_interface(kind, sharp, batch):
    """What somebody registers there computes what is spelled out, every layer once."""
    calls = []

    def counted(module, *args, **kwargs):
        calls.append(module)
        return AttentionInterface()["sdpa"](module, *args, **kwargs)

    AttentionInterface.register("counted", counted)
    AttentionMaskInterface.register("counted", sdpa_mask)
    model = kind(sharp).eval()
    inputs = questions_of(batch, kind)
    model.set_attn_implementation("eager")
    expected = model(**inputs)
    model.set_attn_implementation("counted")
    for name, value in model(**inputs).items():
        if isinstance(value, torch.Tensor):
            assert torch.allclose(value, expected[name], atol=1e-4), name
    assert len(calls) == len(set(calls)) == sum(isinstance(module, AlbefAttention) for module in model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_flash_attention_is_offered_but_for_padded_questions(kind, config):
    model = kind(config)
    with pytest.raises(ImportError, match="doesn't seem to be installed"):
        model.set_attn_implementation("flash_attention_2")
    if kind is AlbefForQuestionAnswering:
        for name in ("flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"):
            assert model.decoder.get_correct_attn_implementation(name) == "sdpa"
            assert model.decoder._check_and_adjust_attn_implementation(name) == "sdpa"


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_states_and_attentions_of_the_multimodal_encoder_are_returned(kind, config, batch):
    model = kind(config).eval()
    model.set_attn_implementation("eager")
    inputs = questions_of(batch, kind)
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    layers = 4 if kind in (AlbefForVisualReasoning, AlbefForTextAssignment) else 2
    prefix = ""
    if kind is AlbefForQuestionAnswering:
        prefix = "encoder_"
        assert [states.shape for states in outputs.decoder_hidden_states] == 3 * [(4, 1, 32)]
        assert [attention.shape for attention in outputs.cross_attentions] == 2 * [(4, 2, 1, 9)]
    else:
        assert [attention.shape for attention in outputs.cross_attentions] == layers * [(4, 2, 9, 5)]
    assert [states.shape for states in outputs[f"{prefix}hidden_states"]] == (layers + 1) * [(4, 9, 32)]
    assert [attention.shape for attention in outputs[f"{prefix}attentions"]] == layers * [(4, 2, 9, 9)]
    assert f"{prefix}hidden_states" not in model(**inputs) and "cross_attentions" not in model(**inputs)


# Generation


@torch.no_grad()
def test_answers_are_the_same_with_any_cache_and_any_help(sharp, batch):
    torch.manual_seed(0)
    model = AlbefForQuestionAnswering(sharp).eval()
    inputs = questions_of(batch, AlbefForQuestionAnswering)
    for beams in (1, 3):
        settings = {"max_new_tokens": 6, "num_beams": beams, "eos_token_id": 0}
        expected = model.generate(**inputs, **settings)
        assert torch.equal(model.generate(**inputs, **settings, cache_implementation="static"), expected)
        read = model.get_encoder()(**inputs)
        mask = inputs["attention_mask"]
        assert torch.equal(model.generate(encoder_outputs=read, attention_mask=mask, **settings), expected)
    one = {name: value[:1] for name, value in inputs.items()}
    settings["num_beams"] = 1
    helper = AlbefForQuestionAnswering(sharp).eval()
    assert torch.equal(model.generate(**one, **settings, assistant_model=helper), model.generate(**one, **settings))


@torch.no_grad()
def test_drawn_answers_come_with_all_that_is_asked_for(sharp, batch):
    model = AlbefForQuestionAnswering(sharp).eval()
    model.set_attn_implementation("eager")
    written = model.generate(
        **questions_of(batch, AlbefForQuestionAnswering),
        do_sample=True,
        num_return_sequences=2,
        max_new_tokens=3,
        eos_token_id=0,
        return_dict_in_generate=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    assert written.sequences.shape == (8, 4)
    assert [states.shape for states in written.encoder_hidden_states] == 3 * [(4, 9, 32)]
    assert [attention.shape for attention in written.encoder_attentions] == 2 * [(4, 2, 9, 9)]
    for length, attentions in enumerate(written.decoder_attentions, start=1):
        assert [attention.shape for attention in attentions] == 2 * [(8, 2, 1, length)]
    assert all(attention.shape == (8, 2, 1, 9) for step in written.cross_attentions for attention in step)


# From one checkpoint to another


@pytest.mark.parametrize("kind", [AlbefModel, AlbefForRetrieval, AlbefForQuestionAnswering, AlbefForVisualReasoning])
def test_an_encoder_is_found_in_the_folder_of_a_whole_model(kind, config, tmp_path):
    model = kind(config)
    model.save_pretrained(tmp_path)
    for encoder, name in (
        (AlbefVisionModel, "vision_model"),
        (AlbefTextModel, "text_model"),
        (AlbefMultimodalModel, "multimodal_model"),
    ):
        loaded, report = encoder.from_pretrained(tmp_path, output_loading_info=True)
        source = model.base_model.get_submodule(name).state_dict()
        assert not report["missing_keys"] and not report["mismatched_keys"]
        assert all(torch.equal(weight, source[key]) for key, weight in loaded.state_dict().items())
        loaded.save_pretrained(tmp_path / name)
        assert load_file(tmp_path / name / "model.safetensors").keys() == loaded.state_dict().keys()
        report = encoder.from_pretrained(tmp_path / name, output_loading_info=True)[1]
        assert not report["missing_keys"] and not report["unexpected_keys"]


def test_an_image_encoder_alone_resamples_its_positions_too(config, tmp_path):
    model = AlbefForRetrieval(config)
    model.save_pretrained(tmp_path / "whole")
    model.albef.vision_model.save_pretrained(tmp_path / "alone")
    larger = copy.deepcopy(config)
    larger.vision_config.image_size = 64
    expected = AlbefForRetrieval.from_pretrained(tmp_path / "whole", config=larger).albef.vision_model.embeddings
    for folder in ("whole", "alone"):
        settings = AlbefVisionConfig.from_pretrained(tmp_path / folder)
        settings.image_size = 64
        loaded = AlbefVisionModel.from_pretrained(tmp_path / folder, config=settings).embeddings
        assert loaded.position_embeddings.shape == (1, 17, 32)
        assert torch.equal(loaded.position_embeddings, expected.position_embeddings)


def test_other_heads_of_a_question_answering_checkpoint_have_no_decoder(config, tmp_path):
    AlbefForQuestionAnswering(config).save_pretrained(tmp_path)
    model = AlbefForRetrieval.from_pretrained(tmp_path)
    assert not model.config.is_encoder_decoder
    assert model.config.get_text_config(decoder=True) is model.config.text_config
    answers = AlbefForQuestionAnswering.from_pretrained(tmp_path)
    assert answers.config.is_encoder_decoder
    assert answers.config.get_text_config(decoder=True).encoder_hidden_size == answers.config.text_config.hidden_size


@pytest.mark.parametrize("kind", [AlbefForQuestionAnswering, AlbefForVisualReasoning])
def test_a_copy_of_what_is_missing_is_missing(kind, config, warnings_of_albef):
    _, report = kind.from_pretrained(None, config=config, state_dict={}, output_loading_info=True)
    names = kind(config).state_dict().keys() - kind(config).all_tied_weights_keys.keys()
    assert report["missing_keys"] >= names
    assert not warnings_of_albef


def test_warnings_come_once_and_obey_the_verbosity_of_transformers(pretrained, monkeypatch):
    records = []
    handler = standard_logging.Handler()
    handler.emit = records.append
    monkeypatch.setattr(logging.get_logger("transformers"), "handlers", [handler])
    type(logging.get_logger()).warning_once.cache_clear()
    for _ in range(2):
        AlbefForQuestionAnswering.from_pretrained(pretrained)
    ours = [record for record in records if "The checkpoint has no decoder" in record.getMessage()]
    assert len({record.getMessage() for record in ours}) == len(ours) > 0
    names = [name for name in standard_logging.root.manager.loggerDict if "albef_hf." in name]
    assert names and all(name.startswith("transformers.") for name in names)
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        assert not any(standard_logging.getLogger(name).isEnabledFor(standard_logging.WARNING) for name in names)
    finally:
        logging.set_verbosity(before)


# Export


@torch.no_grad()
def test_text_features_are_exported_for_any_number_and_length_of_texts(sharp, batch):
    class TextFeatures(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = AlbefForRetrieval(sharp).eval()

        def forward(self, input_ids, attention_mask):
            return self.model.get_text_features(input_ids, attention_mask).pooler_output

    features = TextFeatures()
    few = {name: batch[name] for name in ("input_ids", "attention_mask")}
    sizes = {0: Dim("texts", max=64), 1: Dim("tokens", max=40)}
    program = torch.export.export(features, (), few, dynamic_shapes=dict.fromkeys(few, sizes)).module()
    many = {name: value.repeat(2, 2)[:7] for name, value in few.items()}
    assert torch.allclose(program(**many), features(**many), atol=1e-5)


@torch.no_grad()
def test_the_image_encoder_is_exported_for_any_number_of_images(sharp):
    model = AlbefVisionModel(sharp.vision_config).eval()
    few, many = torch.randn(2, 3, 32, 32), torch.randn(7, 3, 32, 32)
    program = torch.export.export(model, (few,), dynamic_shapes={"pixel_values": {0: Dim("images", max=64)}}).module()
    assert torch.allclose(program(many).last_hidden_state, model(many).last_hidden_state, atol=1e-5)


@torch.no_grad()
def test_the_matching_model_is_exported_for_any_number_of_pairs(sharp, batch):
    model = AlbefForRetrieval(sharp).eval()
    few = questions_of(batch, AlbefForRetrieval)
    pairs, tokens = Dim("pairs", max=64), Dim("tokens", max=40)
    sizes = {name: {0: pairs, 1: tokens} for name in ("input_ids", "attention_mask")} | {"pixel_values": {0: pairs}}
    program = torch.export.export(model, (), few, dynamic_shapes=sizes).module()
    for rows, used in ((7, 8), (1, 5)):
        others = {name: torch.cat([value, value.flip(0)])[:rows] for name, value in few.items()}
        others |= {name: others[name][:, :used] for name in ("input_ids", "attention_mask")}
        expected = model(**others)
        assert expected["itm_logits"].shape == (rows, 2)
        for name, value in program(**others).items():
            assert torch.allclose(value, expected[name], atol=1e-5), name


@torch.no_grad()
def test_a_compiled_model_is_one_graph(sharp, batch):
    model = AlbefForRetrieval(sharp).eval()
    inputs = questions_of(batch, AlbefForRetrieval)
    expected = model(**inputs)
    compiled = torch.compile(model, fullgraph=True, backend="eager")(**inputs)
    for name in expected:
        assert torch.allclose(compiled[name], expected[name], atol=1e-5), name


# Files


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_saved_weights_follow_the_umask(config, tmp_path, umask, mode):
    model = AlbefForPreTraining(config)
    before = os.umask(umask)
    try:
        model.save_pretrained(tmp_path, max_shard_size="100KB")
        MomentumTeacher(model, queue_size=4).save_pretrained(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len([name for name in modes if name.endswith(".safetensors")]) > 2
    assert set(modes.values()) == {mode}, modes
