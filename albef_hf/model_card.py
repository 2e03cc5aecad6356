"""Write the model card of a folder: its model, training, metrics, and the provenance of converted weights.

    albef card FOLDER you/albef

writes the card again, under the name of the repository that the folder will be pushed to.
"""

import argparse
import contextlib
import csv
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

from .utils.renamed_options import with_present_names

# What imports torch or transformers is imported in the functions that need it, so that --help is fast.

TEMPLATE = Path(__file__).with_name("model_card_template.md")
CONVERSION_FILE = "conversion.json"  # written by albef_hf.conversion
KNOWN_FILE = "card.json"  # training and evaluation, for a card that is written later
MOMENTUM_FILE = "momentum.safetensors"  # the same as in albef_hf.momentum, which imports torch
EMISSIONS_FILE = "emissions.csv"  # written by codecarbon

# The task of each head on the Hub, if the Hub has it.
PIPELINE_TAGS = {
    "AlbefForPreTraining": "zero-shot-image-classification",
    "AlbefForRetrieval": "zero-shot-image-classification",
    "AlbefForQuestionAnswering": "visual-question-answering",
    "AlbefForImageCaptioning": "image-to-text",
}
# Further tags, for searching the Hub.
TAGS = {
    "AlbefForPreTraining": ["image-text-retrieval", "image-text-matching", "pretraining", "sentence-transformers"],
    "AlbefForRetrieval": ["image-text-retrieval", "image-text-matching", "visual-grounding", "sentence-transformers"],
    "AlbefForQuestionAnswering": ["vqa"],
    "AlbefForImageCaptioning": ["image-captioning"],
    "AlbefForVisualReasoning": ["nlvr2", "visual-reasoning"],
    "AlbefForVisualEntailment": ["snli-ve", "visual-entailment"],
    "AlbefForImageTextClassification": ["image-text-classification"],
    "AlbefForTextAssignment": ["nlvr2", "pretraining"],
}
# The Hub's types of metrics, by a pattern in their names here; others are accuracies.
METRIC_TYPES = {
    "cider": "cider",
    "bleu": "bleu",
    "rouge": "rouge",
    "f1": "f1",
    "auroc": "roc_auc",
    "r2": "r_squared",
    "spearman": "spearmanr",
    r"_r(\d|_mean)": "recall",
}
CALIBRATION = "Calibration"  # title of a section
FOLLOWING = ("Intended use and limitations", "Versions")  # titles of sections, before which it is added
SHOWN_OPTIONS = (
    "learning_rate",
    "min_learning_rate",
    "warmup_steps",
    "weight_decay",
    "alpha",
    "momentum",
    "queue_size",
    "mixed_precision",
    "label_smoothing",
    "seed",
)


@dataclass
class Training:
    """Describe how a model was trained.

    Args:
        options: All options of the run.
        steps: Number of optimizer steps.
        seconds: Wall-clock time, including evaluations.
        processes: Number of processes.
        command: Command that repeats the run.
        data: Description of the training data.
        dataset: Name of the training data on the Hub, if they are there.
        base_models: Models that the run started from: names on the Hub, or folders.
        kept: Description of the saved state of the run, if it is not the last one.
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
        """Return the base models; for a folder only its name, since its path may be private."""
        return [on_the_hub(name) or Path(name).name for name in self.base_models]

    def procedure(self) -> dict[str, Any]:
        """Return the rows of the card's table on training."""
        options = with_present_names(self.options)
        per_step = options["per_device_train_batch_size"] * options["gradient_accumulation_steps"]
        length = {"optimizer steps": self.steps, "pairs or rows per step": per_step * self.processes}
        if self.kept:
            length["saved state"] = self.kept
        shown = {name.replace("_", " "): options[name] for name in SHOWN_OPTIONS if name in options}
        return {**length, **shown, "duration": f"{self.seconds / 60:.1f} minutes, on {hardware(self.processes)}"}


@dataclass
class Evaluation:
    """Describe the evaluation of a model.

    Args:
        metrics: Values by name.
        protocol: Description of the protocol, in a sentence or two.
        data: Description of the evaluation data.
        dataset: Name of the evaluation data on the Hub, if they are there.
        baselines: What is reached without the model, or without images.
    """

    metrics: Mapping[str, float]
    protocol: str
    data: str
    dataset: str | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)


