"""Draw where a model looks for each word of a text (Grad-CAM, figures 4 to 6 of the paper).

    albef pretrain --config scenes
    python examples/heat_maps.py runs/scenes

writes heat_maps.png and prints, with the model of the first command:

    match 76.2%; the hottest of 6 x 6 patches of each word:
    green        row 4, column 4, heat 0.0042
    ring         row 1, column 1, heat 0.0001
    orange       row 1, column 1, heat 0.00022
    hexagon      row 0, column 3, heat 9.8e-05
    turquoise    row 4, column 4, heat 0.0015
    diamond      row 2, column 4, heat 0.00071
    yellow       row 1, column 4, heat 0.0006
    ball         row 1, column 4, heat 0.0057

Heat is how much a word weighs in the matching score, not whether it is in the image: that is what the probability
says, with which the colors of the drawing fade. All words of a text have one scale.
"""

import argparse

from PIL import Image

from albef_hf import AlbefForPreTraining, AlbefProcessor
from albef_hf.data import Scenes
from albef_hf.heatmaps_albef import heatmap_grid, match_probabilities
from albef_hf.search.html_report import word_maps

TEXT = "a green ring, an orange hexagon, a turquoise diamond and a yellow ball"


def main() -> None:
    """Draw the heat maps of the words of a text, and print the hottest place of each."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", help="folder or Hub name of a model with a matching head, such as runs/scenes")
    parser.add_argument("--image", help="an image file; by default a scene, which the text describes")
    parser.add_argument("--text", default=TEXT, help="text of several words")
    parser.add_argument("--output", default="heat_maps.png", help="image to write")
    options = parser.parse_args()

    model = AlbefForPreTraining.from_pretrained(options.model).eval()
    processor = AlbefProcessor.from_pretrained(options.model)
    image = Image.open(options.image) if options.image else Scenes(1, seed=7)[0]["image"]

    inputs = processor(images=image, text=[options.text], return_tensors="pt")
    probability = match_probabilities(model, **inputs).item()
    words, maps = word_maps(model, processor, options.text, image)  # without "a", "and" and the like
    heatmap_grid(image, words, maps, probability=probability).save(options.output)

    print(f"match {probability:.1%}; the hottest of {maps.shape[1]} x {maps.shape[2]} patches of each word:")
    for word, heat in zip(words, maps, strict=True):
        row, column = divmod(heat.argmax().item(), maps.shape[2])
        print(f"{word:12s} row {row}, column {column}, heat {heat.max():.2g}")


if __name__ == "__main__":
    main()
