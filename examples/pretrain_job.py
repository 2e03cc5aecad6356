# /// script
# requires-python = ">=3.11"
# dependencies = ["albef_hf[train] @ git+https://github.com/you/albef_hf"]
# ///
r"""Pretrain ALBEF without installing anything: uv reads above what to install.

From a clone, without the address above:

    uv run --no-project --with ".[train]" python examples/pretrain_job.py --config scenes --max_steps 20

As a job of Hugging Face, whose disk is gone at its end, the model has to be pushed:

    hf jobs uv run --flavor a10g-small --secrets HF_TOKEN --timeout 12h examples/pretrain_job.py \
        --dataset you/pairs --push_to_hub --hub_model_id you/albef

For a job, the address above has to be that of your repository; after a release on PyPI, `albef_hf[train]` is enough.
Options and output are those of `albef pretrain`.
"""

import sys

from albef_hf.cli import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
