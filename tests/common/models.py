"""transformers' own tests of models and configurations, on every model class of the package; see `fetch.py`.

What is overridden or skipped here says why; what transformers skips by itself (no accelerator, no experts, no rotary
positions) it lists with `-rs`.
"""

import unittest
from unittest import mock

import torch
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor, random_attention_mask

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
    AlbefTextConfig,
    AlbefTextModel,
    AlbefVisionConfig,
    AlbefVisionModel,
)

# The tests look up here which classes have no head: those have no loss, and their weights are found in those of heads.
MODEL_MAPPING_NAMES |= {"albef": "AlbefModel", "albef_vision_model": "AlbefVisionModel"}
MODEL_MAPPING_NAMES |= {"albef_text_model": "AlbefTextModel"}

HEADS, WIDTH = 4, 32
SHARED = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": 2, "intermediate_size": 37}
VISION = {**SHARED, "image_size": 30, "patch_size": 15}
TEXT = {**SHARED, "num_multimodal_layers": 2, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2}
# Gradients are compared between runs.
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BATCH, TOKENS, PATCHES = 4, 7, 5


def texts() -> dict[str, torch.Tensor]:
    ids = ids_tensor([BATCH, TOKENS], TEXT["vocab_size"] - 3) + 3  # without padding and the ends of answers
    return {"input_ids": ids, "attention_mask": random_attention_mask([BATCH, TOKENS])}


def images(*pair: int) -> torch.Tensor:
    return floats_tensor([BATCH, *pair, 3, VISION["image_size"], VISION["image_size"]])


class ModelTests(ModelTesterMixin):
    """What a test asks of its `model_tester` is asked of the test itself."""

    batch_size = BATCH
    seq_length = key_length = TOKENS
    hidden_size, num_attention_heads, num_hidden_layers = WIDTH, HEADS, 2
    is_training = True
    # The test goes by the year in a file's licence, which our files do not have.
    test_can_init_all_missing_weights_before_2023 = True

    @property
    def model_tester(self):
        return self

    def get_config(self) -> PreTrainedConfig:
        return AlbefConfig(vision_config=VISION, text_config=TEXT | NO_DROPOUT, projection_dim=16)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict]:
        return self.get_config(), self.inputs()

    def inputs(self) -> dict:
        return {**texts(), "pixel_values": images()}

    def labels(self, inputs: dict) -> dict:
        return {"labels": torch.arange(BATCH)}

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        return inputs | self.labels(inputs) if return_labels else inputs


class EncoderTests(ModelTests):
    is_training = False  # without a head there is no loss

    @unittest.skip("names change only where it is taken out of a whole model, as tests/test_transformers.py does")
    def test_reverse_loading_mapping(self): ...


class VisionModelTest(EncoderTests, unittest.TestCase):
    all_model_classes = (AlbefVisionModel,)
    test_resize_embeddings = False
    seq_length = key_length = PATCHES

    def get_config(self) -> AlbefVisionConfig:
        return AlbefVisionConfig(**VISION)

    def inputs(self) -> dict:
        return {"pixel_values": images()}

    def test_model_get_set_embeddings(self):
        """As for text, but what embeds patches is a convolution."""
        model = AlbefVisionModel(self.get_config())
        self.assertIsInstance(model.get_input_embeddings(), torch.nn.Conv2d)
        other = torch.nn.Conv2d(3, WIDTH, 15, 15)
        model.set_input_embeddings(other)
        self.assertIs(model.get_input_embeddings(), other)
        self.assertIsNone(model.get_output_embeddings())


class TextModelTest(EncoderTests, unittest.TestCase):
    all_model_classes = (AlbefTextModel,)

    def get_config(self) -> AlbefTextConfig:
        return AlbefTextConfig(**TEXT, **NO_DROPOUT)

    def inputs(self) -> dict:
        return texts()


