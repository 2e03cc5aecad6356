"""Checks of a training that goes wrong."""

import pytest
import torch

from albef_hf.losses_albef import matching_loss
from albef_hf.training.guards import MATCHING_PRIOR


def test_the_matching_prior_is_the_lowest_loss_of_a_constant_answer():
    odds = torch.tensor([[2.0, 1.0], [2.1, 1.0], [1.9, 1.0]]).log()  # of no match, of a match
    losses = [matching_loss(row.expand(12, 2), torch.ones(8, dtype=torch.bool)).item() for row in odds]
    assert losses[0] == pytest.approx(MATCHING_PRIOR, abs=1e-6)
    assert min(losses[1:]) > losses[0]
