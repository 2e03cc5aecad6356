"""What contrast and matching know: how often the right text of an image scores above a wrong one.

    python benchmarks/reproduction/negatives.py --model runs/scenes
    python benchmarks/reproduction/negatives.py --model runs/photographs --files validation.json --image_root FOLDER

Wrong texts are those of other images: any, or one of a batch, drawn as training does, the likelier the higher
contrast ranks it. As long as contrast is unsure, what it knows is worth little among these: a text that it likes is
about as likely a wrong one. Intervals are those of 95 % over the images.
"""

import argparse
import math
import sys

import torch
from tqdm.auto import tqdm

from albef_hf import AlbefForPreTraining, AlbefProcessor
from albef_hf.data import EvaluationImages, Scenes
from albef_hf.data.sources import read_annotations
from albef_hf.losses_albef import sample_hard_negatives
from albef_hf.retrieval_albef import ImageEncoder, encode_texts, match

BATCH = 64
SEED = 43  # of images that `make pretrain` has not seen
SCORES = ("contrast, cosine", "matching, log-odds", "matching, logit of a match")


def main() -> None:
    """Print a table."""
    options = make_parser().parse_args()
    model = AlbefForPreTraining.from_pretrained(options.model).eval()
    processor = AlbefProcessor.from_pretrained(options.model)
    rows = read_annotations(options.files) if options.files else Scenes(options.pictures, SEED, max_objects=4)
    images = EvaluationImages(rows, options.image_root, max_images=options.pictures)
    if len(images) < 2:
        sys.exit("one image has no wrong text: give --pictures 2 or more, of files that have them.")
    torch.manual_seed(0)
    shares = 100 * right_above_wrong(model, processor, images)
    print("| the right one of two texts, % | the other at random | a hard negative |\n|---|---|---|")
    halves = 1.96 * shares.std(0) / len(shares) ** 0.5
    for name, means, errors in zip(SCORES, shares.mean(0).tolist(), halves.tolist(), strict=True):
        print(f"| {name} | " + " | ".join(f"{x:.1f} ± {y:.1f}" for x, y in zip(means, errors, strict=True)) + " |")


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="pretrained, a folder or a name on the Hub")
    parser.add_argument("--files", nargs="+", help="annotations of images; without, scenes are drawn")
    parser.add_argument("--image_root", help="folder that their paths are relative to")
    parser.add_argument("--pictures", type=int, default=1000, help="how many (%(default)s)")
    return parser


@torch.no_grad()
def right_above_wrong(model: AlbefForPreTraining, processor: AlbefProcessor, images: EvaluationImages) -> torch.Tensor:
    """How often the right text is above a random and a hard wrong one, (images, scores, 2), mean of the captions."""
    encoder = ImageEncoder(model, processor, images, range(len(images)), BATCH)
    embeds = encoder.embeds()
    rounds = min(map(len, images.captions))  # with the first caption of each image, with the second ...
    found = torch.zeros(len(images), len(SCORES), 2)
    for captions in zip(*(several[:rounds] for several in images.captions), strict=True):
        texts = encode_texts(model, processor, captions, BATCH)
        wrong = torch.stack([random_texts(len(images)), hard_texts(model, embeds, texts.embeds)], 1)
        hidden_states = tqdm(encoder.hidden_states(), "match", total=len(images), leave=False)
        for (number, states), others in zip(hidden_states, wrong, strict=True):
            candidates = torch.cat([torch.tensor([number]), others])
            logits = match(model, states, texts, candidates)
            scores = torch.stack([texts.embeds[candidates] @ embeds[number], logits.diff(dim=1)[:, 0], logits[:, 1]])
            found[number] += ((scores[:, :1] > scores[:, 1:]) + (scores[:, :1] == scores[:, 1:]) / 2) / rounds
    return found


def random_texts(count: int) -> torch.Tensor:
    """A text of another image for each."""
    return (torch.arange(count) + torch.randint(1, count, (count,))) % count


def hard_texts(model: AlbefForPreTraining, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """A hard negative for each image, from batches as in training."""
    drawn = []
    for some in torch.arange(len(image_embeds)).tensor_split(math.ceil(len(image_embeds) / BATCH)):
        per_image = model.contrastive_head(image_embeds[some], text_embeds[some])
        _, texts = sample_hard_negatives(per_image, per_image.T, ~torch.eye(len(some), dtype=torch.bool))
        drawn.append(some[texts])
    return torch.cat(drawn)


if __name__ == "__main__":
    main()
