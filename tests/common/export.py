"""Every head as a graph of torch.export, as ONNX, and compiled; flex attention. All of it takes minutes.

The ONNX files are run by onnxruntime, with other sizes than they have been traced with.
"""

import onnxruntime
import pytest
import torch
from test_heads import inputs_of
from test_transformers import KINDS, hardest_negatives, questions_of, sharp  # noqa: F401
from torch import nn
from torch.export import Dim
from transformers import PreTrainedModel

from albef_hf import AlbefConfig, AlbefForPreTraining, AlbefForQuestionAnswering, AlbefForRetrieval, AlbefModel

SIZES = {"pixel_values": {0: "batch"}, "image_pairs": {0: "batch"}}
SIZES |= dict.fromkeys(("input_ids", "attention_mask"), {0: "batch", 1: "tokens"})


class ImageFeatures(nn.Module):
    def __init__(self, config: AlbefConfig):
        super().__init__()
        self.model = AlbefForRetrieval(config)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(pixel_values).pooler_output


class TextFeatures(ImageFeatures):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model.get_text_features(input_ids, attention_mask).pooler_output


class FirstOutput(nn.Module):
    """What a head is for: logits of matching, of classes, of the next token."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.model(**inputs)
        return outputs.itm_logits if "itm_logits" in outputs else outputs[0]


def check(module: nn.Module, inputs: dict[str, torch.Tensor], tmp_path) -> None:
    """Both kinds of graph give what the module gives, for more and longer texts too."""
    module.eval()
    dims = {"batch": Dim("batch", max=64), "tokens": Dim("tokens", max=40)}
    sizes = {name: {axis: dims[size] for axis, size in SIZES[name].items()} for name in inputs}
    if isinstance(module, FirstOutput):
        sizes = {"inputs": sizes}
    program = torch.export.export(module, (), inputs, dynamic_shapes=sizes)
    torch.onnx.export(program, kwargs=inputs, f=tmp_path / "model.onnx", dynamo=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    longer = {name: value.repeat(2, 2) if value.ndim == 2 else value.repeat(2, 1, 1, 1) for name, value in inputs.items()}
    for others in (inputs, longer):
        expected = module(**others)
        assert torch.allclose(program.module()(**others), expected, atol=1e-4)
        numbers = {name: value.numpy() for name, value in others.items()}
        (written,) = session.run(None, numbers)
        assert torch.allclose(torch.tensor(written), expected, atol=1e-4)
