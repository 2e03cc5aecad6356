"""The ways to pretrain of the paper's Table 1: each takes one more thing away from the full objective.

Whether the teacher softens targets at all (`alpha`) and how hard negatives are (`hardness_strength`) are options of
the training, so that rows which differ in nothing else have the same class.
"""

from dataclasses import dataclass, field

import torch

from albef_hf import AlbefConfig, AlbefForPreTraining
from albef_hf.head_layers_albef import AlbefContrastiveHead
from albef_hf.outputs_albef import AlbefTeacherOutput


class SilentHead(AlbefContrastiveHead):
    """Teaches nothing: projections and temperature stay as they began."""

    def loss(self, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """As that of `AlbefContrastiveHead`, with a loss of zero."""
        loss, info_nce, logits = super().loss(*args, **kwargs)
        return torch.zeros_like(loss), info_nce, logits


class PlainLanguage(AlbefForPreTraining):
    """ITC + MLM + ITM: without distillation of the masked language, which the teacher says nothing about."""

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


class WithoutContrast(PlainLanguage):
    """MLM + ITM: nothing is aligned before it is fused."""

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        head = SilentHead(config)
        head.load_state_dict(self.contrastive_head.state_dict())  # all ways begin with the same weights
        self.contrastive_head = head


@dataclass(frozen=True)
class Pretraining:
    """A way to pretrain.

    Args:
        title: What the paper calls it.
        head: Computes the losses.
        settings: Of the training, where they are not the recipe's.
        distilled: Whether the teacher softens targets; else it only supplies the keys of the contrast.
    """

    title: str
    head: type[AlbefForPreTraining]
    settings: dict[str, float] = field(default_factory=dict)
    distilled: bool = False


AT_RANDOM = {"hardness_strength": 0.0}
PRETRAININGS = {
    "without_contrast": Pretraining("MLM + ITM", WithoutContrast, AT_RANDOM),
    "random_negatives": Pretraining("ITC + MLM + ITM", PlainLanguage, AT_RANDOM),
    "hard_negatives": Pretraining("ITC + MLM + ITM_hard", PlainLanguage),
    "distilled_contrast": Pretraining("ITC_MoD + MLM + ITM_hard", PlainLanguage, distilled=True),
    "full": Pretraining("Full (ITC_MoD + MLM_MoD + ITM_hard)", AlbefForPreTraining, distilled=True),
}
