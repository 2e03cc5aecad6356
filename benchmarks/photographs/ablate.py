"""What each part of the recipe for matching on photographs contributes: other trainings from the same model.

    python benchmarks/photographs/ablate.py --model runs/photographs_efficientnet --seeds 1 2 3 \
        --train_files train.json --validation_files validation.json --image_root FOLDER --eval_steps 480
    python benchmarks/photographs/ablation_report.py

Each way changes one thing of the recipe `photographs_efficientnet`, or of another way. Options of
`albef finetune retrieval` may be added and hold for all of them, such as `--num_train_epochs`, or `--eval_steps` for
more points of the learning curves. A training that has ended is a line of the result file and is not repeated; an
interrupted one resumes from its checkpoint. So the same command resumes, and another adds seeds or ways.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import efficientnet_lite  # noqa: F401, registers the class
import yaml

import albef_hf
from albef_hf.evaluation.retrieval_table import STAGES
from albef_hf.tasks.arguments import EVALUATION_OPTIONS, RetrievalArguments
from albef_hf.tasks.retrieval import Retrieval
from albef_hf.training.logging import LOG_FILE
from albef_hf.training.run import run
from albef_hf.utils.command_line import parse_arguments

RECIPE = Path(albef_hf.__file__).parent / "recipes" / "retrieval" / "photographs_efficientnet.yaml"
OUTPUT = Path("runs/photographs_ablation")


@dataclass(frozen=True)
class Way:
    """A way to train matching.

    Args:
        title: What it changes.
        base: The way that it changes; empty for the recipe itself.
        settings: Options that differ from those of the recipe.
        dropout: Probabilities of the text side that differ from those of the recipe.
    """

    title: str
    base: str
    settings: dict[str, Any]
    dropout: dict[str, float] = field(default_factory=dict)


ALL_TOKENS = {"image_token_dropout_prob": 0.0, "text_token_dropout_prob": 0.0}
# Contrast is the teacher of the contrast of all pairs alone, so there is no distillation without it.
TWO_CLASSES = {"alpha": 0, "itm_contrast_weight": 0}
WAYS = {
    "recipe": Way("the recipe", "", {}),
    "not_distilled": Way("without distillation", "recipe", {"alpha": 0}),
    "contrast_start": Way("started from contrast", "recipe", {"start_matching_from_contrast": True}),
    "all_tokens": Way("no patches and words hidden", "recipe", {}, ALL_TOKENS),
    "text_encoder": Way(
        "text encoder trained, too",
        "recipe",
        {"freeze": ["image_encoder", "contrastive_head"], "text_encoder_learning_rate": 5e-5},
    ),
    "easy_negative": Way("one random negative, no contrast of all pairs", "not_distilled", TWO_CLASSES),
    "easy_negatives": Way("four random negatives", "easy_negative", {**TWO_CLASSES, "itm_negatives": 4}),
    "hard_negative": Way("one hard negative", "easy_negative", {**TWO_CLASSES, "hardness_strength": 1}),
    "hard_negatives": Way(
        "four hard negatives", "hard_negative", {**TWO_CLASSES, "hardness_strength": 1, "itm_negatives": 4}
    ),
}
CHANGED = {"model_config", *(name for way in WAYS.values() for name in way.settings)}


class CalibratedRetrieval(Retrieval):
    """Retrieval whose score is calibrated in each evaluation, for the recalls of the half that was not fitted."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fits_calibration = True


def main(arguments: list[str]) -> None:
    """Do all trainings that the result file does not have yet."""
    parser = make_parser()
    options, of_training = parser.parse_known_args(arguments)
    if options.config != RECIPE:
        of_training = ["--config", str(options.config), *of_training]
    results = options.output_dir / "results.jsonl"
    check_options(parser, of_training, results)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for number, (seed, name) in enumerate((seed, name) for seed in options.seeds for name in options.ways):
        print(f"training {number + 1} of {len(options.seeds) * len(options.ways)}: {name}, seed {seed}", flush=True)
        if (name, seed) in {(line["way"], line["seed"]) for line in read_lines(results)}:
            print(f"{results} has it")
            continue
        folder = options.output_dir / f"{name}-seed{seed}"
        resumed, start = folder.exists(), time.process_time()
        state = {"output_dir": folder, "seed": seed, "resume_from_checkpoint": True}
        run(CalibratedRetrieval, read_options(options.config, WAYS[name], [*of_training, *command_line(state)]))
        seconds = None if resumed else round(time.process_time() - start, 1)  # of all of it, or not known
        line = {"way": name, "seed": seed, "options": of_training, "cpu_seconds": seconds, "curve": read_curve(folder)}
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def check_options(parser: argparse.ArgumentParser, given: list[str], results: Path) -> None:
    """Refuse options that ways differ in, and others than those of the trainings that these are compared with."""
    ignored = sorted(CHANGED & {part.partition("=")[0].lstrip("-").replace("-", "_") for part in given})
    if ignored:
        parser.error(f"{' and '.join(ignored)}: the ways differ in it, so it cannot be set for all of them.")
    if any(line["options"] != given for line in read_lines(results)):
        parser.error(f"{results} has trainings with other options: give another output_dir, or the options of then.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        parser.error("ablate.py runs in a single process: start it without accelerate launch.")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="a training of each way for each")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS], help="what to train")
    parser.add_argument("--config", type=Path, default=RECIPE, help="YAML file of the recipe that is changed")
    parser.add_argument("--output_dir", type=Path, default=OUTPUT, help="for models, logs and results.jsonl")
    return parser


def read_options(recipe: Path, way: Way, given: list[str]) -> RetrievalArguments:
    """Return the options of a training: those of the recipe, of the command line, and of the way."""
    settings = way.settings
    if way.dropout:
        dropout = yaml.safe_load(recipe.read_text(encoding="utf-8"))["model_config"]["text_config"] | way.dropout
        settings = {**settings, "model_config": {"text_config": dropout}}
    command = ["--config", str(recipe), *given, *command_line(settings)]
    return parse_arguments(RetrievalArguments, __doc__, command, unused=EVALUATION_OPTIONS)


def command_line(settings: dict[str, Any]) -> list[str]:
    """Return settings as they are written on a command line."""
    parts = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        parts += [f"--{name}", *map(str, values)]
    return parts


def read_curve(folder: Path) -> list[dict[str, float]]:
    """Return the recalls of all evaluations of a training, with their steps."""
    lines = [json.loads(line) for line in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    stages = tuple(f"{stage}_" for stage in STAGES)
    recalls = [{name: value for name, value in line.items() if name.startswith(stages)} for line in lines]
    return [{"step": line["step"], **found} for line, found in zip(lines, recalls, strict=True) if found]


def read_lines(results: Path) -> list[dict[str, Any]]:
    """Return what the result file has."""
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.exists() else []


if __name__ == "__main__":
    main(sys.argv[1:])
