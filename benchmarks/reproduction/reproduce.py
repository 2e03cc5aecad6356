"""The paper's Table 1 at a small scale: each way to pretrain, at several shares of noise, and what it does downstream.

    python benchmarks/reproduction/reproduce.py --seeds 1 2 3 --noise 0 0.4 --tasks retrieval vqa --jobs 2
    python benchmarks/reproduction/report.py

Data are the built-in scenes; half of the noise are captions of other scenes, half such that fit any. Each run that has
ended is a line of the result file, and is not repeated; an interrupted one resumes from its checkpoint. So the same
command resumes, and another adds seeds, shares or tasks. Recipes are the YAML files of a folder: `encoders.yaml`,
`pretraining.yaml`, and `finetuning.yaml` for all tasks.
"""

import argparse
import contextlib
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from encoders import SEED as ENCODERS_SEED
from encoders import save_encoders
from objectives import PRETRAININGS
from tqdm.auto import tqdm

from albef_hf import AlbefForPreTraining, AlbefProcessor
from albef_hf.retrieval_albef import RetrievalScores, score_all
from albef_hf.tasks import find_task
from albef_hf.tasks.pretraining import Pretraining
from albef_hf.training.arguments import PretrainingArguments, TrainingArguments
from albef_hf.training.distributed import make_accelerator
from albef_hf.training.run import train
from albef_hf.utils.command_line import parse_arguments

HERE = Path(__file__).parent
TASKS = ("retrieval", "entailment", "nlvr2", "vqa")
CANDIDATES = 16  # of a query, from contrast, that matching orders
MORE_PICTURES = 10  # times those that training is evaluated on, to see what reranking adds
LAST = [*PRETRAININGS][-1]  # the one that is fine-tuned with distillation too, the paper's last row
STATE = {"resume_from_checkpoint": True, "overwrite_output_dir": True}


@dataclass(frozen=True)
class Run:
    """One training, of which the result file has a line.

    Args:
        pretraining: Name of a way to pretrain.
        noise: Share of the captions in pretraining that are wrong or vague.
        seed: Of data, weights and all that is drawn.
        task: Name of what is fine-tuned for; "pretraining" for the pretraining itself.
        distilled: Whether a teacher softens the targets of the fine-tuning.
    """

    pretraining: str
    noise: float
    seed: int
    task: str = "pretraining"
    distilled: bool = False

    @property
    def model(self) -> str:
        """Name of the folder of the pretrained model."""
        return f"{self.pretraining}-noise{self.noise:g}-seed{self.seed}"


@dataclass(frozen=True)
class Places:
    """Where recipes, models and results are.

    Args:
        recipe: Folder of the YAML files.
        output: Folder for the models.
        results: The result file.
    """

    recipe: Path
    output: Path
    results: Path