# The two parts of a card that a training knows.
Part = TypeVar("Part", Training, Evaluation)


def hardware(processes: int) -> str:
    """Return a description of the hardware of this run."""
    import torch

    if torch.cuda.is_available():
        return f"{processes} x {torch.cuda.get_device_name()}"
    return f"{processes} process(es) of {torch.get_num_threads()} CPU thread(s) ({platform.machine()})"


def model_card(
    folder: Path,
    repo_id: str,
    training: Training | None = None,
    evaluation: Evaluation | None = None,
    exclude: Sequence[str] = (),
) -> "ModelCard":
    """Return the card of the model in a folder. Sections without information are omitted.

    Training and evaluation are saved to the folder's `card.json`, for a card that is written later: under another
    name, or after emissions were measured.

    Args:
        folder: Has `config.json`, and maybe `card.json`, `conversion.json` and codecarbon's `emissions.csv`.
        repo_id: What the snippet loads: a name on the Hub, or a folder.
        training: How the model was trained; read from `card.json` by default.
        evaluation: How the model was evaluated; read from `card.json` by default.
        exclude: Patterns of files that are not uploaded; the card does not mention them.

    Raises:
        ValueError: If the folder contains no model of a class that there is a card for.
    """
    from huggingface_hub import ModelCard, ModelCardData

    from .compatibility_albef import VERSIONS

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    head = _head_with_card(folder, config)
    training, evaluation = _update_known(folder / KNOWN_FILE, training, evaluation)
    conversion = _read_json(folder / CONVERSION_FILE)
    emissions = _read_emissions(folder / EMISSIONS_FILE, head)
    data = ModelCardData(
        language=None if _is_cased(folder) else "en",  # a cased tokenizer may be of any language
        license="bsd-3-clause" if conversion else None,  # that of the original's weights
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
        cased=_is_cased(folder),
        training=training,
        evaluation=evaluation,
        conversion=conversion,
        emissions=emissions,
        versions=VERSIONS,
        teacher=(folder / MOMENTUM_FILE).exists() and not any(fnmatch(MOMENTUM_FILE, name) for name in exclude),
    )


def _head_with_card(folder: Path, config: dict[str, Any]) -> str:
    head = (config.get("architectures") or [None])[0]
    if head not in TAGS:
        raise ValueError(f"{folder} contains {head}, for which there is no card. There is one for {', '.join(TAGS)}.")
    return head


def read_card(folder: Path) -> str | None:
    """Return the card in a folder, with its line ends; None if there is none.

    Raises:
        ValueError: If it is not encoded in UTF-8.
    """
    path = folder / "README.md"
    try:
        return path.read_bytes().decode() if path.exists() else None
    except UnicodeDecodeError as error:
        raise ValueError(f"README.md of {folder.name} is not encoded in UTF-8 ({error}). Save it in UTF-8.") from error


def loaded_name(card: str) -> str | None:
    """Return the name under which the snippet of a card loads the model."""
    in_snippet = re.search(r'from_pretrained\("([^"]+)", trust_remote_code', card)
    return in_snippet[1] if in_snippet else None


def sections(card: str) -> list[tuple[str, str]]:
    """Split a card into (title, text) at its second-level titles; the first text has no title.

    The texts include the titles, so that joined they are the card.
    """
    parts = [("", "")]
    in_code = False
    for line in card.splitlines(keepends=True):
        in_code ^= line.lstrip().startswith("```")
        if line.startswith("## ") and not in_code:
            parts.append((line[3:].strip(), ""))
        title, text = parts[-1]
        parts[-1] = (title, text + line)
    return parts


