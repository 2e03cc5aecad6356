"""Names of the precisions of weights, for options; torch is not imported, so that `--help` is fast."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
AS_SAVED = "auto"  # in transformers, the dtype that weights have in their file


def dtype_name(dtype: "torch.dtype") -> str:
    """Return the name of a dtype, such as bfloat16."""
    return str(dtype).removeprefix("torch.")
