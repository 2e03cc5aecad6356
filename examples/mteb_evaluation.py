"""Evaluate a model in MTEB: retrieval and compositionality of its image benchmark, MIEB.

    pip install -e ".[mteb]"
    python examples/mteb_evaluation.py you/albef

The data sets come from the Hub. Without a network, built-in scenes take their place:

    albef pretrain --config scenes
    python examples/mteb_evaluation.py runs/scenes --scenes 100

prints, with the model of the first command:

    SceneI2TRetrieval        ITC        hit_rate_at_1 74.00  hit_rate_at_5 97.00  hit_rate_at_10 100.00
    SceneT2IRetrieval        ITC        hit_rate_at_1 75.00  hit_rate_at_5 100.00  hit_rate_at_10 100.00
    SceneChoice              ITC        text_acc 60.00
    SceneI2TRetrieval        reranked   hit_rate_at_1 78.00  hit_rate_at_5 100.00  hit_rate_at_10 100.00
    SceneT2IRetrieval        reranked   hit_rate_at_1 77.00  hit_rate_at_5 100.00  hit_rate_at_10 100.00

Retrieval is evaluated by the contrast alone and with reranking. Tasks that choose between captions know only
embeddings, so their scores are those of the contrast; `albef evaluate pair_choice` has those of matching.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import mteb
from datasets import Dataset
from mteb.abstasks.image.image_text_pair_classification import AbsTaskImageTextPairClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval

from albef_hf.data.scene_tasks import SceneCaptions, SceneChoices
from albef_hf.evaluation.mteb_models import RERANK_K, AlbefSearch

RETRIEVAL = ("Flickr30kI2TRetrieval", "Flickr30kT2IRetrieval", "MSCOCOI2TRetrieval", "MSCOCOT2IRetrieval")
CHOICES = (
    "Winoground",
    "SugarCrepe",
    "AROCocoOrder",
    "AROFlickrOrder",
    "AROVisualAttribution",
    "AROVisualRelation",
)
SEED = 43  # of the rows of `albef evaluate`, by default
IMAGE_SIZE = 96


def describe_scenes(name: str, kind: str, category: str, main_score: str) -> mteb.TaskMetadata:
    """Return the metadata of a task on built-in scenes."""
    return mteb.TaskMetadata(
        name=name,
        description="Drawings of colored shapes with synthetic captions.",
        dataset={"path": "built-in scenes", "revision": "1"},
        type=kind,
        category=category,
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=main_score,
        modalities=["text", "image"],
        bibtex_citation="",
    )


class SceneRetrieval(AbsTaskRetrieval):
    """Retrieval among scenes; subclasses say in which direction.

    Args:
        scenes: Number of images, which have three captions each.
    """

    def __init__(self, scenes: int):
        super().__init__()
        self.scenes = scenes

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Draw the scenes of `albef evaluate retrieval`."""
        if self.data_loaded:
            return
        images: list[dict[str, Any]] = []
        texts: list[dict[str, str]] = []
        pairs: list[tuple[str, str]] = []
        for index, row in enumerate(SceneCaptions(self.scenes, SEED, IMAGE_SIZE)):
            images.append({"id": f"image{index}", "image": row["image"]})
            for caption in row["caption"]:
                pairs.append((f"image{index}", f"text{len(texts)}"))
                texts.append({"id": f"text{len(texts)}", "text": caption})
        corpus = Dataset.from_list(images)
        queries = Dataset.from_list(texts)
        if self.metadata.category == "i2t":
            corpus, queries = queries, corpus
        else:
            pairs = [(text, image) for image, text in pairs]
        relevant: dict[str, dict[str, int]] = {}
        for query, document in pairs:
            relevant.setdefault(query, {})[document] = 1
        split = {"corpus": corpus, "queries": queries, "relevant_docs": relevant, "top_ranked": None}
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class SceneTexts(SceneRetrieval):
    """Find the texts of an image."""

    metadata = describe_scenes("SceneI2TRetrieval", "Any2AnyRetrieval", "i2t", "hit_rate_at_1")


class SceneImages(SceneRetrieval):
    """Find the image of a text."""

    metadata = describe_scenes("SceneT2IRetrieval", "Any2AnyRetrieval", "t2i", "hit_rate_at_1")


class SceneCaptionChoice(AbsTaskImageTextPairClassification):
    """Choose the caption of a scene, as `albef evaluate pair_choice` does.

    Args:
        scenes: Number of images, each with a right and a wrong caption.
    """

    metadata = describe_scenes("SceneChoice", "Compositionality", "i2t", "text_acc")
    images_column_names = ("image",)
    texts_column_names = ("caption", "wrong_caption")

    def __init__(self, scenes: int):
        super().__init__()
        self.scenes = scenes

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Draw the scenes of `albef evaluate pair_choice`."""
        if not self.data_loaded:
            self.dataset = {"test": Dataset.from_list([*SceneChoices(self.scenes, SEED, IMAGE_SIZE)])}
            self.data_loaded = True


def scene_tasks(scenes: int) -> list[mteb.AbsTask]:
    """Return the tasks on built-in scenes."""
    return [SceneTexts(scenes), SceneImages(scenes), SceneCaptionChoice(scenes)]


def evaluate(
    source: str, tasks: Sequence[mteb.AbsTask], rerank_k: int, cache: mteb.ResultCache | None
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the scores of each task by the contrast, and of retrieval also with reranking.

    Args:
        source: Folder or Hub name of a model with a matching head.
        tasks: Tasks of image and text.
        rerank_k: Candidates of each query.
        cache: Keeps the results of tasks; a repeated evaluation skips those.
    """
    search = AlbefSearch(source, rerank_k=rerank_k)
    retrieval = [task for task in tasks if isinstance(task, AbsTaskRetrieval)]
    scores = {}
    for stage, model, some in (("ITC", search.encoder, tasks), ("reranked", search, retrieval)):
        if some:
            results = mteb.evaluate(model, some, encode_kwargs={"batch_size": 64}, cache=cache).task_results
            scores |= {(result.task_name, stage): result.scores["test"][0] for result in results}
    return scores


def main() -> None:
    """Evaluate and print the main scores, and the hit rates of retrieval, which papers call recall."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", help="folder or Hub name of a model with a matching head, such as runs/scenes")
    parser.add_argument("--tasks", nargs="+", default=[*RETRIEVAL, *CHOICES], help="names of mteb's tasks")
    parser.add_argument("--scenes", type=int, help="evaluate on so many built-in scenes instead")
    parser.add_argument("--rerank_k", type=int, default=RERANK_K, help="candidates of each query that are reranked")
    parser.add_argument("--cache", help="folder of the results; default: that of mteb. Scenes are not kept")
    options = parser.parse_args()

    tasks = scene_tasks(options.scenes) if options.scenes else [*mteb.get_tasks(tasks=options.tasks)]
    cache = None if options.scenes else mteb.ResultCache(options.cache) if options.cache else mteb.ResultCache()
    main_scores = {task.metadata.name: task.metadata.main_score for task in tasks}
    for (task, stage), scores in evaluate(options.model, tasks, options.rerank_k, cache).items():
        names = [main_scores[task], *(f"hit_rate_at_{k}" for k in (1, 5, 10))]
        shown = "  ".join(f"{name} {100 * scores[name]:.2f}" for name in dict.fromkeys(names) if name in scores)
        print(f"{task:24s} {stage:10s} {shown}")


if __name__ == "__main__":
    main()
