"""Compare an image with texts: contrast (ITC) by a cosine, matching (ITM) by a probability.

    albef pretrain --config scenes
    python examples/quickstart.py runs/scenes

prints, with the model of the first command:

    match   cosine  text
     76.2%  +0.842  a green ring, an orange hexagon, a turquoise diamond and a yellow ball
      0.3%  +0.588  a green ring, an orange hexagon, a turquoise diamond and a red ball
      0.1%  -0.042  a blue star above a black cross

Matching reads image and text together, so it costs more and knows more; the cosine compares features that were
computed once.
"""

import argparse

import torch
from PIL import Image

from albef_hf import AlbefForPreTraining, AlbefProcessor
from albef_hf.data import Scenes

CAPTIONS = [
    "a green ring, an orange hexagon, a turquoise diamond and a yellow ball",
    "a green ring, an orange hexagon, a turquoise diamond and a red ball",
    "a blue star above a black cross",
]


def main() -> None:
    """Print both scores of each text."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", help="folder or Hub name of a pretrained model, such as runs/scenes")
    parser.add_argument("--image", help="an image file; by default a scene that the first of the texts describes")
    parser.add_argument("--texts", nargs="+", default=CAPTIONS, help="texts to compare the image with")
    options = parser.parse_args()

    model = AlbefForPreTraining.from_pretrained(options.model).eval()
    processor = AlbefProcessor.from_pretrained(options.model)
    image = Image.open(options.image) if options.image else Scenes(1, seed=7)[0]["image"]

    inputs = processor(images=image, text=options.texts, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)  # one image, several texts
    cosines = outputs.text_embeds @ outputs.image_embeds[0]
    probabilities = model.match_probability(outputs)

    print("match   cosine  text")
    for text, probability, cosine in zip(options.texts, probabilities, cosines, strict=True):
        print(f"{probability:6.1%}  {cosine:+.3f}  {text}")


if __name__ == "__main__":
    main()
