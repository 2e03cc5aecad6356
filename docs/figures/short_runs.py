"""Train three tiny models for the figures of docs/concepts.md, and keep what their logs say.

    python docs/figures/short_runs.py --output runs/figures

Each run takes three to five minutes of one CPU core; those that are finished are not repeated. `short_runs.json` gets
the settings in which a run differs from `short_runs.yaml`, its log, and, of the first, the cosines of the teacher.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from albef_hf import AlbefForPreTraining, AlbefProcessor
from albef_hf.data import Scenes
from albef_hf.momentum import MomentumTeacher

HERE = Path(__file__).parent
RESULTS = HERE / "short_runs.json"
RUNS: dict[str, dict[str, int]] = {
    "batch": {},
    "queue": {"queue_size": 4096},
    "uniform": {"hardness_strength": 0},
}
KEPT = ("step", "loss_itm", "info_nce", "mutual_information_bound", "itc_text_r10", "itc_image_r10")
PAIRS = {"count": 6, "seed": 5, "max_objects": 2}  # scenes that the teacher compares
VAGUE = "some shapes"  # what one of them is captioned, as useless captions are


def main() -> None:
    """Run what is missing, and collect the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/figures"), help="a directory for the three runs")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name, settings in RUNS.items():
        folder = options.output / name
        if not (folder / "metrics.json").exists():
            train(folder, settings)
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        records = [{key: value for key, value in json.loads(line).items() if key in KEPT} for line in lines]
        results[name] = {"settings": settings, "log": records}
    results["teacher"] = compare_pairs(options.output / "batch")
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def train(folder: Path, settings: dict[str, int]) -> None:
    """Pretrain a model in a process of its own."""
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "albef_hf", "pretrain", "--config", str(HERE / "short_runs.yaml")]
    subprocess.run([*command, "--output_dir", str(folder), "--overwrite_output_dir", *options], check=True)


@torch.no_grad()
def compare_pairs(folder: Path) -> dict[str, Any]:
    """Return captions of scenes that were not in training, and their cosines with all images by the teacher."""
    student = AlbefForPreTraining.from_pretrained(folder)
    teacher = MomentumTeacher.from_pretrained(folder, student).model.eval()
    processor = AlbefProcessor.from_pretrained(folder)
    scenes = list(Scenes(**PAIRS))
    captions = [scene["caption"][0] for scene in scenes[:-1]] + [VAGUE]
    inputs = processor(images=[scene["image"] for scene in scenes], text=captions, return_tensors="pt")
    outputs = teacher(**inputs)
    cosines = outputs.text_embeds @ outputs.image_embeds.T
    temperature = student.contrastive_head.temperature.item()
    return {"scenes": PAIRS, "captions": captions, "cosines": cosines.tolist(), "temperature": temperature}


if __name__ == "__main__":
    main()
