"""Search a folder of images by a text: contrast finds candidates, matching orders them.

    python examples/search_folder.py you/albef "two dogs in the snow" --folder ~/Pictures

Without a folder, 500 scenes are written to runs/scene_images and searched:

    albef pretrain --config scenes
    python examples/search_folder.py runs/scenes "a red circle, a blue hexagon and a green ring"

prints, with the model of the first command:

    contrast:  162.png 0.798  312.png 0.787  129.png 0.777  495.png 0.757  11.png 0.738
    matching:  312.png 66.0%  162.png 42.1%  381.png 15.7%  11.png 12.0%  129.png 10.1%
    results.html shows the images, and where the model looks for each word

The index is kept, so that the next search encodes no image, only those that are new. `albef index` and `albef search`
are the same from the command line. Needs `pip install -e ".[search]"`.
"""

import argparse
from pathlib import Path

from albef_hf import AlbefForRetrieval, AlbefProcessor
from albef_hf.data import Scenes
from albef_hf.search.commands import results_page
from albef_hf.search.index import ImageIndex


def write_scenes(folder: Path, count: int) -> Path:
    """Write scenes as images to search."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(Scenes(count, seed=9)):
        row["image"].save(folder / f"{number}.png")
    return folder


def main() -> None:
    """Print the best images before and after reranking, and write a page that shows them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", help="folder or Hub name of a model with a matching head, such as runs/scenes")
    parser.add_argument("text", help="what to search for")
    parser.add_argument("--folder", type=Path, help="folder of images; by default, scenes")
    parser.add_argument("--scenes", type=int, default=500, help="number of scenes")
    parser.add_argument("--rerank_k", type=int, default=16, help="candidates that are matched")
    parser.add_argument("--page", type=Path, default=Path("results.html"), help="page of the results")
    options = parser.parse_args()

    folder = options.folder or write_scenes(Path("runs/scene_images"), options.scenes)
    model = AlbefForRetrieval.from_pretrained(options.model)
    processor = AlbefProcessor.from_pretrained(options.model)
    index = ImageIndex.build(model, processor, folder, f"{folder}.index")

    found = index.search(options.text, top_k=5, rerank_k=0)
    reranked = index.search(options.text, top_k=min(5, options.rerank_k), rerank_k=options.rerank_k)
    print("contrast:", *(f"{hit.key} {hit.similarity:.3f}" for hit in found), sep="  ")
    print("matching:", *(f"{hit.key} {hit.match:.1%}" for hit in reranked), sep="  ")
    page = results_page(index, options.text, reranked)
    options.page.write_text(page, encoding="utf-8")
    print(f"{options.page} shows the images, and where the model looks for each word")


if __name__ == "__main__":
    main()
