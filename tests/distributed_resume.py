"""Two processes that are stopped and resumed, and two that are not; launched by training/test_resume.py."""

import os
import signal
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState

from albef_hf import cli
from albef_hf.training import logging, run
from albef_hf.training.signals import TrainingInterrupted
from albef_hf.training.trainer import Trainer

STOP_AT = 3


class SignalledTrainer(Trainer):
    """Assert that there are two processes; only the second one may receive a signal."""

    is_signalled = False

    def _teacher_forward(self, batch):
        targets = super()._teacher_forward(batch)
        assert self.accelerator.num_processes == 2
        if self.is_signalled and self.state.step == STOP_AT - 1 and self.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return targets


def train(folder: str, *arguments: str) -> int:
    """Pretrain in this process; return the exit code."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    given = sys.argv[1:]
    given[given.index("--output_dir") + 1] = folder
    try:
        cli.main(["pretrain", *given, *arguments])
    except TrainingInterrupted as interrupted:
        return interrupted.code
    return 0


if __name__ == "__main__":
    run.Trainer = SignalledTrainer
    logging.plot_curves = lambda log, image: None  # drawing takes as long as the trainings
    torch.distributed.init_process_group("gloo")
    torch.distributed.destroy_process_group = lambda *_: None  # which Accelerate calls at the end of a run
    root = Path(sys.argv[sys.argv.index("--output_dir") + 1])
    assert train(str(root / "whole")) == 0
    SignalledTrainer.is_signalled = True
    assert train(str(root / "out")) == 75
    assert (root / "out" / "checkpoints" / f"step_{STOP_AT}").is_dir()
    SignalledTrainer.is_signalled = False
    assert train(str(root / "out"), "--resume_from_checkpoint", "--overwrite_output_dir", "false") == 0
