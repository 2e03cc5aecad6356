"""Models on their way through the Hub, each role a process of its own; started by test_hub.py.

    python hub_client.py owner FOLDER      with the package: pushes every head
    python hub_client.py visitor FOLDER    without it: loads them, trains them a step, pushes and loads what has become
    python hub_client.py offline FOLDER    without it and without the Hub: loads from the cache

Each writes to FOLDER what the models make of the same images and texts.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    ProcessorMixin,
    pipeline,
)

# transformers 5.17 offers it at the top to those alone who have torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

HEADS = {
    "AlbefModel": "AutoModel",
    "AlbefForPreTraining": "AutoModelForPreTraining",
    "AlbefForRetrieval": "AutoModelForZeroShotImageClassification",
    "AlbefForQuestionAnswering": "AutoModelForVisualQuestionAnswering",
    "AlbefForImageCaptioning": "AutoModelForImageTextToText",
    "AlbefForVisualReasoning": "AutoModelForSequenceClassification",
    "AlbefForVisualEntailment": "AutoModelForSequenceClassification",
    "AlbefForImageTextClassification": "AutoModelForSequenceClassification",
    "AlbefForTextAssignment": "AutoModelForPreTraining",
}
TEXTS = ["a dog in the snow", "Two red cars!", "a cat", "nothing at all"]
Tensors = dict[str, torch.Tensor]


def images() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (4, 40, 50, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in noise]


def inputs_of(processor: ProcessorMixin, head: str) -> tuple[Tensors, Tensors]:
    """What a head is called with, and what it learns from beside that."""
    inputs = dict(processor(images=images(), text=TEXTS, return_tensors="pt"))
    lessons = {} if head == "AlbefModel" else {"labels": torch.tensor([0, 1, 1, 0])}
    if head == "AlbefForPreTraining":
        column = torch.zeros_like(inputs["input_ids"], dtype=torch.bool).index_fill(1, torch.tensor([1]), True)
        lessons["labels"] = inputs["input_ids"].masked_fill(~column, -100)
        lessons["mlm_input_ids"] = inputs["input_ids"].masked_fill(column, processor.tokenizer.mask_token_id)
    elif head == "AlbefForQuestionAnswering":
        inputs["labels"] = processor.encode_answers(["yes", "no", "two dogs", "red"])["labels"]
        lessons = {}
    elif head == "AlbefForImageCaptioning":
        inputs |= dict(processor.encode_captions(TEXTS, "a picture of"))
        lessons = {"labels": inputs.pop("labels")}
    elif head == "AlbefForVisualReasoning":
        inputs["pixel_values"] = torch.stack([inputs["pixel_values"], inputs["pixel_values"].flip(0)], dim=1)
    elif head == "AlbefForTextAssignment":
        inputs["image_pairs"] = torch.tensor([[0, 1], [2, 1], [3, 2], [3, 0]])
    return inputs, lessons


@torch.no_grad()
def outputs_of(model: PreTrainedModel, processor: ProcessorMixin, head: str) -> Tensors:
    """All tensors that a head returns."""
    outputs = model.eval()(**inputs_of(processor, head)[0], return_dict=True)
    return {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}


def learn(model: PreTrainedModel, processor: ProcessorMixin, head: str) -> None:
    """One step of fine-tuning."""
    inputs, lessons = inputs_of(processor, head)
    outputs = model.train()(**inputs, **lessons, return_dict=True)
    loss = outputs.last_hidden_state.square().mean() if head == "AlbefModel" else outputs.loss
    loss.backward()
    torch.optim.AdamW(model.parameters(), lr=0.01).step()


def load(name: str, head: str, **options) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Model and processor, by the Auto classes alone."""
    model = getattr(transformers, HEADS[head]).from_pretrained(name, **options)
    return model, AutoProcessor.from_pretrained(name, **options)


def pipelines(**trust) -> dict:
    """What pipelines, each from the name of a repository, say of an image, and which code says it."""
    image, boxes = images()[0], [[0, 0, 25, 20], [10, 5, 40, 30]]
    match = pipeline("image-text-matching", model="owner/versions", **trust)
    ground = pipeline("visual-grounding", model="owner/versions", revision="v1.0", **trust)
    classify = pipeline("zero-shot-image-classification", model="owner/AlbefForRetrieval", **trust)
    return {
        "classes": [class_of(match), class_of(ground), class_of(classify.model)],
        "matching": match(image, TEXTS),
        "matching at v1.0": type(match)(ground.model, ground.processor)(image, TEXTS),
        "grounding": ground(image, TEXTS[0], boxes=boxes)["boxes"],
        "zero-shot": classify(image, candidate_labels=TEXTS),
    }


def class_of(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__name__}"


