"""Search images in a vector database: the database retrieves by embeddings, a `CrossEncoder` reranks what it found.

    pip install 'sentence-transformers>=6' qdrant-client

The images are built-in scenes, the database is Qdrant in this process. A server takes the same calls, holds more
images than one machine has memory for, and adds, filters and replicates while it serves:

    docker run -p 6333:6333 qdrant/qdrant
    python examples/vector_database.py runs/scenes --url http://localhost:6333

On one machine, `albef index` and `albef search` need no database. Without a server,

    albef pretrain --config scenes
    python examples/vector_database.py runs/scenes

prints, with the model of the first command:

    retrieved by Qdrant   R@1 43.4%  R@5 91.4%  R@16 99.8%
    reranked by matching  R@1 42.4%  R@5 94.4%  R@16 99.8%
"""

import argparse

from PIL import Image
from qdrant_client import QdrantClient, models
from sentence_transformers import CrossEncoder, SentenceTransformer

from albef_hf.data import Scenes

COLLECTION = "scenes"


def add_images(
    database: QdrantClient, embedder: SentenceTransformer, images: list[Image.Image], batch_size: int = 64
) -> None:
    """Embed images and store them with their positions in the list; a former collection is replaced."""
    size = embedder.get_embedding_dimension()
    database.delete_collection(COLLECTION)
    database.create_collection(
        COLLECTION, vectors_config=models.VectorParams(size=size, distance=models.Distance.COSINE)
    )
    for start in range(0, len(images), batch_size):
        embeddings = embedder.encode(images[start : start + batch_size], batch_size=batch_size)
        points = [
            models.PointStruct(id=start + offset, vector=embedding.tolist())
            for offset, embedding in enumerate(embeddings)
        ]
        database.upsert(COLLECTION, points)


def retrieve(database: QdrantClient, embedder: SentenceTransformer, text: str, top_k: int) -> list[int]:
    """Return the positions of the images whose embeddings are closest to that of a text."""
    found = database.query_points(COLLECTION, query=embedder.encode(text).tolist(), limit=top_k)
    return [int(point.id) for point in found.points]


def rerank(matcher: CrossEncoder, text: str, images: list[Image.Image], candidates: list[int]) -> list[int]:
    """Return the candidates in the order of their probability to match the text."""
    ranking = matcher.rank(text, [images[candidate] for candidate in candidates])
    return [candidates[int(row["corpus_id"])] for row in ranking]


def main() -> None:
    """Search every scene by a caption, and print the recall before and after reranking."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", help="folder or Hub name of a model with a matching head, such as runs/scenes")
    parser.add_argument("--url", help="address of a Qdrant server; by default, the database is in this process")
    parser.add_argument("--scenes", type=int, default=500, help="number of images, and of captions that search them")
    parser.add_argument("--rerank_k", type=int, default=16, help="number of images that are retrieved and reranked")
    options = parser.parse_args()

    rows = Scenes(options.scenes, seed=1)
    images, captions = [row["image"] for row in rows], [row["caption"][0] for row in rows]
    embedder = SentenceTransformer(options.model, trust_remote_code=True)
    matcher = CrossEncoder(options.model, trust_remote_code=True)
    database = QdrantClient(url=options.url) if options.url else QdrantClient(":memory:")
    add_images(database, embedder, images)

    retrieved = [retrieve(database, embedder, caption, options.rerank_k) for caption in captions]
    reranked = [
        rerank(matcher, caption, images, candidates) for caption, candidates in zip(captions, retrieved, strict=True)
    ]
    for name, results in (("retrieved by Qdrant", retrieved), ("reranked by matching", reranked)):
        recalls = [
            f"R@{k} {sum(right in found[:k] for right, found in enumerate(results)) / len(results):.1%}"
            for k in (1, 5, options.rerank_k)
        ]
        print(f"{name:22s}{'  '.join(recalls)}")


if __name__ == "__main__":
    main()