def main(arguments: list[str]) -> None:
    """Do all runs that the result file does not have yet."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if min(options.seeds) <= ENCODERS_SEED:
        parser.error(f"seeds begin with {ENCODERS_SEED + 1}: the encoders have seen the scenes of {ENCODERS_SEED}.")
    places = Places(options.recipe, options.output_dir, options.results or options.output_dir / "results.jsonl")
    places.results.parent.mkdir(parents=True, exist_ok=True)
    other = keep_recipe(places)
    if other:
        parser.error(f"{places.output} has runs by another {other}: give another output_dir, or the recipe of then.")
    save_encoders(places.recipe / "encoders.yaml", places.output / "encoders")
    chains = [
        chain_of_runs(Run(pretraining, noise, seed), options.tasks)
        for seed in options.seeds
        for noise in options.noise
        for pretraining in options.pretrainings
    ]
    done = finished_runs(places.results)
    missing = sum(run not in done for chain in chains for run in chain)
    print(f"{missing} of {sum(map(len, chains))} runs are to be done; models and logs go to {places.output}")
    chains = [chain for chain in chains if not done.issuperset(chain)]
    for _ in tqdm(do_all(chains, places, options.jobs, options.threads), total=len(chains), unit="model"):
        pass


def do_all(chains: list[list[Run]], places: Places, jobs: int, threads: int) -> Iterator[None]:
    """Do all runs, in as many processes as wanted; yields when a chain of them has ended."""
    if jobs == 1:
        torch.set_num_threads(threads)
        yield from (work(chain, places) for chain in chains)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        yield from (ended.result() for ended in as_completed([pool.submit(work, chain, places) for chain in chains]))


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="a run for each")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.2, 0.4], help="shares of useless captions")
    parser.add_argument("--pretrainings", nargs="+", choices=PRETRAININGS, default=[*PRETRAININGS], help="ways")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=[*TASKS], help="to fine-tune for; maybe none")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at a time, each in a process of its own")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--recipe", type=Path, default=HERE / "recipe", help="folder of the recipes")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/reproduction"), help="folder for the models")
    parser.add_argument("--results", type=Path, help="the result file; default: results.jsonl in output_dir")
    return parser


def keep_recipe(places: Places) -> str:
    """Keep a copy of the recipe beside the models; returns the name of a file that is not what it was, if any."""
    kept = places.output / "recipe"
    kept.mkdir(parents=True, exist_ok=True)
    for path in sorted(places.recipe.glob("*.yaml")):
        text, copy = path.read_text(encoding="utf-8"), kept / path.name
        if copy.exists() and yaml.safe_load(copy.read_text(encoding="utf-8")) != yaml.safe_load(text):
            return path.name
        copy.write_text(text, encoding="utf-8")
    return ""


def chain_of_runs(pretraining: Run, tasks: list[str]) -> list[Run]:
    """A pretraining and the fine-tunings that start from it."""
    run = (pretraining.pretraining, pretraining.noise, pretraining.seed)
    finetunings = [Run(*run, task, distilled) for task in tasks for distilled in (False, True)]
    return [pretraining, *(one for one in finetunings if not one.distilled or one.pretraining == LAST)]


def work(runs: list[Run], places: Places) -> None:
    """Do what is not done yet of a pretraining and its fine-tunings, one after the other.

    A pretrained model that is gone is trained again, and has no second line.
    """
    for run in runs:
        done = run in finished_runs(places.results)
        if done and (run.task != "pretraining" or (places.output / run.model / "model.safetensors").exists()):
            continue
        log = places.output / "logs" / f"{run.model}-{run.task}{'-distilled' * run.distilled}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.process_time()
        with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            metrics = pretrain_one(run, places) if run.task == "pretraining" else finetune_one(run, places)
        line = {**asdict(run), "cpu_seconds": round(time.process_time() - start, 1), "metrics": metrics}
        if not done:
            with places.results.open("a") as file:
                file.write(json.dumps(line) + "\n")


def pretrain_one(run: Run, places: Places) -> dict[str, float]:
    """The metrics of a pretrained model on its own: by contrast, by matching of every pair, and by both steps."""
    way = PRETRAININGS[run.pretraining]
    settings = {
        "output_dir": places.output / run.model,
        "vision_model": places.output / "encoders" / "vision",
        "text_model": places.output / "encoders" / "text",
        "seed": run.seed,
        "scenes_wrong_share": run.noise / 2,
        "scenes_vague_share": run.noise / 2,
        **way.settings,
    }
    args = read_recipe(PretrainingArguments, places.recipe / "pretraining.yaml", settings, way.distilled)
    with accelerator_for(args) as accelerator:
        return train(task_with(way.head), args, accelerator) | more_metrics(args, accelerator)


def task_with(head: type[AlbefForPreTraining]) -> type[Pretraining]:
    """Return pretraining with other losses."""
    return type("Pretraining", (Pretraining,), {"head": head})


def more_metrics(args: PretrainingArguments, accelerator: Accelerator) -> dict[str, float]:
    """Recall of a saved model where contrast names candidates and matching orders them, as the paper uses it.

    Also by the logit of a match alone, as the original's `Retrieval.py` orders, and both steps among more images,
    where chance has less part in what the second adds.
    """
    every = scores_of(args, accelerator)
    ways = every.image_to_text, every.text_to_image
    best = RetrievalScores(*(replace(way, logits=way.logits[:, :CANDIDATES]) for way in ways))
    many = replace(args, validation_size=MORE_PICTURES * args.validation_size, rerank_k=CANDIDATES)
    among_many = scores_of(many, accelerator).metrics()
    return {
        **renamed(best.metrics(), "itm", "reranked"),
        **renamed(best.metrics(mismatch_weight=0), "itm", "reranked_by_logit"),
        **renamed(every.metrics(mismatch_weight=0), "itm", "itm_by_logit"),
        **renamed(among_many, "itc", "itc_of_many"),
        **renamed(among_many, "itm", "reranked_of_many"),
    }


def scores_of(args: PretrainingArguments, accelerator: Accelerator) -> RetrievalScores:
    """All scores of a saved model."""
    model = AlbefForPreTraining.from_pretrained(args.output_dir).to(accelerator.device)
    processor = AlbefProcessor.from_pretrained(args.output_dir)
    _, images = Pretraining(args, processor).load_rows(accelerator)
    return score_all(model, processor, images, images.captions, args.rerank_k)


def renamed(metrics: dict[str, float], step: str, name: str) -> dict[str, float]:
    """The metrics of a step, by another name of it."""
    return {key.replace(step, name, 1): value for key, value in metrics.items() if key.startswith(step)}


def finetune_one(run: Run, places: Places) -> dict[str, float]:
    """The metrics of a fine-tuned model."""
    task_class = find_task(run.task)
    settings = {
        "model": places.output / run.model,
        "output_dir": places.output / run.model / f"{run.task}{'-distilled' * run.distilled}",
        "seed": run.seed,
    }
    args = read_recipe(task_class.arguments_class, places.recipe / "finetuning.yaml", settings, run.distilled)
    with accelerator_for(args) as accelerator:
        return train(task_class, args, accelerator)


def read_recipe(kind: type[TrainingArguments], recipe: Path, settings: dict, distilled: bool) -> Any:
    """Options of a recipe with the settings of a run; without distillation, `alpha` is 0."""
    settings = {**STATE, **settings, **({} if distilled else {"alpha": 0})}
    given = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return parse_arguments(kind, __doc__, ["--config", str(recipe), *given])


@contextlib.contextmanager
def accelerator_for(args: TrainingArguments) -> Iterator:
    """An accelerator, and its end."""
    accelerator = make_accelerator(args)
    try:
        yield accelerator
    finally:
        accelerator.end_training()


def finished_runs(results: Path) -> set[Run]:
    """The runs that the result file has."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    return {Run(**{name: json.loads(line)[name] for name in Run.__annotations__}) for line in lines}


if __name__ == "__main__":
    main(sys.argv[1:])
