"""The computation without sharing, as one would write it down first; every benchmark is compared with it.

Each pass projects the image's keys and values again, every token gets logits of the whole vocabulary, every layer
computes every token. A test says that losses and gradients are those of the package.
"""

import torch
from torch.nn import functional as F

from albef_hf import AlbefForPreTraining, AlbefForQuestionAnswering
from albef_hf.losses_albef import IGNORED, distilled_cross_entropy, matching_loss, sample_hard_negatives
from albef_hf.outputs_albef import AlbefForPreTrainingOutput, AlbefTeacherOutput


class PlainForPreTraining(AlbefForPreTraining):
    """The pretraining head, one forward pass after the other."""

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """States of the images, (batch, patches + 1, width)."""
        return self.albef.vision_model(pixel_values).last_hidden_state

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """States of the texts, (batch, tokens, width)."""
        return self.albef.text_model(input_ids, attention_mask).last_hidden_state

    def fuse(self, texts: torch.Tensor, attention_mask: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """States of texts that have read one image each, (batch, tokens, width)."""
        key_values = self.albef.multimodal_model.project_images(images)
        return self.albef.multimodal_model(texts, attention_mask, key_values).last_hidden_state

    @torch.no_grad()
    def get_teacher_outputs(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor,
        mlm_input_ids: torch.Tensor,
        labels: torch.Tensor,
    ) -> AlbefTeacherOutput:
        """As the package's."""
        images, texts = self.encode_image(pixel_values), self.encode_text(input_ids, attention_mask)
        masked = self.fuse(self.encode_text(mlm_input_ids, attention_mask), attention_mask, images)
        return AlbefTeacherOutput(
            image_embeds=self.contrastive_head.project_image(images),
            text_embeds=self.contrastive_head.project_text(texts, attention_mask),
            logits=self.mlm_head(masked),
        )

    def match(
        self,
        images: torch.Tensor,
        texts: torch.Tensor,
        attention_mask: torch.Tensor,
        logits: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the matching loss of the pairs and of hard negatives, and its logits, (3 * batch, 2)."""
        per_image, per_text = logits
        is_negative = ~torch.eye(len(images), dtype=torch.bool, device=images.device)
        image_for_text, text_for_image = sample_hard_negatives(per_image, per_text, is_negative)
        matched = self.fuse(texts, attention_mask, images)
        wrong = self.fuse(
            torch.cat([texts, texts[text_for_image]]),
            torch.cat([attention_mask, attention_mask[text_for_image]]),
            torch.cat([images[image_for_text], images]),
        )
        itm_logits = self.itm_head(torch.cat([matched, wrong])[:, 0])
        return matching_loss(itm_logits, is_negative.new_ones(2 * len(images))), itm_logits

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor,
        mlm_input_ids: torch.Tensor,
        labels: torch.Tensor,
        teacher_outputs: AlbefTeacherOutput,
        alpha: float,
    ) -> AlbefForPreTrainingOutput:
        """As the package's, in training."""
        images = self.encode_image(pixel_values)
        texts = self.encode_text(input_ids, attention_mask)
        image_embeds = self.contrastive_head.project_image(images)
        text_embeds = self.contrastive_head.project_text(texts, attention_mask)
        positives = torch.arange(len(images), device=images.device)
        loss_itc, _, logits = self.contrastive_head.loss(image_embeds, text_embeds, positives, teacher_outputs, alpha)
        loss_itm, itm_logits = self.match(images, texts, attention_mask, logits)
        masked = self.fuse(self.encode_text(mlm_input_ids, attention_mask), attention_mask, images)
        mlm_logits = self.mlm_head(masked)
        losses = distilled_cross_entropy(
            mlm_logits.flatten(0, 1), labels.flatten(), teacher_outputs.logits.flatten(0, 1), alpha
        )
        loss_mlm = losses[labels.flatten() != IGNORED].mean()
        return AlbefForPreTrainingOutput(
            loss=loss_itc + loss_itm + loss_mlm,
            loss_itc=loss_itc,
            loss_itm=loss_itm,
            loss_mlm=loss_mlm,
            itm_logits=itm_logits,
        )


@torch.no_grad()
def plain_retrieval(
    model: AlbefForPreTraining,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-odds of a match of the best k texts of every image and of the best k images of every text.

    As the original's `Retrieval.py`: one query after the other, every text padded to the longest of all.

    Returns:
        (images, texts) and (texts, images), -100 where nothing was scored.
    """
    images = model.get_image_features(pixel_values)
    texts = model.get_text_features(input_ids, attention_mask)
    similarities = images.pooler_output @ texts.pooler_output.T
    image_states, text_states = images.last_hidden_state, texts.last_hidden_state
    fuse = model.albef.multimodal_model

    def score(image_numbers: torch.Tensor, text_numbers: torch.Tensor) -> torch.Tensor:
        key_values = fuse.project_images(image_states[image_numbers])
        fused = fuse(text_states[text_numbers], attention_mask[text_numbers], key_values)
        return model.itm_head(fused.last_hidden_state[:, 0]).diff(dim=1).squeeze(1)

    of_images, of_texts = torch.full_like(similarities, -100), torch.full_like(similarities.T, -100)
    for image, row in enumerate(similarities):
        best = row.topk(k).indices
        of_images[image, best] = score(torch.full_like(best, image), best)
    for text, row in enumerate(similarities.T):
        best = row.topk(k).indices
        of_texts[text, best] = score(best, torch.full_like(best, text))
    return of_images, of_texts


@torch.no_grad()
def plain_ranking(
    model: AlbefForQuestionAnswering,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    pixel_values: torch.Tensor,
    answer_ids: torch.Tensor,
    k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers and probabilities, each (questions, k), question states repeated for every candidate."""
    questions = model.albef(input_ids, pixel_values, attention_mask).last_hidden_state
    start = answer_ids[:1, :1].expand(len(questions), 1)
    keys = model.decoder.project_questions(questions)
    first = model.mlm_head(model.decoder(start, None, keys, attention_mask).last_hidden_state[:, 0]).log_softmax(-1)
    first, rows = first[:, answer_ids[:, 1]].topk(k, dim=1)
    candidates = answer_ids[rows.flatten()]  # (questions * k, tokens)
    answered = candidates != model.config.text_config.pad_token_id
    keys = model.decoder.project_questions(questions.repeat_interleave(k, 0))
    states = model.decoder(candidates, answered.long(), keys, attention_mask.repeat_interleave(k, 0)).last_hidden_state
    logits = model.mlm_head(states)[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), candidates[:, 1:].flatten(), reduction="none")
    whole = -(losses.view(len(candidates), -1) * answered[:, 1:]).sum(1).view(len(questions), k)
    probabilities, order = (first + whole).softmax(-1).sort(dim=1, descending=True)
    return rows.gather(1, order), probabilities
