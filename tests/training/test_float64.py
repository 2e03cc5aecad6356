"""Training and evaluation compute nothing in float64, which MPS and some XPU devices do not have."""

import traceback

import torch
from paths import REPOSITORY
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Float64Finder(TorchDispatchMode):
    """Record the lines of this package in which operations return float64."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64 for leaf in tree_leaves(result)):
            lines = [frame for frame in traceback.extract_stack() if str(REPOSITORY / "albef_hf") in frame.filename]
            self.found.add(f"{lines[-1].filename}:{lines[-1].lineno} {function}" if lines else str(function))
        return result


def test_a_pretraining_with_evaluation_computes_nothing_in_float64(pretrain):
    with Float64Finder() as finder:
        pretrain("--max_grad_norm", "1", "--itm_contrast_weight", "0.5", "--hardness_strength", "0.5", steps=2)
    assert not finder.found
    with Float64Finder() as finder:
        torch.ones(2).double()
    assert finder.found == {"aten._to_copy.default"}
