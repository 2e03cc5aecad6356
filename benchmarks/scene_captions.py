"""What is right in captions of built-in scenes: a model's, with other images, the most frequent one, retrieved ones.

    python benchmarks/scene_captions.py --model runs/captioning --retriever runs/scenes

Retrieval chooses among one right caption of every scene, so that what it chooses is a sentence that is true of one of
them: a ceiling for a model that knows colors and shapes as well as it does.
"""

import argparse

from accelerate import Accelerator
from transformers import pipeline

import albef_hf  # noqa: F401  # registers the pipeline
from albef_hf import AlbefForImageCaptioning, AlbefProcessor
from albef_hf.data.scene_captions import scene_scores
from albef_hf.data.scene_tasks import SceneDescriptions
from albef_hf.evaluation.exchanged_images import exchange
from albef_hf.tasks.captioning import Captioning

NAMES = ("cider", "objects_named", "objects", "colors", "shapes", "sizes", "relations", "captions_right")
RERANK_K = 16


def main() -> None:
    """Print a table in Markdown, in percent (CIDEr-D: x 100)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/captioning", help="folder written by `albef finetune captioning`")
    parser.add_argument("--retriever", default="runs/scenes", help="folder written by `albef pretrain`")
    parser.add_argument("--rows", type=int, default=500, help="scenes to describe")
    parser.add_argument("--train_rows", type=int, default=2000, help="scenes to find the most frequent caption in")
    options = parser.parse_args()
    processor = AlbefProcessor.from_pretrained(options.model)
    model = AlbefForImageCaptioning.from_pretrained(options.model).eval()
    args = Captioning.arguments_class(model=options.model, max_length=45, validation_size=options.rows)
    task = Captioning(args, processor)
    rows = task.validation_rows()
    accelerator = Accelerator()
    metrics, predictions = task.evaluate(model.to(accelerator.device), rows, accelerator)
    givers = exchange(task.fingerprints, args.seed)
    exchanged = [{"row": row, "caption": predictions[giver]["caption"]} for row, giver in sorted(givers.items())]
    table = {
        "model": metrics,
        "model, images exchanged": task.score(exchanged, rows),
        "most frequent caption": most_frequent(task, rows, options.train_rows),
        f"retrieved by {options.retriever}": retrieved(options.retriever, rows),
    }
    print("| captions |" + "".join(f" {name.replace('_', ' ')} |" for name in NAMES))
    print("|---|" + "---|" * len(NAMES))
    for title, scores in table.items():
        values = (f"{scores[name]:.1f}" if name in scores else "-" for name in NAMES)
        print(f"| {title} | {' | '.join(values)} |")
    for prediction in predictions[:10]:
        print(f"{prediction['caption']}   ({rows[prediction['row']]['caption'][0]})")


def most_frequent(task: Captioning, rows: SceneDescriptions, train_rows: int) -> dict[str, float]:
    """Score the most frequent caption of other scenes."""
    train = SceneDescriptions(train_rows, task.args.seed)
    return {name.removeprefix("most_frequent_"): score for name, score in task.baselines(train, rows).items()}


def retrieved(retriever: str, rows: SceneDescriptions) -> dict[str, float]:
    """Score the caption that matches each scene best, among the first captions of all."""
    described = [rows[index] for index in range(len(rows))]
    captions = [row["caption"][0] for row in described]
    retrieve = pipeline("image-text-retrieval", model=retriever, candidate_texts=captions, rerank_k=RERANK_K)
    best = [retrieve(row["image"], top_k=1)[0]["text"] for row in described]
    return scene_scores(best, [row["objects"] for row in described])


if __name__ == "__main__":
    main()
