"""A pretraining on two processes, with a comparison of what they end with; launched by training/test_trainer.py."""

import sys

import torch

from albef_hf import cli
from albef_hf.training import run
from albef_hf.training.trainer import Trainer


class CheckedTrainer(Trainer):
    """Assert after the training that the processes agree."""

    def train(self) -> dict[str, float]:
        metrics = super().train()
        assert self.accelerator.num_processes == 2
        assert self.loader.dataset.epoch == 1, "the second epoch has the augmentation of the first"
        state = [*self.student.state_dict().values(), *self.teacher.state_dict().values()]
        own = torch.cat([tensor.double().flatten() for tensor in state])
        first, second = self.accelerator.gather(own[None])
        assert torch.equal(first, second), "the processes have different weights, teachers or queues"
        draws = self.accelerator.gather(torch.rand(1))
        assert draws[0] != draws[1], "the processes draw the same dropout"
        self.log.say("equal on both of 2 processes")
        return metrics


if __name__ == "__main__":
    run.Trainer = CheckedTrainer
    cli.main(["pretrain", *sys.argv[1:]])
