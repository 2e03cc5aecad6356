"""Run `albef pretrain` from a checkout, such as by `accelerate launch train/pretrain.py --help`."""

import sys

from albef_hf.cli import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
