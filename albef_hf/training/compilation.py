"""Compile student and teacher, each as one graph, and report what dynamo gives up on."""

import contextlib
import logging
from collections.abc import Callable, Iterator

import torch
from accelerate.utils import TorchDynamoPlugin

CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")


def compile_plugin() -> TorchDynamoPlugin:
    """Return how Accelerate compiles student and teacher; the environment of `accelerate launch` may set the mode.

    Raises:
        ValueError: If the mode replays CUDA graphs.
    """
    plugin = TorchDynamoPlugin(backend="inductor", use_regional_compilation=False)
    if plugin.mode in CUDA_GRAPH_MODES:
        raise ValueError(
            f"The mode {plugin.mode} of ACCELERATE_DYNAMO_MODE replays CUDA graphs, which overwrite what a model has "
            "returned when it runs again: the features that the teacher keeps for the queue, for one; set it to "
            "default."
        )
    # DistributedDataParallel would split the student's graph at its buckets of gradients, which fails (torch 2.13) for
    # a graph that takes a number, alpha. So gradients are exchanged after the backward pass instead of during it.
    torch._dynamo.config.optimize_ddp = False
    return plugin


class _LimitHandler(logging.Handler):
    """Passes on the first warning of dynamo that a function is not compiled any more."""

    def __init__(self, say: Callable[[str], None]):
        super().__init__(logging.WARNING)
        self.say = say
        self.said = False

    def emit(self, record: logging.LogRecord) -> None:
        """Say it, if it is about a limit."""
        if "recompile_limit" in record.getMessage() and not self.said:
            self.said = True
            self.say(
                "torch.compile has reached its limit of recompilations: a model runs uncompiled from here on, more "
                "slowly. Batches have too many shapes; set pad_to_multiple_of to a larger number, such as max_tokens"
            )


@contextlib.contextmanager
def report_recompile_limit(say: Callable[[str], None]) -> Iterator[None]:
    """Say, once, when dynamo has compiled a function for so many shapes that it stops to."""
    logger = logging.getLogger("torch._dynamo.convert_frame")
    handler = _LimitHandler(say)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