def owner() -> dict:
    import albef_hf
    from albef_hf.data import embedded_tokenizer

    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = albef_hf.AlbefConfig(
        projection_dim=16,
        vision_config={**layers, "image_size": 32},
        text_config={**layers, "num_multimodal_layers": 2, "max_position_embeddings": 40},
    )
    images = transformers.BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = albef_hf.AlbefProcessor(images, embedded_tokenizer(), max_words=20)

    def push(head: str, name: str, **options) -> Tensors:
        model = getattr(albef_hf, head)(config)
        for part in (model, processor):
            part.push_to_hub(name, **options)
        return outputs_of(model, processor, head)

    results = {}
    for head in HEADS:
        outputs = push(head, f"owner/{head}")
        model, own_processor = load(f"owner/{head}", head)  # with the package, no trust is needed
        results[head] = {
            "outputs": outputs,
            "loaded": outputs_of(model, own_processor, head),
            "classes": [class_of(model), class_of(own_processor), class_of(model.config)],
        }
    results["first"] = push("AlbefForRetrieval", "owner/versions")
    HfApi().create_tag("owner/versions", tag="v1.0")
    results["second"] = push("AlbefForRetrieval", "owner/versions")
    results["pipelines"] = pipelines()
    results["private"] = push("AlbefForRetrieval", "owner/private", private=True)
    return results


def visitor() -> dict:
    trust, results = {"trust_remote_code": True}, {}
    for head in HEADS:
        model, processor = load(f"owner/{head}", head, **trust)
        result = {"outputs": outputs_of(model, processor, head), "classes": [class_of(model), class_of(processor)]}
        learn(model, processor, head)
        result["trained"] = outputs_of(model, processor, head)
        for part in (model, processor):
            part.push_to_hub(f"visitor/{head}")
        again, processor = load(f"visitor/{head}", head, **trust)
        result["again"] = outputs_of(again, processor, head)
        result["again_classes"] = [class_of(again), class_of(processor)]
        base = transformers.AutoModel.from_pretrained(f"visitor/{head}", **trust)
        result["base_class"] = class_of(base)
        results[head] = result
    other = transformers.AutoModelForVisualQuestionAnswering.from_pretrained("owner/AlbefForPreTraining", **trust)
    parts = (AutoTokenizer, AutoImageProcessor, AutoConfig)
    results["parts"] = [class_of(part.from_pretrained("owner/AlbefModel", **trust)) for part in parts]
    results["other_head"] = class_of(other)
    results["versions"] = versions(trust)
    results["pipelines"] = pipelines(**trust)
    results["sentence-transformers"] = sentence_transformers_of("owner/versions", "v1.0")
    results["refusals"] = {
        "trust": refusal("owner/versions", trust_remote_code=False),
        "private": refusal("owner/private", **trust),
        "revision": refusal("owner/versions", revision="v9", **trust),
    }
    private = AutoModelForZeroShotImageClassification.from_pretrained("owner/private", token="hf_owner", **trust)
    results["private"] = outputs_of(private, processor, "AlbefForRetrieval")
    return results


def sentence_transformers_of(name: str, revision: str | None = None) -> Tensors:
    """What sentence-transformers, if it is installed, says of the images and texts, from the name of a repository."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return {}
    from sentence_transformers import CrossEncoder, SentenceTransformer

    options = {"trust_remote_code": True, "revision": revision}
    embedder, matcher = SentenceTransformer(name, **options), CrossEncoder(name, **options)
    pairs = list(zip(TEXTS, images(), strict=True))
    return {
        "image_embeds": embedder.encode(images(), convert_to_tensor=True),
        "text_embeds": embedder.encode(TEXTS, convert_to_tensor=True),
        "log_odds": matcher.predict(pairs, activation_fn=torch.nn.Identity(), convert_to_tensor=True),
    }


def versions(trust: dict) -> dict:
    """A repository that has changed: as it is, as it was, and as it was in a folder of its own."""
    folder = snapshot_download("owner/versions", revision="v1.0", local_dir="snapshot")
    results = {}
    for key, name, options in (
        ("main", "owner/versions", {}),
        ("v1.0", "owner/versions", {"revision": "v1.0"}),
        ("folder", folder, {}),
    ):
        model, processor = load(name, "AlbefForRetrieval", **options, **trust)
        results[key] = {"outputs": outputs_of(model, processor, "AlbefForRetrieval"), "class": class_of(model)}
    return results


def refusal(name: str, **options) -> str:
    """The error with which something is not loaded."""
    try:
        AutoModelForZeroShotImageClassification.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "it was loaded"


def offline() -> dict:
    results = {}
    for head in HEADS:
        model, processor = load(f"visitor/{head}", head, trust_remote_code=True)
        results[head] = {"outputs": outputs_of(model, processor, head), "classes": [class_of(model)]}
    model, processor = load("owner/versions", "AlbefForRetrieval", trust_remote_code=True, revision="v1.0")
    results["v1.0"] = outputs_of(model, processor, "AlbefForRetrieval")
    results["pipelines"] = pipelines(trust_remote_code=True)
    results["sentence-transformers"] = sentence_transformers_of("owner/versions", "v1.0")
    return results


if __name__ == "__main__":
    role, folder = sys.argv[1:]
    if role != "owner":
        sys.modules["albef_hf"] = None  # whoever imports it fails, installed or not
    torch.save({"owner": owner, "visitor": visitor, "offline": offline}[role](), Path(folder) / f"{role}.pt")
