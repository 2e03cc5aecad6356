# The commands of the README, on a machine that has Python 3.11 or newer and nothing else.
PYTHON ?= python3
# The version that the numbers were measured with; TORCH=torch takes the newest.
TORCH ?= torch==2.13.0

.PHONY: pretrain test common

pretrain: .venv/installed
	.venv/bin/python train/pretrain.py --config train/configs/scenes.yaml

test: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest -q --durations 8

# transformers' own tests, of the installed version, and those of the export to ONNX.
common: .venv/installed
	.venv/bin/pip install --quiet -e ".[common]"
	PYTHONPATH="$$(.venv/bin/python tests/common/fetch.py .venv/common)" .venv/bin/python -m pytest -q -rs \
		tests/common/models.py tests/common/processor.py tests/test_export.py

.venv/installed: setup.cfg
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet "$(TORCH)"
	.venv/bin/pip install --quiet -e ".[test]"
	touch $@
