"""The model card of a folder, from what is known: its head, its training, its metrics, where its weights come from."""

import csv
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

TEMPLATE = Path(__file__).with_name("model_card_template.md")
CONVERSION_FILE = "conversion.json"  # which albef_hf.convert leaves
EMISSIONS_FILE = "emissions.csv"  # which codecarbon leaves, where somebody has it running

# What the Hub calls a head's task, where it has a name for it.
PIPELINE_TAGS = {
    "AlbefForPreTraining": "zero-shot-image-classification",
    "AlbefForRetrieval": "zero-shot-image-classification",
    "AlbefForQuestionAnswering": "visual-question-answering",
}
# What else a head is looked for as.
TAGS = {
    "AlbefForPreTraining": ["image-text-retrieval", "image-text-matching", "pretraining"],
    "AlbefForRetrieval": ["image-text-retrieval", "image-text-matching", "visual-grounding"],
    "AlbefForQuestionAnswering": ["vqa"],
    "AlbefForVisualReasoning": ["nlvr2", "visual-reasoning"],
    "AlbefForVisualEntailment": ["snli-ve", "visual-entailment"],
    "AlbefForTextAssignment": ["nlvr2", "pretraining"],
}
SHOWN_OPTIONS = (
    "learning_rate",
    "min_learning_rate",
    "warmup_steps",
    "weight_decay",
    "alpha",
    "momentum",
    "queue_size",
    "mixed_precision",
    "seed",
)


@dataclass
class Training:
    """How a model was trained.

    Args:
        options: All options of the run.
        steps: Optimizer steps.
        seconds: Wall-clock time, evaluations included.
        processes: Number of processes.
        command: What repeats it.
        data: What it was trained on, in words.
        dataset: Its name on the Hub, if it is there.
        base_model: What it started from, a name on the Hub or a folder.
    """

    options: Mapping[str, Any]
    steps: int
    seconds: float
    processes: int
    command: str
    data: str
    dataset: str | None = None
    base_model: str | None = None

    @property
    def started_from(self) -> str:
        """The base model; of a folder its name alone, since its path is nobody's business."""
        return on_the_hub(self.base_model) or Path(self.base_model).name

    def procedure(self) -> dict[str, Any]:
        """What a reader wants to know first, by name."""
        per_step = self.options["batch_size"] * self.options["gradient_accumulation_steps"]
        length = {"optimizer steps": self.steps, "pairs or rows per step": per_step * self.processes}
        shown = {name.replace("_", " "): self.options[name] for name in SHOWN_OPTIONS}
        took = f"{self.seconds / 60:.1f} minutes, on {hardware(self.processes)}"
        return {**length, **shown, "took": took}


@dataclass
class Evaluation:
    """What was measured.

    Args:
        metrics: By name.
        protocol: How, in a sentence or two.
        data: On what, in words.
        dataset: Its name on the Hub, if it is there.
        baselines: What was reached without the model, or without pictures.
    """

    metrics: Mapping[str, float]
    protocol: str
    data: str
    dataset: str | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)


def hardware(processes: int) -> str:
    """What the processes of this run compute on."""
    if torch.cuda.is_available():
        return f"{processes} x {torch.cuda.get_device_name()}"
    return f"{processes} process(es) of {torch.get_num_threads()} CPU thread(s) ({platform.machine()})"


def model_card(
    folder: Path,
    repo_id: str,
    training: Training | None = None,
    evaluation: Evaluation | None = None,
) -> ModelCard:
    """The card of the model in a folder; whatever is not known is left out, and nothing is made up.

    Args:
        folder: Holds `config.json`, and maybe `conversion.json` and codecarbon's `emissions.csv`.
        repo_id: What the snippet loads: a name on the Hub, or a folder.
        training: How it was trained.
        evaluation: What was measured.

    Raises:
        ValueError: If the folder holds no model of a class that is known here.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    head = (config.get("architectures") or [None])[0]
    if head not in TAGS:
        raise ValueError(f"{folder} holds {head}, for which there is no card; choose one of {', '.join(TAGS)}.")
    conversion, emissions = _json(folder / CONVERSION_FILE), _emissions(folder / EMISSIONS_FILE)
    data = ModelCardData(
        language="en",
        license="bsd-3-clause"
        if conversion
        else None,  # the original's; whose weights these are says who trained them
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS.get(head),
        tags=["albef", "vision-language", *TAGS[head]],
        datasets=[training.dataset] if training and training.dataset else None,
        base_model=on_the_hub(training.base_model) if training else None,
        model_name=repo_id.split("/")[-1],
        eval_results=_eval_results(evaluation, head) if evaluation else None,
        metrics=sorted({_metric_type(name) for name in _headline(evaluation)}) if evaluation else None,
        co2_eq_emissions=emissions,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        head=head,
        config=config,
        training=training,
        evaluation=evaluation,
        conversion=conversion,
        emissions=emissions,
        teacher=(folder / "momentum.safetensors").exists(),
    )


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _emissions(path: Path) -> dict[str, Any] | None:
    """Measured emissions in the Hub's words, in grams of CO2 equivalents."""
    if not path.exists():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        runs = list(csv.DictReader(file))
    return {
        "emissions": round(1000 * sum(float(run["emissions"]) for run in runs), 3),
        "source": "codecarbon",
        "training_type": "pretraining and fine-tuning",
        "geographical_location": runs[-1].get("country_name") or "unknown",
        "hardware_used": runs[-1].get("gpu_model") or runs[-1].get("cpu_model") or "unknown",
    }


def on_the_hub(name: str | None) -> str | None:
    """The name, if it may be one on the Hub; None for a folder."""
    return name if name and not Path(name).exists() and name.count("/") <= 1 else None


def _headline(evaluation: Evaluation) -> dict[str, float]:
    """Metrics that stand for the model, without their parts and counts."""
    return {name: value for name, value in evaluation.metrics.items() if "/" not in name and name != "rows_left_out"}


def _metric_type(name: str) -> str:
    return "recall" if "_r" in name else "accuracy"


def _eval_results(evaluation: Evaluation, head: str) -> list[EvalResult]:
    task = PIPELINE_TAGS.get(head) or TAGS[head][-1]
    return [
        EvalResult(
            task_type=task,
            dataset_type=evaluation.dataset or "other",
            dataset_name=evaluation.data,
            metric_type=_metric_type(name),
            metric_name=name,
            metric_value=round(value, 2),
        )
        for name, value in _headline(evaluation).items()
    ]
