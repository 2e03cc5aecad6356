"""The model card of a folder, from what is known: its head, its training, its metrics, where its weights come from.

    python -m albef_hf.model_card FOLDER you/albef

writes it anew, for a folder that is to be pushed by hand.
"""

import argparse
import csv
import json
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .compatibility_albef import VERSIONS
from .utils.files import written_aside

TEMPLATE = Path(__file__).with_name("model_card_template.md")
CONVERSION_FILE = "conversion.json"  # which albef_hf.conversion.convert leaves
KNOWN_FILE = "card.json"  # which every card leaves
MOMENTUM_FILE = "momentum.safetensors"  # of albef_hf.momentum, which is not imported here
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
        base_models: What it started from, names on the Hub or folders.
        kept: Which state of the run this is, in words, where it is not the last.
    """

    options: Mapping[str, Any]
    steps: int
    seconds: float
    processes: int
    command: str
    data: str
    dataset: str | None = None
    base_models: Sequence[str] = ()
    kept: str | None = None

    @property
    def started_from(self) -> list[str]:
        """The base models; of a folder its name alone, since its path is nobody's business."""
        return [on_the_hub(name) or Path(name).name for name in self.base_models]

    def procedure(self) -> dict[str, Any]:
        """What a reader wants to know first, by name."""
        per_step = self.options["batch_size"] * self.options["gradient_accumulation_steps"]
        length = {"optimizer steps": self.steps, "pairs or rows per step": per_step * self.processes}
        if self.kept:
            length["kept"] = self.kept
        shown = {name.replace("_", " "): self.options[name] for name in SHOWN_OPTIONS if name in self.options}
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
    left_out: Sequence[str] = (),
) -> ModelCard:
    """The card of the model in a folder; whatever is not known is left out, and nothing is made up.

    What it is told it leaves in the folder's `card.json`, for a card that is written later, under another name or when
    emissions have been measured.

    Args:
        folder: Holds `config.json`, and maybe `card.json`, `conversion.json` and codecarbon's `emissions.csv`.
        repo_id: What the snippet loads: a name on the Hub, or a folder.
        training: How it was trained; by default what `card.json` says.
        evaluation: What was measured; likewise.
        left_out: Patterns of files that do not go along.

    Raises:
        ValueError: If the folder holds no model of a class that is known here.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    head = (config.get("architectures") or [None])[0]
    if head not in TAGS:
        raise ValueError(f"{folder} holds {head}, for which there is no card; choose one of {', '.join(TAGS)}.")
    training, evaluation = _remember(folder / KNOWN_FILE, training, evaluation)
    conversion, emissions = _json(folder / CONVERSION_FILE), _emissions(folder / EMISSIONS_FILE, head)
    data = ModelCardData(
        language="en",
        license="bsd-3-clause"
        if conversion
        else None,  # the original's; whose weights these are says who trained them
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS.get(head),
        tags=["albef", "vision-language", *TAGS[head]],
        datasets=[training.dataset] if training and training.dataset else None,
        base_model=[name for name in training.base_models if on_the_hub(name)] or None if training else None,
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
        versions=VERSIONS,
        teacher=(folder / MOMENTUM_FILE).exists() and not any(fnmatch(MOMENTUM_FILE, name) for name in left_out),
    )


def save_card(card: ModelCard, folder: Path) -> None:
    """Write a card to the README.md of a folder."""
    with written_aside(folder / "README.md") as aside:
        card.save(aside)


def _remember(
    path: Path, training: Training | None, evaluation: Evaluation | None
) -> tuple[Training | None, Evaluation | None]:
    """Keep what is known in a file, and take from there what is not given."""
    is_news = training is not None or evaluation is not None
    known = _json(path) or {}
    if training is None and known.get("training"):
        training = _from_facts(Training, known["training"])
    if evaluation is None and known.get("evaluation"):
        evaluation = _from_facts(Evaluation, known["evaluation"])
    given = {"training": training, "evaluation": evaluation}
    facts = {name: asdict(part) for name, part in given.items() if part}
    if is_news:
        with written_aside(path) as aside:
            aside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return training, evaluation


def _from_facts(kind: type[Training] | type[Evaluation], facts: dict[str, Any]) -> Training | Evaluation | None:
    """Read what a card left, of another release maybe: unknown fields are dropped, and facts that lack one of ours."""
    try:
        return kind(**{part.name: facts[part.name] for part in fields(kind) if part.name in facts})
    except TypeError:
        return None


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _emissions(path: Path, head: str) -> dict[str, Any] | None:
    """Measured emissions in the Hub's words, in grams of CO2 equivalents; rows without a number do not count."""
    if not path.exists():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        runs = [run for run in csv.DictReader(file) if re.fullmatch(r"[\d.]+(e[-+]?\d+)?", run.get("emissions") or "")]
    if not runs:
        return None
    return {
        "emissions": round(1000 * sum(float(run["emissions"]) for run in runs), 3),
        "source": "codecarbon",
        "training_type": "pre-training" if "pretraining" in TAGS[head] else "fine-tuning",
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


def main(arguments: list[str] | None = None) -> None:
    """Write the card of a folder."""
    parser = argparse.ArgumentParser(prog="python -m albef_hf.model_card", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="what save_pretrained, a training or the converter has written")
    parser.add_argument("repo_id", help="what the model is to be called on the Hub, such as you/albef")
    options = parser.parse_args(arguments)
    try:
        save_card(model_card(options.folder, options.repo_id, left_out=[MOMENTUM_FILE]), options.folder)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{options.folder / 'README.md'} is the card of {options.repo_id}")


if __name__ == "__main__":
    main()
