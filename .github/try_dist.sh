#!/usr/bin/env bash
# The first commands of a new user, with the `albef` and `python` that PATH names, in an empty folder.
set -euxo pipefail
cd "$(mktemp -d)"
albef --help
albef pretrain --config scenes --max_steps 20 --validation_size 50
albef evaluate retrieval --model runs/scenes --validation_size 50
python -c "
from albef_hf.data import Scenes
for i, row in enumerate(Scenes(20)):
    row['image'].save(f'{i}.png')
"
albef index build . --model runs/scenes
albef search "a green ring" --html page.html
test -s page.html
