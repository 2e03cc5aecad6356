"""Run `albef evaluate` from a checkout, such as by `accelerate launch train/evaluate.py vqa --help`."""

import sys

from albef_hf.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
