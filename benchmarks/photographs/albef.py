"""`albef` with EfficientNet-Lite0 among the image models.

    python benchmarks/photographs/albef.py pretrain --config photographs_efficientnet --vision_model FOLDER \
        --text_model FOLDER --train_files train.json --validation_files validation.json --image_root FOLDER

Any class of one's own works in this way: import what registers it, then call the command.
"""

import efficientnet_lite  # noqa: F401, registers the class

from albef_hf.cli import main

if __name__ == "__main__":
    main()
