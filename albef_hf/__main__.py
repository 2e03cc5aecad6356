"""`python -m albef_hf`, so that `accelerate launch -m albef_hf pretrain` works."""

from .cli import main

if __name__ == "__main__":
    main()