@contextlib.contextmanager
def updated_card(folder: Path) -> Iterator[None]:
    """Renew the card of a folder after a change of its model, but for sections that were edited; write one if needed.

    The section on calibration is renewed in any case.
    """
    from .utils.files import atomic_write

    old = read_card(folder)
    name = (loaded_name(old) if old else None) or folder.name
    exclude = [] if old is None or MOMENTUM_FILE in old else [MOMENTUM_FILE]
    before = model_card(folder, name, exclude=exclude)
    yield
    new = str(model_card(folder, name, exclude=exclude))
    if old is not None:
        new = _replace_unedited(old, dict(sections(str(before))), dict(sections(new)))
    with atomic_write(folder / "README.md") as unfinished:
        unfinished.write_bytes(new.encode())


def _replace_unedited(card: str, before: dict[str, str], after: dict[str, str]) -> str:
    """Replace sections of a card that were generated and are different now, and the one on calibration."""
    line_end = "\r\n" if "\r\n" in card else "\n"
    parts = []
    added = after.get(CALIBRATION, "").replace("\n", line_end)
    for title, text in sections(card):
        if title == CALIBRATION:
            continue
        if title in FOLLOWING and added:
            parts.append(added)
            added = ""
        is_edited = "".join(text.split()) != "".join(before.get(title, "").split())
        is_same = before.get(title) == after.get(title)
        parts.append(text if is_edited or is_same else after[title].replace("\n", line_end))
    return "".join(parts) + (f"{line_end}{added}" if added else "")


def _is_cased(folder: Path) -> bool:
    """Return True if the processor in a folder keeps the case of texts."""
    return bool((_read_json(folder / "processor_config.json") or {}).get("keep_case"))


def save_card(card: "ModelCard", folder: Path) -> None:
    """Write a card to the README.md of a folder."""
    from .utils.files import atomic_write

    with atomic_write(folder / "README.md") as unfinished:
        card.save(unfinished)


def _update_known(
    path: Path, training: Training | None, evaluation: Evaluation | None
) -> tuple[Training | None, Evaluation | None]:
    """Write what is given to a file, and return it together with what the file had before."""
    from .utils.files import atomic_write

    is_new = training is not None or evaluation is not None
    known = _read_json(path) or {}
    training = training or _from_dict(Training, known.get("training"))
    evaluation = evaluation or _from_dict(Evaluation, known.get("evaluation"))
    parts = {"training": training, "evaluation": evaluation}
    if is_new:
        content = json.dumps({name: asdict(part) for name, part in parts.items() if part}, indent=2)
        with atomic_write(path) as unfinished:
            unfinished.write_text(content + "\n", encoding="utf-8")
    return training, evaluation


def _from_dict(kind: type[Part], values: dict[str, Any] | None) -> Part | None:
    """Return a part that may have been written by another release: unknown fields are dropped.

    None if there is no such part, or a field is missing that this release requires.
    """
    if not values:
        return None
    try:
        return kind(**{entry.name: values[entry.name] for entry in fields(kind) if entry.name in values})
    except TypeError:
        return None


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _read_emissions(path: Path, head: str) -> dict[str, Any] | None:
    """Return measured emissions in the Hub's format, in grams of CO2 equivalents; skip rows without a value."""
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
    """Return the name if it can be one on the Hub; None for a folder."""
    return name if name and not Path(name).exists() and name.count("/") <= 1 else None


def _headline(evaluation: Evaluation) -> dict[str, float]:
    """Return the main metrics, without those of subsets and the counts."""
    return {name: value for name, value in evaluation.metrics.items() if "/" not in name and name != "rows_left_out"}


def _metric_type(name: str) -> str:
    return next((kind for part, kind in METRIC_TYPES.items() if re.search(part, name)), "accuracy")


def _eval_results(evaluation: Evaluation, head: str) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

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
    """Write the model card of a folder, to push it under a name on the Hub."""
    parser = argparse.ArgumentParser(prog="albef card", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder written by save_pretrained, a training or the conversion")
    parser.add_argument("repo_id", help="name of the model on the Hub, such as you/albef")
    options = parser.parse_args(arguments)
    from .utils.files import write_errors_named

    path = options.folder / "README.md"
    card = model_card(options.folder, options.repo_id, exclude=[MOMENTUM_FILE])
    with write_errors_named(path):
        save_card(card, options.folder)
    print(f"Wrote the card of {options.repo_id} to {path}.")
