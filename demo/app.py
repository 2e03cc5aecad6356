"""Start the demo of albef_hf. On a Space, environment variables such as ALBEF_MODEL are its options."""

import sys

from albef_hf.cli import main

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
