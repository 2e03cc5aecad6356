# /// script
# requires-python = ">=3.11"
# dependencies = ["albef_hf[train]"]
# ///
r"""Pretrain ALBEF without installing anything: uv reads above what to install.

    uv run examples/pretrain_job.py --config scenes --max_steps 20

As a job of Hugging Face, whose disk is gone at its end, the model has to be pushed:

    hf jobs uv run --flavor a10g-small --secrets HF_TOKEN --timeout 12h examples/pretrain_job.py \
        --dataset you/pairs --push_to_hub --hub_model_id you/albef

The options are those of `albef pretrain`. From a clone, without a release on PyPI, add `--with .` after `uv run`, and
for a job `--with git+https://github.com/you/albef_hf`.
"""

import sys

from albef_hf.cli import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
