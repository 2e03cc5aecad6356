"""Configurations of several GPUs and nodes are valid, and a Slurm job resumes by itself.

ALBEF_LONG=1 also launches the configurations, on CPUs instead of GPUs, and runs the Slurm job until it is requeued.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from paths import REPOSITORY
from small_pretraining import records_of, small_run

from albef_hf.training.distributed import check_processes

CONFIGS = REPOSITORY / "train" / "accelerate"
SLURM = REPOSITORY / "train" / "slurm" / "pretrain.sbatch"
LONG = bool(os.environ.get("ALBEF_LONG"))
only_long = pytest.mark.skipif(not LONG, reason="takes long: ALBEF_LONG=1 runs it")
ON_PROCESSORS = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("name", "kind", "machines", "processes"),
    [
        ("one_gpu", DistributedType.NO, 1, 1),
        ("eight_gpus", DistributedType.MULTI_GPU, 1, 8),
        ("nodes", DistributedType.MULTI_GPU, 2, 16),
    ],
)
def test_accelerate_reads_its_configurations(name, kind, machines, processes):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == kind and config.mixed_precision == "bf16" and not config.use_cpu
    assert (config.num_machines, config.num_processes) == (machines, processes)


@pytest.fixture
def probe(tmp_path) -> Path:
    path = tmp_path / "probe.py"
    path.write_text(
        "from albef_hf.training.arguments import TrainingArguments\n"
        "from albef_hf.training.distributed import check_processes, make_accelerator\n"
        "accelerator = make_accelerator(TrainingArguments())\n"
        "check_processes(accelerator)\n"
        "print('seen', accelerator.process_index, accelerator.num_processes, accelerator.mixed_precision)\n"
    )
    return path


def launch(config: str, *arguments: object, environment: dict[str, str] = ON_PROCESSORS) -> subprocess.Popen:
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(CONFIGS / f"{config}.yaml"), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment | {"PYTHONPATH": str(REPOSITORY)}, **pipes)


@only_long
def test_processes_of_one_node_know_each_other(probe):
    assert "seen 0 1 bf16" in launch("one_gpu", probe).communicate(timeout=300)[0]
    said = launch("eight_gpus", "--num_processes", 2, probe).communicate(timeout=300)[0]
    assert "seen 0 2 bf16" in said and "seen 1 2 bf16" in said


@only_long
def test_processes_of_two_nodes_know_each_other(probe):
    """Both on this machine, each with a launcher of its own."""
    shared = ("--num_processes", 2, "--main_process_ip", "127.0.0.1", "--main_process_port", 29611)
    nodes = [launch("nodes", *shared, "--machine_rank", rank, probe) for rank in range(2)]
    for rank, node in enumerate(nodes):
        assert f"seen {rank} 2 bf16" in node.communicate(timeout=300)[0]


@only_long
def test_processes_that_do_not_know_each_other_are_refused(probe):
    environment = {name: value for name, value in ON_PROCESSORS.items() if name != "ACCELERATE_USE_CPU"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    said = launch("eight_gpus", "--num_processes", 2, probe, environment=environment).communicate(timeout=300)[0]
    assert "WORLD_SIZE is 2 but Accelerate sees 1 process(es)" in said


def test_unknown_processes_and_sharded_models_are_refused(monkeypatch):
    alone = SimpleNamespace(num_processes=1, distributed_type=DistributedType.NO)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    check_processes(alone)
    with pytest.raises(ValueError, match="the teacher averages unsharded weights. Use MULTI_GPU"):
        check_processes(SimpleNamespace(num_processes=1, distributed_type=DistributedType.FSDP))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"Accelerate sees 1 process\(es\).*set ACCELERATE_USE_CPU=true"):
        check_processes(alone)


# ---------------------------------------------------------------------------------------------------------------------
# Slurm
# ---------------------------------------------------------------------------------------------------------------------

# Substitutes: one process per task, to which srun passes its signals; its exit code is the highest of theirs. It kills
# those that are left some time after the first one has ended.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do
    [[ $1 == --wait=* ]] && seconds=${SRUN_WAIT:-${1#--wait=}}
    shift
done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    tasks+=($!)
done
trap 'kill -USR1 "${tasks[@]}"' USR1
trap 'kill -TERM "${tasks[@]}"' TERM
(
    while for task in "${tasks[@]}"; do kill -0 "$task" || break 2; done; do sleep 0.1; done
    sleep "$seconds"
    kill -KILL "${tasks[@]}"
) 2>/dev/null &
watcher=$!
highest=0
for task in "${tasks[@]}"; do
    while kill -0 "$task" 2>/dev/null; do wait "$task"; done
    wait "$task"; code=$?
    ((code > highest)) && highest=$code
done
kill "$watcher" 2>/dev/null
exit $highest
"""
STEPS = 12
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then echo 127.0.0.1; else echo "$@" >> "$REQUEUED"; fi
"""


def test_the_slurm_script_is_bash():
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    assert "#SBATCH --signal=B:USR1@300" in SLURM.read_text()


@pytest.fixture
def slurm(tmp_path):
    """Return a function that submits a job with some tasks and further settings of the environment."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def submit(tasks: int, arguments: list[str], **settings: str) -> subprocess.Popen:
        environment = ON_PROCESSORS | {
            "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "REQUEUED": str(tmp_path / "requeued"),
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_NTASKS": str(tasks),
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(["bash", str(SLURM), *arguments], cwd=REPOSITORY, env=environment | settings, **pipes)

    return submit


@pytest.mark.parametrize(
    ("settings", "is_requeued"),
    [
        ({"REQUEUE_AFTER": "0"}, True),
        ({}, False),
        ({"REQUEUE_AFTER": "0", "SLURM_RESTART_COUNT": "20"}, False),
    ],
)
def test_a_job_with_a_killed_process_ends_and_is_requeued_but_not_forever(slurm, tmp_path, settings, is_requeued):
    (tmp_path / "python").write_text("#!/bin/bash\ntrap '' TERM\n((RANK == 1)) && kill -KILL $$\nexec sleep 300\n")
    (tmp_path / "python").chmod(0o755)
    job = slurm(3, [], SRUN_WAIT="0.2", **settings)
    said = job.communicate(timeout=60)[0]
    assert job.returncode == 137 and "a process was killed (exit code 137)" in said, said
    assert (tmp_path / "requeued").exists() == is_requeued


@only_long
def test_a_job_at_its_time_limit_is_requeued_and_resumes(slurm, tmp_path):
    tasks, requeued = 2 if LONG else 1, tmp_path / "requeued"
    arguments = small_run(tmp_path / "out", STEPS)
    arguments += ["--logging_steps", "1", "--validation_size", "0", "--scenes", "80"]
    arguments = [argument for argument in arguments if argument not in ("--overwrite_output_dir", "True")]
    job, begun = slurm(tasks, arguments), time.monotonic()
    log = tmp_path / "out" / "log.jsonl"
    while not log.exists() or not log.stat().st_size:
        assert job.poll() is None and time.monotonic() < begun + 200, job.communicate()[0]
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    said = job.communicate(timeout=200)[0]
    assert job.returncode == 75, said
    assert "stopped by SIGUSR1; the checkpoint is written" in said and f"of {tasks} process(es)" in said
    assert requeued.read_text() == f"requeue {os.getpid()}\n"
    stopped = len(records_of(tmp_path / "out"))
    job = slurm(tasks, arguments)
    said = job.communicate(timeout=200)[0]
    assert job.returncode == 0 and "resumed from" in said, said
    assert requeued.read_text().count("\n") == 1 and 0 < stopped < STEPS
    steps = [record["step"] for record in records_of(tmp_path / "out") if "loss" in record]
    assert steps == list(range(1, STEPS + 1))
