"""Statistics of batch norms after a step that was not finite."""

import torch
from torch import nn

from albef_hf.training.running_statistics import RunningStatistics


def test_statistics_of_a_step_that_is_not_finite_are_undone():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    statistics = RunningStatistics([model])
    model(torch.randn(4, 3))
    statistics.end_step(torch.tensor(True))
    kept = model[0].running_mean.clone()
    assert kept.any()
    model(torch.full((4, 3), torch.nan))
    assert model[0].running_mean.isnan().all()
    statistics.end_step(torch.tensor(False))
    assert torch.equal(model[0].running_mean, kept) and model[0].num_batches_tracked == 1
