"""The layers that ALBEF's heads add to the encoders, and the contrastive loss."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from .configuration_albef import AlbefConfig, AlbefTextConfig
from .encoders_albef import to_weight_device
from .losses_albef import at_least_float32, cross_entropy, distill
from .outputs_albef import AlbefTeacherOutput

# Joins a tensor of this process, (batch, ...), with those of all processes, (all, ...): rows of this process first,
# the second axis padded with zeros to the longest. It passes gradients on.
Gather = Callable[[torch.Tensor], torch.Tensor]


class AlbefContrastiveHead(nn.Module):
    """The joint space of images and texts: two projections and the temperature of their similarities."""

    def __init__(self, config: AlbefConfig):
        super().__init__()
        self.image_projection = nn.Linear(config.image_hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        self.text_pooling = config.text_pooling
        self.initial_temperature = config.initial_temperature
        self.temperature = nn.Parameter(torch.tensor(float(config.initial_temperature)))

    def project_image(self, image_hidden_states: torch.Tensor) -> torch.Tensor:
        """Project (batch, image tokens, image width) states to unit features, (batch, projection)."""
        return self._project(self.image_projection, image_hidden_states[:, 0])

    def project_text(
        self, text_hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Project (batch, text tokens, text width) states to unit features, (batch, projection).

        The mean of `text_pooling` is over the tokens of the (batch, text tokens) mask, or over all without a mask.
        """
        pooled = text_hidden_states[:, 0]
        if self.text_pooling == "mean":
            pooled = _masked_mean(text_hidden_states, attention_mask)
        return self._project(self.text_projection, pooled)

    @staticmethod
    def _project(projection: nn.Linear, pooled: torch.Tensor) -> torch.Tensor:
        features = projection(to_weight_device(projection.weight, pooled))
        return F.normalize(at_least_float32(features), dim=-1)

    def forward(self, queries: torch.Tensor, *keys: torch.Tensor) -> torch.Tensor:
        """Compute similarity over temperature, (queries, all keys), in float32 or better.

        At a temperature of 0.07, the 8 bits of a bfloat16 would change a logit by up to 0.06.

        Args:
            queries: Features, (queries, projection).
            keys: Tensors of features, (keys, projection).
        """
        with torch.autocast(queries.device.type, enabled=False):
            # Logits are concatenated rather than keys: a copy of the queue would take 67 megabytes.
            similarities = torch.cat([queries @ block.to(queries.dtype).T for block in keys], dim=1)
            return similarities / self.temperature.to(queries.dtype)

    def loss(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        targets: torch.Tensor,
        teacher_outputs: AlbefTeacherOutput | None,
        alpha: float,
        gather: Gather | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Compute the image-text contrastive loss, equations 1, 2 and 6 of the paper.

        The keys are the teacher's features of the batch, then its queues; without a teacher, the batch itself.
        Teacher similarities are divided by the student's temperature, as in the original's `model_pretrain.py`.

        Args:
            image_embeds: Unit features of the images, (batch, projection).
            text_embeds: Unit features of the texts, (batch, projection).
            targets: Index of the right key of each image and of each text, (batch,), or the weight of each key,
                (batch, batch + queue).
            teacher_outputs: Features and queues of a teacher.
            alpha: Weight of the teacher in the targets.
            gather: Joins the batches of all processes, for the returned logits only.

        Returns:
            The loss; the InfoNCE without distillation; the logits of images with texts and of texts with images, each
            (batch, batch), or (batch, all) if they are gathered.
        """
        image_keys, text_keys = (image_embeds,), (text_embeds,)
        if teacher_outputs is not None:
            image_keys = (teacher_outputs.image_embeds, teacher_outputs.image_queue)
            text_keys = (teacher_outputs.text_embeds, teacher_outputs.text_queue)
        teacher_per_image = teacher_per_text = None
        if teacher_outputs is not None and alpha > 0:
            with torch.no_grad():
                teacher_per_image = self(teacher_outputs.image_embeds, *text_keys)
                teacher_per_text = self(teacher_outputs.text_embeds, *image_keys)
        per_image = self(image_embeds, *text_keys)  # (batch, batch + queue)
        per_text = self(text_embeds, *image_keys)
        image_log_probabilities = per_image.log_softmax(-1)
        text_log_probabilities = per_text.log_softmax(-1)
        image_losses = distill(image_log_probabilities, targets, teacher_per_image, alpha)
        text_losses = distill(text_log_probabilities, targets, teacher_per_text, alpha)
        loss = (image_losses + text_losses).mean() / 2
        with torch.no_grad():
            image_info_nce = cross_entropy(image_log_probabilities, targets, "mean")
            info_nce = (image_info_nce + cross_entropy(text_log_probabilities, targets, "mean")) / 2
            if gather is not None:
                logits = self(image_embeds, gather(text_keys[0])), self(text_embeds, gather(image_keys[0]))
                return loss, info_nce, logits
        batch = len(image_embeds)
        return loss, info_nce, (per_image[:, :batch], per_text[:, :batch])


def _masked_mean(hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the mean of (batch, tokens, width) states over the tokens whose mask is 1, (batch, width)."""
    if mask is None:
        return hidden_states.mean(1)
    weights = mask.to(hidden_states.device, hidden_states.dtype)
    return (hidden_states * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True)


class AlbefMaskedLanguageHead(nn.Module):
    """BERT's masked-language head; its last layer shares the word embeddings."""

    def __init__(self, config: AlbefTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        # Not called `decoder` as in BERT, because accelerate would take it for a part of the answer decoder.
        self.out_proj = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return logits, (..., vocabulary), of (..., width) states."""
        return self.out_proj(self.norm(self.activation(self.dense(hidden_states))))


class AlbefClassificationHead(nn.Module):
    """Two layers on the `[CLS]` token (`cls_head` in the original's `model_ve.py` and `model_nlvr.py`)."""

    def __init__(self, config: AlbefConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.dense = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, config.num_labels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return logits, (batch, classes), of (batch, tokens, width) states."""
        return self.out_proj(F.relu(self.dense(hidden_states[:, 0])))


class AlbefFrozenProjection(nn.Module):
    """A linear map that is not trained, hence made of buffers; zero until a checkpoint fills it."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, input_size: int, output_size: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(output_size, input_size))
        self.register_buffer("bias", torch.zeros(output_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Project (..., input) states to (..., output)."""
        return F.linear(hidden_states, self.weight, self.bias)


__all__ = [
    "AlbefClassificationHead",
    "AlbefContrastiveHead",
    "AlbefFrozenProjection",
    "AlbefMaskedLanguageHead",
    "Gather",
]
