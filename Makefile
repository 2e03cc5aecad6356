# The commands of the README, on a machine that has Python 3.11 or newer and nothing else.
PYTHON ?= python3
# The version that the numbers were measured with; TORCH=torch takes the newest.
TORCH ?= torch==2.13.0
# make test VENV=.venv-oldest TRANSFORMERS=transformers==5.17.0 tests with another version than the newest.
TRANSFORMERS ?= transformers
VENV ?= .venv

# A process for each core, with one thread: two threads in each would wait for each other.
PARALLEL ?= --numprocesses logical --maxprocesses 8 --dist loadfile

.PHONY: pretrain test common demo-test

pretrain: $(VENV)/installed
	$(VENV)/bin/python train/pretrain.py --config train/configs/scenes.yaml

test: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q --durations 8 $(PARALLEL)

# transformers' own tests, of the installed version, and those of the export to ONNX.
common: $(VENV)/installed
	$(VENV)/bin/pip install --quiet -e ".[common]"
	PYTHONPATH="$$($(VENV)/bin/python tests/common/fetch.py $(VENV)/common)" $(VENV)/bin/python -m pytest -q -rs \
		tests/common/models.py tests/common/processor.py tests/test_export.py

# The demo in a browser: chromium and chromedriver have to be there (Debian: chromium-driver).
demo-test: $(VENV)/installed
	$(VENV)/bin/pip install --quiet -e ".[demo-test]"
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -rs tests/test_demo.py

$(VENV)/installed: setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet "$(TORCH)"
	$(VENV)/bin/pip install --quiet "$(TRANSFORMERS)"
	$(VENV)/bin/pip install --quiet -e ".[test]"
	touch $@
