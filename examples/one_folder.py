"""Load one folder in transformers, sentence-transformers, MTEB, onnxruntime and `albef search`; compare the scores.

    pip install "albef_hf[export,mteb,search,sentence-transformers]"
    python examples/one_folder.py runs/scenes

prints

    | | cosine | log-odds |
    |---|---|---|
    | in transformers | 0.86719 (0e+00) | 1.80596 (0e+00) |
    | in sentence transformers | 0.86719 (1e-07) | 1.80596 (4e-06) |
    | in mteb | 0.86719 (4e-07) | 1.80596 (3e-06) |
    | in onnxruntime | 0.86719 (5e-07) | 1.80596 (5e-06) |
    | in albef search | 0.86719 (2e-07) | 1.80596 (3e-06) |
    768 pairs; skipped 0: nothing

Scenes and their captions are scored by the contrast (cosines, ITC) and by the matching (log-odds, ITM); each function
returns both, (images, texts). In brackets is the largest difference of all pairs from transformers.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForZeroShotImageClassification

from albef_hf import AlbefProcessor
from albef_hf.data.scene_tasks import SceneCaptions


@torch.no_grad()
def in_transformers(source: str, images: list, texts: list[str], folder: str) -> tuple:
    """Score the pairs of an image at a time by the forward pass."""
    model = AutoModelForZeroShotImageClassification.from_pretrained(source, trust_remote_code=True).eval()
    processor = AlbefProcessor.from_pretrained(source)
    rows = [model(**processor(images=[image] * len(texts), text=texts, return_tensors="pt")) for image in images]
    cosines = torch.stack([(row.image_embeds * row.text_embeds).sum(-1) for row in rows])
    return cosines.numpy(), torch.stack([row.itm_logits.diff(dim=1)[:, 0] for row in rows]).numpy()


def in_sentence_transformers(source: str, images: list, texts: list[str], folder: str) -> tuple:
    """Embed by a `SentenceTransformer`, and score pairs by a `CrossEncoder`."""
    from sentence_transformers import CrossEncoder, SentenceTransformer

    embedder = SentenceTransformer(source, trust_remote_code=True)
    matcher = CrossEncoder(source, trust_remote_code=True, activation_fn=torch.nn.Identity())
    log_odds = matcher.predict([(image, text) for image in images for text in texts])
    return embedder.encode(images) @ embedder.encode(texts).T, log_odds.reshape(len(images), len(texts))


def in_mteb(source: str, images: list, texts: list[str], folder: str) -> tuple:
    """Evaluate a task on the same scenes in MTEB, and read the scores that it stores."""
    import mteb
    from mteb_evaluation import SceneImages

    from albef_hf.evaluation.mteb_models import AlbefSearch

    search, stored = AlbefSearch(source, rerank_k=len(images)), []
    for stage, model in (("itc", search.encoder), ("itm", search)):
        mteb.evaluate(model, SceneImages(len(images)), cache=None, prediction_folder=Path(folder, stage))
        found = json.loads(next(Path(folder, stage).rglob("*.json")).read_text())["default"]["test"]
        stored.append([[found[f"text{j}"][f"image{i}"] for j in range(len(texts))] for i in range(len(images))])
    return tuple(np.array(stored))


def in_onnxruntime(source: str, images: list, texts: list[str], folder: str) -> tuple:
    """Export the folder, and score without torch."""
    from albef_hf.export.runtime import OnnxRetrieval
    from albef_hf.export.to_onnx import export_model

    export_model(source, folder)
    model, processor = OnnxRetrieval(folder), AlbefProcessor.from_pretrained(source)
    image_embeds, image_states = model.encode_images(**processor(images=images, return_tensors="np"))
    text_embeds, text_states = model.encode_texts(**processor(text=texts, return_tensors="np"))
    return image_embeds @ text_embeds.T, np.array([model.match_texts(states, text_states) for states in image_states])


def in_albef_search(source: str, images: list, texts: list[str], folder: str) -> tuple:
    """Index the images, and search with each text."""
    from albef_hf.search.commands import load_model
    from albef_hf.search.index import ImageIndex

    index = ImageIndex.build(*load_model(source, None, None, "float32"), images, folder)
    found = [sorted(index.search(text, top_k=len(images), itc_weight=0), key=lambda hit: hit.key) for text in texts]
    return tuple(np.array([[(hit.similarity, hit.score) for hit in hits] for hits in found]).T)


def main(source: str) -> None:
    """Print the scores of the first pair, and the largest differences of all pairs from transformers."""
    rows = [*SceneCaptions(16, 43, 96)]  # those of examples/mteb_evaluation.py
    images, texts = [row["image"] for row in rows], [text for row in rows for text in row["caption"]]
    found, missing = {}, []
    for library in (in_transformers, in_sentence_transformers, in_mteb, in_onnxruntime, in_albef_search):
        try:
            with tempfile.TemporaryDirectory() as folder:
                found[library.__name__] = library(source, images, texts, folder)
        except ImportError as error:
            missing.append(f"{library.__name__} ({error})")
    print("| | cosine | log-odds |\n|---|---|---|")
    for name, scores in found.items():
        pairs = zip(scores, found["in_transformers"], strict=True)
        cells = [f"{one[0, 0]:.5f} ({np.abs(one - right).max():.0e})" for one, right in pairs]
        print(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    print(f"{len(images) * len(texts)} pairs; skipped {len(missing)}: {', '.join(missing) or 'nothing'}")


if __name__ == "__main__":
    main(sys.argv[1])
