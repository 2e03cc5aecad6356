"""The pretraining script on every process, with a look at what each of them ends with; see test_pretrain.py."""

import sys

import torch
from paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "train"))
import pretrain  # noqa: E402


class WatchedTraining(pretrain.MomentumTraining):
    """Asserts after the run that the processes have not come apart."""

    def run(self) -> dict[str, float]:
        metrics = super().run()
        assert self.accelerator.num_processes == 2
        assert self.loader.dataset.epoch == 1, "the second epoch has the augmentation of the first"
        state = [*self.student.state_dict().values(), *self.teacher.state_dict().values()]
        mine = torch.cat([tensor.double().flatten() for tensor in state])
        first, second = self.accelerator.gather(mine[None])
        assert torch.equal(first, second), "the processes have different weights, teachers or queues"
        draws = self.accelerator.gather(torch.rand(1))
        assert draws[0] != draws[1], "the processes draw the same dropout"
        self.log.say("equal on both of 2 processes")
        return metrics


if __name__ == "__main__":
    pretrain.MomentumTraining = WatchedTraining
    pretrain.main(sys.argv[1:])
