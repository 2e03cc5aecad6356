"""What all runs start from, as the paper's start from DeiT and BERT: encoders that have been trained each for itself.

The image encoder is a ViT that has learned which shapes of which colors a scene has, the text side a BERT that has
learned to fill gaps in captions. Neither has seen an image beside its caption.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from tqdm.auto import trange
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    BlipImageProcessorPil,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from albef_hf.data import Augmentation, Scenes, mask_tokens
from albef_hf.data.scene_tasks import SceneEntailment, ScenePairs, SceneQuestions
from albef_hf.data.scenes import COLORS, SHAPE_NAMES
from albef_hf.processing_albef import clean_caption

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LABELS = [(color, shape) for color in COLORS for shape in SHAPE_NAMES]
SEED = 0  # of their scenes, which no run sees
Batch = dict[str, torch.Tensor]


def save_encoders(recipe: Path, folder: Path) -> None:
    """Train both and save them as `vision` and `text` of a folder, unless they are there already.

    Args:
        recipe: YAML with `vision` and `text`, settings of a `ViTConfig` and a `BertConfig`, and how both are trained:
            `scenes`, `steps`, `batch_size`, `learning_rate`.
        folder: Where they go.
    """
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    scenes = Scenes(settings["scenes"], SEED)
    if not (folder / "text" / "config.json").exists():
        tokenizer = scene_tokenizer(folder / "text")
        set_seed(SEED)
        text = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **settings["text"]))
        learn(text, masked_captions(scenes, tokenizer, settings["batch_size"]), settings)
        text.save_pretrained(folder / "text")
    if not (folder / "vision" / "config.json").exists():
        set_seed(SEED)
        vision = ViTForImageClassification(
            ViTConfig(num_labels=len(LABELS), problem_type="multi_label_classification", **settings["vision"])
        )
        learn(vision, labeled_images(scenes, vision.config.image_size, settings["batch_size"]), settings)
        vision.save_pretrained(folder / "vision")


def scene_tokenizer(folder: Path) -> BertTokenizer:
    """A tokenizer of the words that scenes and their tasks use, saved in a folder.

    With all of BERT's, most of so small a model would be embeddings of words that never occur.
    """
    rows, size = 1000, 16  # the images are not looked at
    texts = [caption for row in Scenes(rows, SEED, size) for caption in row["caption"]]
    texts += [*SceneQuestions.answers, *(row["question"] for row in SceneQuestions(rows, SEED, size))]
    texts += [row["sentence"] for kind in (SceneEntailment, ScenePairs) for row in kind(rows, SEED, size)]
    words = sorted({word for text in texts for word in clean_caption(text).split()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join((*SPECIAL_TOKENS, *words)) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def labeled_images(scenes: Scenes, image_size: int, batch_size: int) -> Iterator[Batch]:
    """Images, and which of `LABELS` they show; without end."""
    images = BlipImageProcessorPil()
    augmentation = Augmentation(image_size, images.image_mean, images.image_std, 0.8, 0)

    def sample(row: dict, rng: np.random.Generator) -> Batch:
        shown = {(thing["color"], thing["shape"]) for thing in row["objects"]}
        labels = torch.tensor([float(label in shown) for label in LABELS])
        return {"pixel_values": augmentation(row["image"], rng)[0], "labels": labels}

    for samples in drawn(scenes, sample, batch_size):
        yield {name: torch.stack([one[name] for one in samples]) for name in samples[0]}


def masked_captions(scenes: Scenes, tokenizer: BertTokenizer, batch_size: int) -> Iterator[Batch]:
    """Captions with gaps; without end."""
    for samples in drawn(scenes, lambda row, rng: clean_caption(row["caption"][rng.integers(3)]), batch_size):
        tokens = tokenizer(samples, padding=True, return_tensors="pt")
        masked, labels = mask_tokens(tokens["input_ids"], tokenizer)
        yield {"input_ids": masked, "attention_mask": tokens["attention_mask"], "labels": labels}


def drawn(scenes: Scenes, sample: Callable, batch_size: int) -> Iterator[list]:
    """Samples of scenes drawn at random, a batch at a time."""
    rng = np.random.default_rng(SEED)
    while True:
        yield [sample(scenes[int(index)], rng) for index in rng.integers(len(scenes), size=batch_size)]


def learn(model: PreTrainedModel, batches: Iterator[Batch], settings: dict) -> None:
    """Train a model on what it calls a loss."""
    optimizer = torch.optim.AdamW(model.parameters(), settings["learning_rate"], weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings["learning_rate"], settings["steps"])
    steps = trange(settings["steps"], desc=type(model).__name__)
    for _ in steps:
        loss = model(**next(batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        steps.set_postfix(loss=f"{loss.item():.3f}")
