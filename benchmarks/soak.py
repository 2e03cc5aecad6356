"""A long training on shards of which one sample in twenty is broken, that is stopped and killed again and again.

    python benchmarks/soak.py --minutes 60

It trains a small model with DataLoader workers. At random moments the training receives SIGTERM, every fourth time
SIGKILL, and is started again with --resume_from_checkpoint. The rows that every step has read are recorded, beside the
memory that it took. In the end there has to be one history without a gap: each row once in every epoch, read or
skipped; what was repeated after a SIGKILL the same both times; the counts of the log those of the rows that were
broken on purpose; and the memory constant. Otherwise the script exits with 1.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from tqdm.auto import tqdm

from albef_hf.data import ImageTextPairs, PretrainingCollator, Scenes, SkipReason
from albef_hf.data.shard_index import index_folder
from albef_hf.data.shards import TABLE

ROWS_PER_SHARD = 256
BATCH_SIZE = 16
MOST_GROWTH = 0.2  # of the memory in an hour; the allocator's own steps are some MB, at any time
WARM_UP = 240  # seconds of a process that do not count, while the allocator meets batches of all lengths


# ---------------------------------------------------------------------------------------------------------------------
# Data of which it is known what is wrong with it
# ---------------------------------------------------------------------------------------------------------------------


def jpeg(image: Image.Image) -> bytes:
    """An image as it is in shards."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def enormous() -> bytes:
    """A PNG of 144 million pixels and some kilobytes."""
    buffer = io.BytesIO()
    Image.new("1", (12000, 12000)).save(buffer, "PNG")
    return buffer.getvalue()


