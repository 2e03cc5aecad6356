"""Models in MTEB and MIEB: `AlbefEncoder` embeds images and texts (ITC), `AlbefSearch` reranks what it finds (ITM).

    mteb.evaluate(AlbefEncoder("runs/scenes"), mteb.get_tasks(tasks=["Flickr30kT2IRetrieval", "SugarCrepe"]))

`encoder_meta` and `search_meta` describe them as a `ModelMeta`, from which mteb loads them as well.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mteb._create_dataloaders import create_dataloader  # as in the models that mteb contains
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta, SearchEncoderWrapper
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import PromptType
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModel
from transformers.utils.hub import cached_file
from transformers.utils.logging import tqdm

from ..calibration_albef import MatchCalibration, matching_log_odds
from ..momentum import MOMENTUM_FILE
from ..retrieval_albef import MAX_TOKENS, ImageEncoder, encode_texts, evaluation_mode, match
from ..sentence_albef import AlbefMatcher
from ..utils.files import sha256

RERANK_K = 128  # candidates of each query, as the paper has for Flickr30k
CITATION = """@inproceedings{ALBEF,
    title = {Align before Fuse: Vision and Language Representation Learning with Momentum Distillation},
    author = {Junnan Li and Ramprasaath R. Selvaraju and Akhilesh Deepak Gotmare and Shafiq Joty and Caiming Xiong and
        Steven Hoi},
    year = {2021},
    booktitle = {NeurIPS},
}"""


def encoder_meta(source: str, revision: str | None = None) -> ModelMeta:
    """Return the description of a folder or Hub repository as an encoder of images and texts.

    mteb keeps results by name and revision. The revision of a folder is a hash of its files, so that another training
    or calibration does not get the results of the former one. What a folder does not say is None, such as the license,
    the languages and the training data; `model_copy(update={...})` adds it.
    """
    config = AutoConfig.from_pretrained(source, revision=revision)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    is_folder = Path(source).is_dir()
    return ModelMeta(
        loader=partial(AlbefEncoder, source),
        name="/".join(Path(source).resolve().parts[-2:]) if is_folder else source,
        revision=_folder_hash(Path(source)) if is_folder else _commit(source, revision),
        release_date=None,
        languages=None,
        n_parameters=model.num_parameters(),
        n_embedding_parameters=config.text_config.vocab_size * config.text_config.hidden_size,
        memory_usage_mb=4 * model.num_parameters() / 2**20,
        max_tokens=min(MAX_TOKENS, config.text_config.max_tokens),
        embed_dim=config.projection_dim,
        license=None,
        open_weights=None if is_folder else True,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch", "Transformers", "safetensors"],
        reference=None if is_folder else f"https://huggingface.co/{source}",
        similarity_fn_name="cosine",
        use_instructions=False,
        training_datasets=None,
        modalities=["image", "text"],
        model_type=["dense"],
        citation=CITATION,
    )


def search_meta(source: str, revision: str | None = None, rerank_k: int = RERANK_K) -> ModelMeta:
    """Return the description of a folder or Hub repository that retrieves in two stages; see `encoder_meta`."""
    return _with_second_stage(encoder_meta(source, revision), source, rerank_k)


def _with_second_stage(meta: ModelMeta, source: str, rerank_k: int) -> ModelMeta:
    return meta.model_copy(
        update={
            "loader": partial(AlbefSearch, source),
            "model_type": ["dense", "cross-encoder"],
            "experiment_kwargs": {"rerank_k": rerank_k},  # its results have a folder of their own
        }
    )


class AlbefEncoder(AbsEncoder):
    """Embed images and texts in the joint space; an input of both is the sum, as of the encoders that mteb contains.

    Args:
        source: Folder or Hub name of a model with a matching head, pretrained or fine-tuned for retrieval.
        model_name: Name that mteb passes.
        revision: Revision of a Hub repository.
        device: By default a GPU, if there is one.
    """

    def __init__(
        self, source: str, model_name: str | None = None, revision: str | None = None, device: str | None = None
    ):
        matcher = AlbefMatcher.load(source, revision=None if Path(source).is_dir() else revision)
        self.model = matcher.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.processor = matcher.processor
        self.mteb_model_meta = encoder_meta(source, revision)

    @torch.no_grad()
    def encode(
        self,
        inputs: DataLoader,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        show_progress_bar: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the embeddings of all inputs, (inputs, projection), in float32; the other arguments are mteb's."""
        batches = tqdm(inputs, "encode", leave=False, disable=not show_progress_bar)
        with evaluation_mode(self.model):
            return torch.cat([self._embed(batch).float().cpu() for batch in batches])

    def _embed(self, batch: Mapping[str, Any]) -> torch.Tensor:
        embeds = []
        if "image" in batch:
            pixels = self.processor(images=batch["image"], return_tensors="pt").to(self.model.device)
            embeds.append(self.model.get_image_features(**pixels).pooler_output)
        if "text" in batch:
            max_length = int(self.mteb_model_meta.max_tokens)
            tokens = self.processor(text=list(batch["text"]), max_length=max_length, return_tensors="pt")
            ids, mask = (tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
            embeds.append(self.model.get_text_features(ids, mask, return_dict=True).pooler_output)
        return sum(embeds)


class AlbefSearch:
    """Retrieve by the contrast, and rerank the best candidates of each query by matching, as the paper does.

    A task that comes with candidates (reranking) has all of them reranked. A calibrated model orders by its calibrated
    probability. Tasks without retrieval need embeddings, for which there is `AlbefEncoder`.

    Args:
        source: Folder or Hub name of a model with a matching head, pretrained or fine-tuned for retrieval.
        model_name: Name that mteb passes.
        revision: Revision of a Hub repository.
        device: By default a GPU, if there is one.
        rerank_k: Candidates of each query; further ones follow in the order of the contrast.
    """

    def __init__(
        self,
        source: str,
        model_name: str | None = None,
        revision: str | None = None,
        device: str | None = None,
        rerank_k: int = RERANK_K,
    ):
        self.encoder = AlbefEncoder(source, model_name, revision, device)
        self.first_stage = SearchEncoderWrapper(self.encoder)
        self.rerank_k = rerank_k
        self.mteb_model_meta = _with_second_stage(self.encoder.mteb_model_meta, source, rerank_k)
        self.corpus: Any = None

    def index(self, corpus: Any, **kwargs: Any) -> None:
        """Keep the documents that are searched; for the arguments see mteb's `SearchProtocol`."""
        self.corpus = corpus
        self.first_stage.index(corpus, **kwargs)

    def search(
        self,
        queries: Any,
        *,
        task_metadata: TaskMetadata,
        encode_kwargs: Mapping[str, Any],
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> dict[str, dict[str, float]]:
        """Return the scores of documents for each query; for the arguments see mteb's `SearchProtocol`.

        Raises:
            ValueError: Unless the queries are images and the documents texts, or the other way round.
        """
        sides = [task_metadata.get_modalities(kind) for kind in (PromptType.query, PromptType.document)]
        if sorted(sides) != [["image"], ["text"]]:
            raise ValueError(
                f"{task_metadata.name} searches {sides[1]} by {sides[0]}, and matching needs images on one side and "
                "texts on the other: evaluate AlbefEncoder on it."
            )
        first_stage = self.first_stage.search(
            queries, task_metadata=task_metadata, encode_kwargs=encode_kwargs, top_ranked=top_ranked, **kwargs
        )
        reranked = None if top_ranked else self.rerank_k
        candidates = {
            query: sorted(cosines, key=cosines.__getitem__, reverse=True)[:reranked]
            for query, cosines in first_stage.items()
        }
        pairs = [(query, document) for query, documents in candidates.items() for document in documents]
        batch_size = encode_kwargs["batch_size"]
        if sides[0] == ["image"]:
            texts = _texts(self.corpus, task_metadata, PromptType.document)
            log_odds = self._match(queries, texts, pairs, batch_size)
        else:
            texts = _texts(queries, task_metadata, PromptType.query)
            log_odds = self._match(self.corpus, texts, [(image, text) for text, image in pairs], batch_size)
        scores = dict(zip(pairs, log_odds, strict=True))
        return {
            query: self._merge(cosines, {document: scores[query, document] for document in candidates[query]})
            for query, cosines in first_stage.items()
        }

    def _match(
        self, images: Any, texts: Mapping[str, str], pairs: Sequence[tuple[str, str]], batch_size: int
    ) -> list[float]:
        """Return the log-odds of a match of pairs of ids, of an image and of a text; an image is encoded once."""
        model, processor = self.encoder.model, self.encoder.processor
        image_places = {name: place for place, name in enumerate(images["id"])}
        text_places = {name: place for place, name in enumerate(texts)}
        texts_of = defaultdict(list)
        for image, text in pairs:
            texts_of[image_places[image]].append(text_places[text])
        scores: dict[tuple[int, int], float] = {}
        with evaluation_mode(model):
            encoded = encode_texts(model, processor, [*texts.values()], batch_size)
            states = ImageEncoder(model, processor, images["image"], [*texts_of], batch_size).hidden_states()
            for image, hidden_states in tqdm(states, "rerank", total=len(texts_of), leave=False):
                logits = match(model, hidden_states, encoded, torch.tensor(texts_of[image]), batch_size)
                places = [(image, text) for text in texts_of[image]]
                scores |= zip(places, matching_log_odds(logits).tolist(), strict=True)
        return [scores[image_places[image], text_places[text]] for image, text in pairs]

    def _merge(self, cosines: Mapping[str, float], log_odds: Mapping[str, float]) -> dict[str, float]:
        """Return the scores of a query's documents: the reranked ones, and below them the others by their cosine."""
        calibration = MatchCalibration.from_config(self.encoder.model.config)
        scores = {document: calibration.logit(value, cosines[document]) for document, value in log_odds.items()}
        others = {document: cosine for document, cosine in cosines.items() if document not in scores}
        lowest = min(scores.values(), default=0.0)
        return scores | {document: lowest - 2 + cosine for document, cosine in others.items()}


def _texts(dataset: Any, task_metadata: TaskMetadata, prompt_type: PromptType) -> dict[str, str]:
    """Return the texts of queries or documents by id, with titles and instructions, as mteb joins them."""
    batches = create_dataloader(dataset, task_metadata=task_metadata, prompt_type=prompt_type)
    return dict(zip(dataset["id"], (text for batch in batches for text in batch["text"]), strict=True))


def _folder_hash(folder: Path) -> str:
    """Return a hash of the files of a model that its scores depend on."""
    kinds = (".json", ".model", ".safetensors", ".txt")
    files = sorted(path for path in folder.iterdir() if path.suffix in kinds and path.name != MOMENTUM_FILE)
    digests = "".join(f"{path.name} {sha256(path)}\n" for path in files)
    return hashlib.sha256(digests.encode()).hexdigest()


def _commit(name: str, revision: str | None) -> str:
    """Return the commit that a revision of a Hub repository stands for: the name of its folder in the cache."""
    return Path(cached_file(name, "config.json", revision=revision)).parent.name
