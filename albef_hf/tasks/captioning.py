"""Image captioning: COCO, Flickr30k. The paper has none; protocol and most defaults are those of BLIP."""

import contextlib
import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..data import InvalidSampleError, SkipReason, drop_image_columns, load_image, valid_captions
from ..data.collator import pad_tokens, target_positions
from ..data.evaluation_images import image_id
from ..data.image_states import image_key
from ..data.scene_captions import scene_scores
from ..data.scene_tasks import SceneDescriptions
from ..metrics.caption_scores.scoring import caption_scores, import_scorers
from ..modeling_albef import AlbefForImageCaptioning
from ..processing_albef import AlbefProcessor
from ..utils.progress import progress
from .arguments import CaptioningArguments
from .base import Rows, TextLimit, count_issues
from .base_rows import BASELINE_ROWS, RowTask

BLIP_PROMPT = "a picture of"


class Captioning(RowTask):
    """Rows: `image` and `caption`, a text or a list of texts, and optionally `image_id`."""

    name = "captioning"
    protocol = "Captions of beam search, compared with all captions of an image: CIDEr-D (x 100), BLEU-4 and ROUGE-L."
    head = AlbefForImageCaptioning
    arguments_class = CaptioningArguments
    metric = "cider"
    columns = ("image", "caption")
    optional_columns = ("image_id",)
    image_columns = ("image",)
    synthetic_data = SceneDescriptions
    trains_baselines = True
    exchanged_metrics = ("objects", "colors", "shapes", "relations")

    def __init__(self, args: CaptioningArguments, processor: AlbefProcessor):
        super().__init__(args, processor)
        import_scorers()  # or the error would come after an epoch
        known = (args.prompt, processor.prompt, BLIP_PROMPT)
        processor.prompt = next(prompt for prompt in known if prompt is not None)  # it is saved with the model
        self.prompt = processor.encode_prompt()
        limit = self.training_limit.tokens - len(self.prompt)  # also [SEP] takes the place of [CLS]
        if limit < 2 or args.max_length <= len(self.prompt):
            raise ValueError(
                f"The prompt has {len(self.prompt)} tokens with [CLS], which leaves no room for a caption: shorten "
                f"it, or raise max_tokens ({args.max_tokens}) and max_length ({args.max_length})."
            )
        positions = processor.tokenizer.model_max_length
        if args.max_length > positions:
            raise ValueError(f"max_length is {args.max_length}, but the model has {positions} positions: lower it.")
        self.caption_limit = TextLimit(args.max_words, limit)

    def validation_rows(self) -> Rows:
        """Return the rows to evaluate on; those with the same image are one, with all its captions."""
        rows = super().validation_rows()
        return rows if self.uses_synthetic_data else CaptionedImages(rows, self.args.image_root)

    @property
    def forward_settings(self) -> dict[str, Any]:
        """Return the label smoothing, if there is any."""
        return {"smoothing": self.args.label_smoothing} if self.args.label_smoothing else {}

    def preprocess_train(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return an image with one of its captions."""
        issues: list[SkipReason] = []
        captions = valid_captions(row["caption"])
        caption = self.clean(captions[rng.integers(len(captions))], issues, self.caption_limit)
        return {"pixel_values": self.pixels(row["image"], rng), "caption": caption, "issues": issues}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch of images and captions behind the prompt."""
        tokens = self.training_limit.tokens
        texts = self.processor.encode_captions([sample["caption"] for sample in samples], max_length=tokens)
        multiple = self.args.text_multiple or 1
        fill = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}
        batch = {name: pad_tokens(texts[name], multiple, tokens, value) for name, value in fill.items()}
        positions = target_positions(batch["labels"])
        if self.args.text_multiple:
            unweighted = batch["labels"][:-1].numel()  # the last [CLS]
            positions = F.pad(positions, (0, -len(positions) % len(samples)), value=unweighted)
        return {
            **batch,
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "target_positions": positions,
            "issues": count_issues(samples),
        }

    def preprocess_eval(self, row: Mapping[str, Any], issues: list[SkipReason]) -> dict[str, Any]:
        """Return the image; there has to be a caption to compare with."""
        valid_captions(row["caption"])
        return {"image": load_image(row["image"], self.args.image_root)}

    def predict(self, model: PreTrainedModel, rows: Rows, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return a caption of each image."""
        prompt = torch.tensor(self.prompt, device=model.device)
        predictions = []
        for batch in self.valid_batches(rows, indices):
            pixels = self.processor(images=[row["image"] for row in batch], return_tensors="pt")["pixel_values"]
            written = model.generate(
                pixel_values=pixels.to(model.device),
                input_ids=prompt.expand(len(batch), -1),
                num_beams=self.args.num_beams,
                max_length=self.args.max_length,
                min_length=self.args.min_length,
            )
            captions = self.processor.decode_answers(written[:, len(self.prompt) :])
            predictions += [
                {"row": row["row"], "caption": caption} for row, caption in zip(batch, captions, strict=True)
            ]
        return predictions

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Return CIDEr-D, BLEU-4 and ROUGE-L, and for scenes how much of the captions is right."""
        captions = [prediction["caption"] for prediction in predictions]
        compared = [rows[prediction["row"]] for prediction in predictions]
        scores = caption_scores(captions, [valid_captions(row["caption"]) for row in compared])
        if self.uses_synthetic_data:
            scores |= scene_scores(captions, [row["objects"] for row in compared])
        return scores

    def baselines(self, train_rows: Rows, rows: Rows) -> dict[str, float]:
        """Return the scores of the caption that is the most frequent one in training, for all images."""
        counts = Counter(self._captions(drop_image_columns(train_rows)))
        if not counts:
            return {}
        rows = drop_image_columns(rows)  # of which one is usable, or nothing was evaluated
        caption = counts.most_common(1)[0][0]
        predictions = [{"row": row, "caption": caption} for row in range(len(rows)) if has_caption(rows[row])]
        scores = self.score(predictions, rows)
        return {f"most_frequent_{name}": score for name, score in scores.items()}

    def _captions(self, rows: Rows) -> Iterator[str]:
        """Yield the cleaned captions of rows, of at most `BASELINE_ROWS` that are spread evenly."""
        count = min(len(rows), BASELINE_ROWS)
        for position in range(count):
            row = rows[position * len(rows) // count]
            for caption in valid_captions(row["caption"]) if has_caption(row) else ():
                yield self.processor.clean(caption, self.args.max_words)


class CaptionedImages(Sequence):
    """Rows with all captions of an image: rows with the same image are one, and rows without a caption stay.

    Args:
        rows: Rows with `image` and `caption`; images without `image_id` and path are known by their content.
        image_root: Folder that paths are relative to.
    """

    def __init__(self, rows: Rows, image_root: str | None = None):
        self.rows = rows
        captions: dict[Any, list[str]] = {}
        self.first_rows: list[int] = []  # of each image
        for index in progress(range(len(rows)), "find images", leave=False):
            row = rows[index]
            key: Any = ("row", index)
            texts = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
            with contextlib.suppress(InvalidSampleError):  # which is counted when the row is read
                texts = valid_captions(row["caption"])
                shared_id = image_id(row)
                key = image_key(row["image"], image_root) if shared_id is None else shared_id
            if key not in captions:
                captions[key] = []
                self.first_rows.append(index)
            captions[key] += texts
        self.captions = [*captions.values()]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        return {**self.rows[self.first_rows[index]], "caption": self.captions[index]}

    @property
    def features(self) -> Any:
        """Return the columns of a dataset, or None."""
        return getattr(self.rows, "features", None)

    def remove_columns(self, names: Sequence[str]) -> "CaptionedImages":
        """Return the rows of a dataset without some columns, such as the images, which are slow to read."""
        others = copy.copy(self)
        others.rows = self.rows.remove_columns(names)  # type: ignore[attr-defined]
        return others


def has_caption(row: Mapping[str, Any]) -> bool:
    """Return whether a row has a caption that can be used."""
    try:
        return bool(valid_captions(row["caption"]))
    except InvalidSampleError:
        return False


TASK = Captioning