class MultimodalModelTest(EncoderTests, unittest.TestCase):
    all_model_classes = (AlbefMultimodalModel,)
    test_resize_embeddings = False

    def get_config(self) -> AlbefTextConfig:
        return AlbefTextConfig(**TEXT, **NO_DROPOUT)

    def inputs(self) -> dict:
        return {"hidden_states": floats_tensor([BATCH, TOKENS, WIDTH]), "attention_mask": texts()["attention_mask"]}

    def _prepare_config_and_inputs_for_retain_grad_hidden_states_attentions(self):
        """The first of its states is its input, whose gradient is asked for."""
        config, inputs = self.prepare_config_and_inputs_for_common()
        return config, inputs | {"hidden_states": inputs["hidden_states"].requires_grad_()}

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """All texts read one image, whatever their number and precision."""
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        keys = torch.linspace(-1, 1, HEADS * PATCHES * WIDTH // HEADS).view(1, HEADS, PATCHES, WIDTH // HEADS)
        keys = keys.to(inputs["hidden_states"].dtype)
        return inputs | {"image_key_values": [(keys, keys.flip(-1)), (keys.flip(2), keys)]}

    @unittest.skip("its tokens come from the text encoder")
    def test_model_get_set_embeddings(self): ...


class CompositeTests(ModelTests):
    _is_composite = True
    additional_model_inputs = ["pixel_values"]

    def test_reverse_loading_mapping(self):
        """The conversion resamples positions and changes no name."""
        super().test_reverse_loading_mapping(check_keys_were_modified=False)


class ModelTest(CompositeTests, unittest.TestCase):
    all_model_classes = (AlbefModel,)
    is_training = False


class ContrastTests(CompositeTests):
    def setUp(self):
        """The hardest negatives instead of random ones, so that two runs can be compared."""
        patch = mock.patch("albef_hf.losses_albef.multinomial", lambda weights, number: weights.topk(number).indices)
        patch.start()
        self.addCleanup(patch.stop)


class PreTrainingTest(ContrastTests, unittest.TestCase):
    all_model_classes = (AlbefForPreTraining,)

    def labels(self, inputs: dict) -> dict:
        return {"mlm_input_ids": inputs["input_ids"].flip(1), "labels": inputs["input_ids"]}


class RetrievalTest(ContrastTests, unittest.TestCase):
    all_model_classes = (AlbefForRetrieval,)

    @unittest.skip("it goes by the first output, which is contrastive: multimodal states play no part in that")
    def test_retain_grad_hidden_states_attentions(self): ...


class VisualEntailmentTest(CompositeTests, unittest.TestCase):
    all_model_classes = (AlbefForVisualEntailment,)

    def labels(self, inputs: dict) -> dict:
        return {"labels": torch.arange(BATCH) % 3}


class ImageTextClassificationTest(CompositeTests, unittest.TestCase):
    all_model_classes = (AlbefForImageTextClassification,)

    def get_config(self) -> AlbefConfig:
        config = super().get_config()
        config.num_labels = 5
        config.problem_type = "multi_label_classification"
        return config

    def labels(self, inputs: dict) -> dict:
        return {"labels": torch.eye(BATCH, 5)}


class PairTests(CompositeTests):
    """Of each multimodal layer there are two, whose states and attentions are recorded."""

    def get_config(self) -> AlbefConfig:
        config = super().get_config()
        config.text_config.num_multimodal_layers = 1
        return config

    def labels(self, inputs: dict) -> dict:
        return {"labels": torch.arange(BATCH) % 2}


class VisualReasoningTest(PairTests, unittest.TestCase):
    all_model_classes = (AlbefForVisualReasoning,)

    def inputs(self) -> dict:
        return {**texts(), "pixel_values": images(2)}


class TextAssignmentTest(PairTests, unittest.TestCase):
    all_model_classes = (AlbefForTextAssignment,)
    additional_model_inputs = ["pixel_values", "image_pairs"]

    def inputs(self) -> dict:
        # The first text makes do with the first image, since it is also given to the model alone.
        return {**super().inputs(), "image_pairs": torch.tensor([[0, 0], [1, 2], [3, 2], [1, 3]])}


class QuestionAnsweringTest(CompositeTests, unittest.TestCase):
    all_model_classes = (AlbefForQuestionAnswering,)
    is_encoder_decoder = True

    def get_config(self) -> AlbefConfig:
        config = super().get_config()
        config.is_encoder_decoder = True  # as the head itself sets it
        return config

    def inputs(self) -> dict:
        return {**super().inputs(), "decoder_input_ids": texts()["input_ids"]}

    def labels(self, inputs: dict) -> dict:
        return {"labels": inputs.pop("decoder_input_ids")}

    def test_attn_implementation_composite_models(self):
        """It sets the attention of the decoder's configuration, which is derived from that of the text side."""
        with mock.patch.object(self, "get_config", super().get_config):
            super().test_attn_implementation_composite_models()

    @unittest.skip("GenerationTesterMixin is not in the source distribution; tests/test_transformers.py generates")
    def test_generation_tester_mixin_inheritance(self): ...


class ImageCaptioningTest(CompositeTests, unittest.TestCase):
    all_model_classes = (AlbefForImageCaptioning,)

    def labels(self, inputs: dict) -> dict:
        return {"labels": inputs["input_ids"].index_fill(1, torch.tensor([0]), -100)}

    def test_resize_tokens_embeddings(self):
        """It is called without labels, which is refused in training."""
        with mock.patch.object(self, "is_training", False):
            super().test_resize_tokens_embeddings()

    def _prepare_config_and_inputs_for_retain_grad_hidden_states_attentions(self):
        """In training, which needs labels."""
        config, inputs = self.prepare_config_and_inputs_for_common()
        return config, inputs | self.labels(inputs)

    @unittest.skip("as of the other heads, the outputs are those of the multimodal encoder")
    def test_multimodal_outputs_are_returned(self): ...

    @unittest.skip("GenerationTesterMixin is not in the source distribution; tests/test_captioning.py generates")
    def test_generation_tester_mixin_inheritance(self): ...


class ConfigTest(unittest.TestCase):
    def test_vision_config(self):
        ConfigTester(self, AlbefVisionConfig, has_text_modality=False, **VISION).run_common_tests()

    def test_text_config(self):
        ConfigTester(self, AlbefTextConfig, **TEXT).run_common_tests()

    def test_config(self):
        properties = ["projection_dim", "initial_temperature"]
        self.model_tester = ModelTest()
        ConfigTester(self, AlbefConfig, has_text_modality=False, common_properties=properties).run_common_tests()
