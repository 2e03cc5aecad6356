"""Run `albef shards` from a checkout."""

import sys

from albef_hf.cli import main

if __name__ == "__main__":
    main(["shards", *sys.argv[1:]])
