"""Attack ALBEF: change every pixel a little, replace a word, or both, and count how often the answer becomes wrong.

    albef pretrain --config scenes && albef finetune entailment --config scenes
    python examples/attack.py runs/scenes runs/entailment

Images are attacked by FGSM (Goodfellow et al. 2015, arXiv 1412.6572) and PGD (Madry et al. 2018, arXiv 1706.06083)
within epsilon / 255 of each pixel, and rounded to the 8 bits of a file. Of a text, the word that matters most is
replaced by one that the masked-language head finds likely there, as in BERT-Attack (Li et al. 2020, arXiv
2004.09984). Nothing keeps the meaning: how many words were replaced by synonyms is printed, and other sentences may be
rightly rejected. Both in turn, text first, is the order of Co-Attack (Zhang et al. 2022, arXiv 2206.09391). The data
are built-in scenes; for others, change `make_tasks`. It prints how often each attack makes a right answer wrong, which
docs/guides/attacks.md has as a table.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from albef_hf import (
    AlbefForPreTraining,
    AlbefForRetrieval,
    AlbefForVisualEntailment,
    AlbefProcessor,
    WithNormalization,
)
from albef_hf.data import Scenes
from albef_hf.data.scene_tasks import SceneEntailment
from albef_hf.data.scenes import SHAPE_NAMES, SIZE_NAMES
from albef_hf.retrieval_albef import score_all

BATCH_SIZE = 32
SYNONYMS = [{*names} for names in (*SHAPE_NAMES.values(), *SIZE_NAMES.values())]
Inputs = dict[str, torch.Tensor]  # texts, and one image or one for each text, with pixels in [0, 1]
Score = Callable[[Inputs], torch.Tensor]  # what an attack lowers, (texts,)


class Task(NamedTuple):
    """Texts with one image each, what an attack lowers for each of them, and which answers are right."""

    images: list[Image.Image]
    texts: list[str]
    score: Callable[[slice, Inputs], torch.Tensor]  # of some rows, (texts,)
    is_right: Callable[[list[Image.Image], list[str]], torch.Tensor]  # (directions, texts)


def make_tasks(options: argparse.Namespace, processor: AlbefProcessor) -> dict[str, Task]:
    """Return retrieval, and entailment if there is a model for it, on scenes that no training has seen."""
    rows = Scenes(options.rows, seed=options.seed)
    matcher = AlbefForRetrieval.from_pretrained(options.model).eval()
    wrapped = WithNormalization(matcher, processor)

    def pair_score(rows: slice, inputs: Inputs) -> torch.Tensor:
        outputs = wrapped(**inputs)
        cosines = (outputs.text_embeds * outputs.image_embeds).sum(-1)
        return outputs.itm_logits.diff(dim=-1)[:, 0] + cosines / matcher.contrastive_head.temperature

    def is_found(images: list[Image.Image], texts: list[str]) -> torch.Tensor:
        scores = score_all(matcher, processor, images, [[text] for text in texts])
        first = [ranking.reranked()[:, 0] for ranking in (scores.image_to_text, scores.text_to_image)]
        return torch.stack(first) == torch.arange(len(texts))

    images, captions = [row["image"] for row in rows], [row["caption"][0] for row in rows]
    tasks = {"image to text, text to image": Task(images, captions, pair_score, is_found)}
    if options.entailment_model:
        tasks["entailment"] = entailment_task(options, processor)
    return tasks


def entailment_task(options: argparse.Namespace, processor: AlbefProcessor) -> Task:
    """Return the sentences about scenes, with the model that judges them."""
    rows = list(SceneEntailment(options.rows, seed=options.seed))
    classifier = AlbefForVisualEntailment.from_pretrained(options.entailment_model).eval()
    wrapped = WithNormalization(classifier, processor)
    labels = torch.tensor([classifier.config.label2id[row["label"]] for row in rows])

    def label_score(rows: slice, inputs: Inputs) -> torch.Tensor:
        log_probabilities = wrapped(**inputs).logits.log_softmax(-1)
        return log_probabilities[range(len(log_probabilities)), labels[rows].expand(len(log_probabilities))]

    @torch.no_grad()
    def is_classified(images: list[Image.Image], texts: list[str]) -> torch.Tensor:
        inputs = processor(images=images, text=texts, return_tensors="pt")
        return (classifier(**inputs).logits.argmax(-1) == labels)[None]

    return Task([row["image"] for row in rows], [row["sentence"] for row in rows], label_score, is_classified)


def attack_pixels(score: Score, inputs: Inputs, epsilon: float, steps: int) -> torch.Tensor:
    """Return the pixels after PGD, or after FGSM if there is one step; without any, after random noise."""
    start = inputs["pixel_values"]
    if not steps:
        return (start + epsilon * torch.randn_like(start).sign()).clamp(0, 1)
    noise = epsilon * (2 * torch.rand_like(start) - 1)
    pixels = (start + noise).clamp(0, 1) if steps > 1 else start.clone()
    for _ in range(steps):
        pixels.requires_grad_()
        (gradient,) = torch.autograd.grad(score(inputs | {"pixel_values": pixels}).sum(), pixels)
        step = 2.5 * epsilon / steps if steps > 1 else epsilon
        pixels = (pixels.detach() - step * gradient.sign()).clamp(start - epsilon, start + epsilon).clamp(0, 1)
    return pixels


@torch.no_grad()
def replace_word(
    score: Score, mlm: nn.Module, processor: AlbefProcessor, inputs: Inputs, min_probability: float
) -> tuple[str, set[str]]:
    """Return a text with the replacement of one word that lowers its score most, and both words, if any does."""
    tokenizer, ids = processor.tokenizer, inputs["input_ids"]

    def scores(candidates: torch.Tensor) -> torch.Tensor:
        return score(inputs | {"input_ids": candidates, "attention_mask": torch.ones_like(candidates)})

    tokens = [*tokenizer.convert_ids_to_tokens(ids[0].tolist()), ""]
    special = tokenizer.all_special_tokens
    words = [i for i, one in enumerate(tokens[:-1]) if one not in special and "##" not in one + tokens[i + 1]]
    if not words:  # that are one token
        return tokenizer.decode(ids[0], skip_special_tokens=True), set()
    masked = ids.repeat(len(words), 1)
    masked[range(len(words)), words] = tokenizer.mask_token_id
    most_important = scores(masked).argmin()
    position, masked = words[most_important], masked[most_important, None]
    logits = mlm(input_ids=masked, pixel_values=inputs["pixel_values"]).logits[0, position]
    likely = (logits.softmax(-1) >= min_probability).nonzero()[:, 0].tolist()
    likely = [token for token in likely if tokenizer.convert_ids_to_tokens(token).isalpha()]  # whole words
    candidates = ids.repeat(1 + len(likely), 1)
    candidates[1:, position] = torch.tensor(likely)
    best = candidates[scores(candidates).argmin()]
    pair = {tokens[position], *tokenizer.convert_ids_to_tokens([best[position].item()])}
    return tokenizer.decode(best, skip_special_tokens=True), pair if len(pair) == 2 else set()


def change_images(
    task: Task, processor: AlbefProcessor, pixels: torch.Tensor, texts: list[str], epsilon: int, steps: int
) -> list[Image.Image]:
    """Return the images of a task after `attack_pixels`, a batch at a time."""
    images = []
    for start in tqdm(range(0, len(texts), BATCH_SIZE), desc=f"{steps} steps, {epsilon} / 255", leave=False):
        rows = slice(start, start + BATCH_SIZE)
        inputs = {**processor(text=texts[rows], return_tensors="pt"), "pixel_values": pixels[rows]}
        changed = attack_pixels(partial(task.score, rows), inputs, epsilon / 255, steps)
        images += to_images(changed)
    return images


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """Return (images, 3, height, width) pixels in [0, 1] as images of 8 bits."""
    return [Image.fromarray(one.permute(1, 2, 0).mul(255).round().byte().numpy()) for one in pixels]


def attack(
    task: Task, processor: AlbefProcessor, mlm: WithNormalization, options: argparse.Namespace
) -> dict[str, torch.Tensor]:
    """Return which answers are right before and after each attack, each (directions, texts)."""
    pixels = mlm.denormalize(processor(images=task.images, return_tensors="pt")["pixel_values"])
    pixels = pixels.mul(255).round() / 255  # of the size that the model sees
    texts = [processor.clean(text, processor.max_words) for text in task.texts]
    images = to_images(pixels)
    results = {"none": task.is_right(images, texts)}
    for epsilon in options.epsilon:
        for name, steps in (("random noise", 0), ("FGSM", 1), (f"PGD, {options.steps} steps", options.steps)):
            changed = change_images(task, processor, pixels, texts, epsilon, steps)
            results[f"{name}, {epsilon} / 255"] = task.is_right(changed, texts)
    replaced, swapped = [], []
    for row, text in enumerate(tqdm(texts, desc="words", leave=False)):
        inputs = {**processor(text=[text], return_tensors="pt"), "pixel_values": pixels[row, None]}
        score = partial(task.score, slice(row, row + 1))
        text, pair = replace_word(score, mlm, processor, inputs, options.min_probability)
        replaced.append(text)
        swapped += [pair] if pair else []
    results["a word"] = task.is_right(images, replaced)
    for epsilon in options.epsilon:
        changed = change_images(task, processor, pixels, replaced, epsilon, options.steps)
        results[f"a word, then PGD, {epsilon} / 255"] = task.is_right(changed, replaced)
    synonyms = sum(any(pair <= names for names in SYNONYMS) for pair in swapped)
    print(f"words replaced in {len(texts)} texts: {len(swapped)}, of them by a synonym: {synonyms}")
    return results


def main() -> None:
    """Print the success rate of each attack: the share of right answers that become wrong."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", help="folder or Hub name of a pretrained model, such as runs/scenes")
    parser.add_argument("entailment_model", nargs="?", help="the same of a model for entailment")
    parser.add_argument("--mlm_model", help="the same of one with a masked-language head, if `model` has none")
    parser.add_argument("--rows", type=int, default=200, help="number of images, each with a text")
    parser.add_argument("--epsilon", type=int, nargs="+", default=[1, 2, 4], help="largest changes of a pixel, / 255")
    parser.add_argument("--steps", type=int, default=10, help="steps of PGD")
    parser.add_argument("--min_probability", type=float, default=0.05, help="of a word that may replace another")
    parser.add_argument("--seed", type=int, default=1, help="seed of the scenes, and of random noise")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    processor = AlbefProcessor.from_pretrained(options.model)
    mlm_model = options.mlm_model or options.model
    mlm, report = AlbefForPreTraining.from_pretrained(mlm_model, output_loading_info=True)
    if report["missing_keys"]:
        parser.error(f"{mlm_model} has no masked-language head: pass --mlm_model with the pretrained model")
    mlm = WithNormalization(mlm.eval(), processor)
    for name, task in make_tasks(options, processor).items():
        results = attack(task, processor, mlm, options)
        before = results.pop("none")
        print(f"{name}: right before {', '.join(f'{share:.1%}' for share in before.float().mean(1))}; success of")
        for kind, after in results.items():
            rates = (before & ~after).sum(1) / before.sum(1)
            print(f"  {kind:30s}{'  '.join(f'{rate:6.1%}' for rate in rates)}")


if __name__ == "__main__":
    main()
