"""The graphs that each head is exported as."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from ..configuration_albef import MATCHING_HEADS, AlbefConfig

Sizes = dict[str, tuple[int | str, ...]]  # of each input; a string is the name of a dynamic axis


class Graph(nn.Module):
    """A part of a model that becomes one file; `forward` takes the inputs in their order.

    Attributes:
        inputs: Size of each input.
        outputs: Name of each output.
    """

    inputs: Sizes
    outputs: tuple[str, ...]

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model


def _pixels(config: AlbefConfig) -> tuple[int, int, int]:
    """Return channels, height and width of an image."""
    return getattr(config.vision_config, "num_channels", 3), *config.input_size


class ImageEncoder(Graph):
    """Encode images: unit features for the contrast, and states for the matching."""

    outputs = ("image_embeds", "image_hidden_states")

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.inputs = {"pixel_values": ("images", *_pixels(model.config))}

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self.model.get_image_features(pixel_values, return_dict=True)
        return outputs.pooler_output, outputs.last_hidden_state


class TextEncoder(Graph):
    """Encode texts: unit features for the contrast, and states for the matching."""

    inputs = {"input_ids": ("texts", "tokens"), "attention_mask": ("texts", "tokens")}
    outputs = ("text_embeds", "text_hidden_states")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self.model.get_text_features(input_ids, attention_mask, return_dict=True)
        return outputs.pooler_output, outputs.last_hidden_state


class TextMatching(Graph):
    """Match one image with texts: logits of (no match, match), (texts, 2)."""

    outputs = ("itm_logits",)

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.inputs = {
            "image_hidden_states": (1, "image_tokens", model.config.image_hidden_size),
            "text_hidden_states": ("texts", "tokens", model.config.text.hidden_size),
            "attention_mask": ("texts", "tokens"),
        }

    def forward(
        self, image_hidden_states: torch.Tensor, text_hidden_states: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor]:
        encoder = self.model.albef.multimodal_model
        key_values = encoder.project_images(image_hidden_states)
        return (self.model.itm_head(encoder.encode_cls(text_hidden_states, attention_mask, key_values)),)


class ImageMatching(Graph):
    """Match one text, without padding, with images: logits of (no match, match), (images, 2).

    The images are not projected to keys and values, which would take most of the time.
    """

    outputs = ("itm_logits",)

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.inputs = {
            "image_hidden_states": ("images", "image_tokens", model.config.image_hidden_size),
            "text_hidden_states": (1, "tokens", model.config.text.hidden_size),
        }

    def forward(self, image_hidden_states: torch.Tensor, text_hidden_states: torch.Tensor) -> tuple[torch.Tensor]:
        encoder = self.model.albef.multimodal_model
        attended = encoder.first_self_attention(text_hidden_states, None)
        return (self.model.itm_head(encoder.encode_cls_over_images(attended, image_hidden_states)),)


class Fusion(Graph):
    """Fuse texts with their images: states of the multimodal encoder, and those of the other two."""

    outputs: tuple[str, ...] = ("last_hidden_state", "image_hidden_states", "text_hidden_states")

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        images = (2,) if hasattr(getattr(model, "albef", model).multimodal_model, "second_layers") else ()
        self.inputs = {
            "pixel_values": ("pairs", *images, *_pixels(model.config)),
            "input_ids": ("pairs", "tokens"),
            "attention_mask": ("pairs", "tokens"),
        }

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        outputs = self.model(input_ids, pixel_values, attention_mask, return_dict=True)
        return tuple(outputs[name] for name in self.outputs)


class Classifier(Fusion):
    """Classify texts with their images: logits, (pairs, classes), in the order of `id2label` in `config.json`."""

    outputs = ("logits",)


class QuestionEncoder(Fusion):
    """Encode questions about images, for `AnswerDecoder`."""

    outputs = ("last_hidden_state",)

    def __init__(self, model: PreTrainedModel):
        super().__init__(model.get_encoder())


class AnswerDecoder(Graph):
    """Compute the logits of the token after each token of the answers so far, (answers, answer tokens, vocabulary).

    Answers are short, so it has no cache: each call decodes them from `[CLS]` on. A token does not see those after it,
    so answers may be padded with any token.
    """

    outputs = ("logits",)

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.inputs = {
            "answer_ids": ("answers", "answer_tokens"),
            "question_hidden_states": ("answers", "tokens", model.config.text.hidden_size),
            "attention_mask": ("answers", "tokens"),
        }

    def forward(
        self, answer_ids: torch.Tensor, question_hidden_states: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor]:
        decoder = self.model.decoder
        key_values = decoder.project_questions(question_hidden_states)
        states = decoder(answer_ids, None, key_values, attention_mask, return_dict=True).last_hidden_state
        return (self.model.mlm_head(states),)


class VisionEncoder(Graph):
    """Encode images: states for `CaptionDecoder`."""

    outputs = ("image_hidden_states",)

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.inputs = {"pixel_values": ("images", *_pixels(model.config))}

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.model.albef.vision_model(pixel_values, return_dict=True).last_hidden_state,)


class CaptionDecoder(Graph):
    """Compute the logits of the token after each token of the captions so far, (captions, tokens, vocabulary).

    As `AnswerDecoder`, it has no cache, and takes padding on the right.
    """

    outputs = ("logits",)

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.inputs = {
            "caption_ids": ("captions", "tokens"),
            "image_hidden_states": ("captions", "image_tokens", model.config.image_hidden_size),
        }

    def forward(self, caption_ids: torch.Tensor, image_hidden_states: torch.Tensor) -> tuple[torch.Tensor]:
        key_values = self.model.albef.multimodal_model.project_images(image_hidden_states)
        _, fused = self.model.albef.decode(caption_ids, key_values, return_dict=True)
        return (self.model.mlm_head(fused.last_hidden_state),)


_MATCHING = {
    "image_encoder": ImageEncoder,
    "text_encoder": TextEncoder,
    "match_texts": TextMatching,
    "match_images": ImageMatching,
}
# The graphs of each head by the names of their files.
GRAPHS: dict[str, dict[str, type[Graph]]] = {
    **dict.fromkeys(MATCHING_HEADS, _MATCHING),
    "AlbefForQuestionAnswering": {"question_encoder": QuestionEncoder, "answer_decoder": AnswerDecoder},
    "AlbefForImageCaptioning": {"image_encoder": VisionEncoder, "caption_decoder": CaptionDecoder},
    "AlbefForImageTextClassification": {"classifier": Classifier},
    "AlbefForVisualEntailment": {"classifier": Classifier},
    "AlbefForVisualReasoning": {"classifier": Classifier},
    "AlbefModel": {"fusion": Fusion},
    "AlbefTwoImageModel": {"fusion": Fusion},
}


def random_inputs(graph: Graph, axis_sizes: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return random inputs of a graph: texts with padding, pixels and states of unit variance.

    Args:
        graph: The graph.
        axis_sizes: Sizes of its dynamic axes, in the order in which its inputs name them.
    """
    generator = torch.Generator().manual_seed(0)
    text = graph.model.config.get_text_config()
    axes = dict.fromkeys(size for sizes in graph.inputs.values() for size in sizes if isinstance(size, str))
    sizes = {axis: min(size, text.max_tokens) for axis, size in zip(axes, axis_sizes, strict=False)}
    inputs = {}
    for name, shape in graph.inputs.items():
        actual_shape = [sizes[size] if isinstance(size, str) else size for size in shape]
        if name.endswith("_ids"):
            inputs[name] = torch.randint(text.vocab_size, actual_shape, generator=generator)
        elif name == "attention_mask":
            lengths = torch.randint(1, actual_shape[1] + 1, (actual_shape[0], 1), generator=generator)
            lengths[0] = actual_shape[1]
            inputs[name] = (torch.arange(actual_shape[1]) < lengths).long()
        else:
            inputs[name] = torch.randn(actual_shape, generator=generator)
    return inputs


__all__ = ["GRAPHS", "Graph", "Sizes", "random_inputs"]
