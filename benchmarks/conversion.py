"""Measure time and memory of converting a checkpoint of the paper's size, with random weights.

    python benchmarks/conversion.py

The checkpoint is as large as the original's: model, momentum model, queues of 65,536 pairs, optimizer. The command
converts it in a separate process, converts the result back, and every tensor is compared.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from albef_hf import AlbefConfig, AlbefForPreTraining, MomentumTeacher
from albef_hf.conversion.to_original import revert_checkpoint


def make_checkpoint(folder: Path, queue_size: int) -> Path:
    """Write a checkpoint of the original that also contains an optimizer and the arguments of a training."""
    student = AlbefForPreTraining(AlbefConfig())
    student.save_pretrained(folder / "random")
    MomentumTeacher(student, queue_size=queue_size).save_pretrained(folder / "random")
    revert_checkpoint(folder / "random", folder / "model.pth")
    state = torch.load(folder / "model.pth", weights_only=True, mmap=True)["model"]
    moments = {
        index: {"exp_avg": torch.randn_like(weight), "exp_avg_sq": torch.rand_like(weight)}
        for index, weight in enumerate(student.parameters())
    }
    content = {"model": state, "optimizer": {"state": moments}, "args": argparse.Namespace(seed=42), "epoch": 29}
    torch.save(content, folder / "ALBEF.pth")
    return folder / "ALBEF.pth"


def timed(*arguments: str) -> None:
    """Run the command in a separate process; print its time, and the peak memory of all processes so far."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "albef_hf", "convert", *arguments], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{time.perf_counter() - start:.1f} s, {peak:.2f} GiB peak resident memory: {' '.join(arguments)}")


def _load_model(path: Path) -> dict[str, torch.Tensor]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True, mmap=True)["model"]


def main() -> None:
    """Convert a random checkpoint both ways and compare the result with the original."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queue_size", type=int, default=65536, help="number of pairs in the queues")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make_checkpoint(folder, options.queue_size)
        print(f"{source.stat().st_size / 1e9:.2f} GB: {source.name}")
        timed(str(source), str(folder / "converted"), "--task", "pretraining")
        for path in sorted((folder / "converted").iterdir()):
            print(f"{path.stat().st_size / 1e6:10.3f} MB: {path.name}")
        timed(str(folder / "converted"), str(folder / "again.pth"), "--reverse")
        before = _load_model(source)
        after = _load_model(folder / "again.pth")
        same = before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
        print(f"{len(before)} keys after the round trip: {'identical' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
