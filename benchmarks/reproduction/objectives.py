"""The ways to pretrain of the paper's Table 1: each class takes one more thing away from the full objective.

Whether the teacher softens targets at all is an option of the training (`alpha`), so that the row with distillation of
the contrast has the class of the row above.
"""

from dataclasses import dataclass

import torch

from albef_hf import AlbefConfig, AlbefForPreTraining
from albef_hf.modeling_albef import AlbefContrastiveHead, AlbefTeacherOutput


class UniformNegativesHead(AlbefContrastiveHead):
    """Contrasts as ever, but hands on equal similarities, by which every wrong pair is as likely a negative."""

    def loss(self, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """As that of `AlbefContrastiveHead`, with logits of zero."""
        loss, info_nce, logits = super().loss(*args, **kwargs)
        return loss, info_nce, tuple(torch.zeros_like(part) for part in logits)


class SilentHead(UniformNegativesHead):
    """Teaches nothing: projections and temperature stay as they began."""

    def loss(self, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """As that of `UniformNegativesHead`, with a loss of zero."""
        loss, info_nce, logits = super().loss(*args, **kwargs)
        return torch.zeros_like(loss), info_nce, logits


class HardNegatives(AlbefForPreTraining):
    """ITC + MLM + ITM_hard: without distillation of the masked language, which the teacher says nothing about."""

    @torch.no_grad()
    def get_teacher_outputs(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor, attention_mask: torch.Tensor, **masked: torch.Tensor
    ) -> AlbefTeacherOutput:
        """Features, for the contrast."""
        return AlbefTeacherOutput(
            image_embeds=self.get_image_features(pixel_values, return_dict=True).pooler_output,
            text_embeds=self.get_text_features(input_ids, attention_mask, return_dict=True).pooler_output,
        )

    def save_pretrained(self, *args, **kwargs) -> None:
        """As what it is but for its losses, an `AlbefForPreTraining`."""
        with torch.random.fork_rng():
            plain = AlbefForPreTraining(self.config)
        plain.load_state_dict(self.state_dict())
        plain.save_pretrained(*args, **kwargs)


class RandomNegatives(HardNegatives):
    """ITC + MLM + ITM: matching learns from negatives drawn at random."""

    contrastive_head_class = UniformNegativesHead

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        head = self.contrastive_head_class(config)
        head.load_state_dict(self.contrastive_head.state_dict())  # all ways begin with the same weights
        self.contrastive_head = head


class WithoutContrast(RandomNegatives):
    """MLM + ITM: nothing is aligned before it is fused."""

    contrastive_head_class = SilentHead


@dataclass(frozen=True)
class Pretraining:
    """A way to pretrain.

    Args:
        title: What the paper calls it.
        head: Computes the losses.
        distilled: Whether the teacher softens targets; else it only supplies the keys of the contrast.
    """

    title: str
    head: type[AlbefForPreTraining]
    distilled: bool = False


PRETRAININGS = {
    "without_contrast": Pretraining("MLM + ITM", WithoutContrast),
    "random_negatives": Pretraining("ITC + MLM + ITM", RandomNegatives),
    "hard_negatives": Pretraining("ITC + MLM + ITM_hard", HardNegatives),
    "distilled_contrast": Pretraining("ITC_MoD + MLM + ITM_hard", HardNegatives, distilled=True),
    "full": Pretraining("Full (ITC_MoD + MLM_MoD + ITM_hard)", AlbefForPreTraining, distilled=True),
}
