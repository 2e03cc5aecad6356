"""Run `albef finetune` from a checkout, such as by `accelerate launch train/finetune.py vqa --help`."""

import sys

from albef_hf.cli import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