def make_shards(folder: Path, rows: int, share: float) -> dict[int, str]:
    """Write shards, some of whose rows are broken in six ways; returns the reason for each of those."""
    generator = random.Random(0)
    huge = enormous()
    scenes = Scenes(rows)
    ways = {
        "truncated": SkipReason.IMAGE_BROKEN,
        "html": SkipReason.IMAGE_BROKEN,
        "empty": SkipReason.IMAGE_BROKEN,
        "enormous": SkipReason.IMAGE_TOO_LARGE,
        "blank": SkipReason.CAPTION_EMPTY,
        "hole": SkipReason.SHARD_DAMAGED,
    }
    chosen = generator.sample(range(rows), round(rows * share))
    broken = {row: list(ways)[number % len(ways)] for number, row in enumerate(chosen)}
    folder.mkdir(parents=True)
    for start in tqdm(range(0, rows, ROWS_PER_SHARD), "shards"):
        with tarfile.open(folder / f"{start // ROWS_PER_SHARD:05d}.tar", "w") as tar:
            for row in range(start, min(start + ROWS_PER_SHARD, rows)):
                way, image = broken.get(row), jpeg(scenes[row]["image"])
                instead = {"truncated": image[:-400], "html": b"<html>404</html>", "empty": b"", "enormous": huge}
                image = instead.get(way, image)
                caption = "  " if way == "blank" else scenes[row]["caption"][0]
                for kind, content in (("jpg", image), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{row:09d}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    index_folder(folder)
    places = np.load(folder / TABLE)
    for row, way in broken.items():
        if way == "hole":
            with (folder / f"{row // ROWS_PER_SHARD:05d}.tar").open("r+b") as file:
                file.seek(int(places[row]["image_start"]) + 100)
                file.write(bytes(500))
    return {row: ways[way].name.lower() for row, way in broken.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The training, watched
# ---------------------------------------------------------------------------------------------------------------------


class WatchedRows:
    """Rows that note which of them are asked for."""

    def __init__(self, rows: Any):
        self.rows, self.asked = rows, []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.asked.append(index)
        return self.rows[index]

    def read_ahead(self, index: int) -> None:
        """As the rows do."""
        self.rows.read_ahead(index)


class WatchedPairs(ImageTextPairs):
    """Samples with the rows that were tried for them; the last one is what was read."""

    def __init__(self, rows: Any, *arguments: Any):
        super().__init__(WatchedRows(rows), *arguments)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.rows.asked = []
        return super().__getitem__(index) | {"tried": self.rows.asked}


class WatchedCollator(PretrainingCollator):
    """Batches with what their samples have tried."""

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return super().__call__(samples) | {"tried": [sample["tried"] for sample in samples]}


def train(journal: str, arguments: list[str]) -> None:
    """Pretrain in this process, and record each step."""
    from albef_hf import cli
    from albef_hf.tasks import pretraining
    from albef_hf.training import dataloaders, run, trainer

    class WatchedRecorder(trainer.StepRecorder):
        """Take the rows that were tried out of a batch."""

        def add_batch(self, batch: dict[str, Any], issues: Any) -> None:
            self.tried = batch.pop("tried")
            super().add_batch(batch, issues)

    class WatchedTrainer(trainer.Trainer):
        """Write a line for each step, before anything else can happen."""

        def _end_of_step(self) -> dict[str, float]:
            process = psutil.Process()
            workers = [worker.memory_full_info().uss for worker in process.children()]
            line = {
                "life": os.getpid(),
                "step": self.state.step,
                "epoch": self.state.epoch,
                "tried": self.recorder.tried,
                "alive": time.time() - process.create_time(),
                "megabytes": process.memory_info().rss / 1e6,
                "workers_megabytes": sum(workers) / 1e6,
            }
            with Path(f"{journal}_{self.accelerator.process_index}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            return super()._end_of_step()

    run.Trainer = WatchedTrainer
    trainer.StepRecorder = WatchedRecorder
    dataloaders.ImageTextPairs = WatchedPairs
    pretraining.PretrainingCollator = WatchedCollator
    cli.main(["pretrain", *arguments])


def start(options: argparse.Namespace, folder: Path) -> subprocess.Popen:
    """The training in a process of its own, which resumes where the one before it was stopped."""
    command = [sys.executable]
    if options.processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(options.processes)]
    command += [str(Path(__file__).resolve()), "--train", str(folder / "journal")]
    settings = {
        "config": "scenes",
        "output_dir": folder / "run",
        "shards": folder / "shards",
        "validation_size": 0,
        "max_steps": 10**7,
        "per_device_train_batch_size": BATCH_SIZE,
        "queue_size": 1024,
        "momentum": 0.995,
        "dataloader_num_workers": 2,
        "logging_steps": 5,
        "save_steps": 40,
        "eval_steps": 10**7,
    }
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    output = (folder / "output.txt").open("a")
    environment = os.environ | ({"ACCELERATE_USE_CPU": "true"} if options.processes > 1 else {})
    return subprocess.Popen([*command, "--resume_from_checkpoint"], stdout=output, stderr=output, env=environment)


def kill(process: subprocess.Popen) -> None:
    """End a process and all that it has started, at once."""
    for each in (*psutil.Process(process.pid).children(recursive=True), process):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def run(options: argparse.Namespace, folder: Path) -> list[str]:
    """Start, stop and kill until the time is up; returns how each process ended."""
    moments = random.Random(options.seed)
    ends: list[str] = []
    until = time.monotonic() + 60 * options.minutes
    with tqdm(total=round(60 * options.minutes), unit="s") as bar:
        while time.monotonic() < until:
            process, begun = start(options, folder), time.monotonic()
            wish = begun + moments.uniform(options.shortest, options.longest)
            while process.poll() is None and time.monotonic() < min(wish, until):
                time.sleep(0.2)
            if process.poll() is None:
                is_kill = moments.random() < 0.25 and time.monotonic() < until
                ends.append("SIGKILL" if is_kill else "SIGTERM")
                # A request to stop is for the training, or torchrun, which hands it on.
                kill(process) if is_kill else process.terminate()
                process.wait(timeout=600)
            else:
                ends.append("by itself")
            ends[-1] += f" -> {process.returncode}"
            bar.set_postfix_str(", ".join(f"{end} x{count}" for end, count in Counter(ends).items()))
            bar.update(round(time.monotonic() - begun))
    return ends


# ---------------------------------------------------------------------------------------------------------------------
# The account
# ---------------------------------------------------------------------------------------------------------------------


def history_of(journals: list[Path], faults: list[str]) -> dict[int, dict[str, Any]]:
    """What the processes have done at each step; a step that was done twice has to have been the same."""
    history: dict[int, dict[str, Any]] = {}
    for number, journal in enumerate(journals):
        lines = journal.read_text(encoding="utf-8").splitlines()
        for line in map(json.loads, lines):
            step = history.setdefault(line["step"], {"epoch": line["epoch"], "tried": {}})
            if step["tried"].setdefault(number, line["tried"]) != line["tried"] or step["epoch"] != line["epoch"]:
                faults.append(f"step {line['step']} has read other rows when it was done again")
    return dict(sorted(history.items()))


def account(options: argparse.Namespace, folder: Path, broken: dict[int, str]) -> list[str]:
    """What is not as it should be; tells what is."""
    faults: list[str] = []
    journals = sorted(folder.glob("journal_*.jsonl"))
    history = history_of(journals, faults)
    if list(history) != list(range(1, len(history) + 1)):
        faults.append("the history has gaps")
    samples = [
        (step["epoch"], tried) for step in history.values() for each in step["tried"].values() for tried in each
    ]
    for _, tried in samples:
        if any(row not in broken for row in tried[:-1]) or tried[-1] in broken:
            faults.append(f"rows {tried} were tried for one sample")
    epochs = sorted({epoch for epoch, _ in samples})
    per_epoch = options.rows // options.processes // BATCH_SIZE * BATCH_SIZE * options.processes
    for epoch in epochs:
        rows = Counter(tried[0] for other, tried in samples if other == epoch)
        whole = epoch < epochs[-1]
        if max(rows.values()) > 1 or (whole and len(rows) != per_epoch):
            faults.append(f"epoch {epoch}: {len(rows)} rows of {per_epoch}, {max(rows.values())} times at most")
    records = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    last = records[-1]
    seen = [
        tried for step in list(history.values())[: last["step"]] for each in step["tried"].values() for tried in each
    ]
    expected = Counter(broken.get(row, "nothing") for tried in seen for row in tried[:-1]) | Counter(
        {"pairs": len(seen)}
    )
    told = {issue.name.lower(): last[issue.name.lower()] for issue in SkipReason if last[issue.name.lower()]}
    if told | {"pairs": last["pairs"]} != dict(expected):
        faults.append(f"the log counts {told}, {last['pairs']} pairs; expected were {dict(expected)}")
    if [record["step"] for record in records] != list(range(5, 5 * len(records) + 1, 5)):
        faults.append("the log has gaps, or records twice")
    say(f"{len(history)} steps, {len(samples)} pairs: {len(epochs) - 1} whole epochs, each of {per_epoch} rows")
    say(f"the log, up to step {last['step']}: {last['pairs']} pairs read; skipped {told}")
    return faults


def memory(journals: list[Path], faults: list[str]) -> None:
    """Tell how the memory of a training process grows, in MB an hour, and what it was in each of its lives.

    Each life of a process has a level of its own; the slope is what they have in common, after the warm-up.
    """
    table = [
        "| process | steps | seconds | MB after the warm-up | MB at its end | loading processes |",
        "|" + 6 * "---|",
    ]
    times = []
    levels = []
    lives = 0
    lines = [json.loads(line) for journal in journals for line in journal.read_text(encoding="utf-8").splitlines()]
    for number, life in enumerate(dict.fromkeys(line["life"] for line in lines)):
        own = [line for line in lines if line["life"] == life]
        warm = [line for line in own if line["alive"] > WARM_UP]
        if len(warm) < 10:
            continue
        t, mb = np.array([line["alive"] for line in warm]) / 3600, np.array([line["megabytes"] for line in warm])
        times.append(t - t.mean())
        levels.append(mb - mb.mean())
        lives += 1
        workers = f"{warm[0]['workers_megabytes']:.0f} - {warm[-1]['workers_megabytes']:.0f}"
        table.append(
            f"| {number + 1} | {own[0]['step']} - {own[-1]['step']} | {own[-1]['alive']:.0f} | "
            f"{mb[: len(mb) // 4 + 1].mean():.1f} | {mb[-(len(mb) // 4 + 1) :].mean():.1f} | {workers} |"
        )
    if not lives:
        say(f"no process has lived long enough, {WARM_UP} seconds and some steps, to tell of its memory")
        return
    t, mb = np.concatenate(times), np.concatenate(levels)
    slope = float(t @ mb / (t @ t))
    error = float(np.sqrt(((mb - slope * t) ** 2).sum() / (len(t) - lives - 1) / (t @ t)))
    say("\n".join(table))
    say(f"memory of a training process: {slope:+.1f} MB an hour, standard error {error:.1f}")
    if slope - 2 * error > MOST_GROWTH * np.mean([line["megabytes"] for line in lines]):
        faults.append(f"the memory grows by {slope:.0f} MB an hour")


def say(text: str) -> None:
    """A line of the report."""
    tqdm.write(text)


def main() -> None:
    """Make the data, train, stop, kill, and give account."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--processes", type=int, default=1, help="that train together")
    parser.add_argument("--rows", type=int, default=2000, help="pairs in the shards")
    parser.add_argument("--broken_share", type=float, default=0.05)
    parser.add_argument("--shortest", type=float, default=30, help="seconds until a process is stopped, at least")
    parser.add_argument("--longest", type=float, default=900, help="seconds until a process is stopped, at most")
    parser.add_argument("--output_dir", default="runs/soak", help="for all of it; what is there is removed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which it is stopped")
    options = parser.parse_args()
    folder = Path(options.output_dir)
    shutil.rmtree(folder, ignore_errors=True)
    broken = make_shards(folder / "shards", options.rows, options.broken_share)
    ends = run(options, folder)
    say(", ".join(f"{end} x{count}" for end, count in Counter(ends).items()))
    faults = account(options, folder, broken)
    memory(sorted(folder.glob("journal_*.jsonl")), faults)
    for fault in faults[:20]:
        say(f"FAULT: {fault}")
    say(
        "every row is accounted for"
        if not faults
        else f"{len(faults)} faults; what was said is in {folder}/output.txt"
    )
    sys.exit(bool(faults))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(sys.argv[2], sys.argv[3:])
    else:
        main()
