"""Two processes that are stopped and go on, beside two that are not; launched by torchrun from test_resume.py."""

import os
import signal
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState
from paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "train"))
import pretrain  # noqa: E402

from albef_hf.training.signals import Stopped  # noqa: E402

STOP_AT = 3


class WatchedTraining(pretrain.MomentumTraining):
    """Asserts that there are two processes; the second one alone may get a signal."""

    signalled = False

    def _forward_backward(self, *heard):
        super()._forward_backward(*heard)
        assert self.accelerator.num_processes == 2
        if self.signalled and self.step == STOP_AT - 1 and self.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGUSR1)


def train(folder: str, *arguments: str) -> int:
    """Run the script in this process; returns its exit code."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    given = sys.argv[1:]
    given[given.index("--output_dir") + 1] = folder
    try:
        pretrain.main([*given, *arguments])
    except Stopped as stopped:
        return stopped.code
    return 0


if __name__ == "__main__":
    pretrain.MomentumTraining = WatchedTraining
    torch.distributed.init_process_group("gloo")
    torch.distributed.destroy_process_group = lambda *_: None  # which Accelerate calls at the end of a run
    root = Path(sys.argv[sys.argv.index("--output_dir") + 1])
    assert train(str(root / "whole")) == 0
    WatchedTraining.signalled = True
    assert train(str(root / "out")) == 75
    assert (root / "out" / "checkpoints" / f"step_{STOP_AT}").is_dir()
    WatchedTraining.signalled = False
    assert train(str(root / "out"), "--resume", "--overwrite_output_dir", "false") == 0
