# The commands of the README, for a machine that has Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV ?= .venv
# The version of torch for `make constraints`, which takes the newest release of everything else.
TORCH ?= torch==2.13.0

# One process per core, with one thread each: more threads would wait for each other. A process that is done takes tests
# over from the others, so that none is left with a long file.
PARALLEL ?= --numprocesses logical --maxprocesses 8 --dist worksteal
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q
# The package with all extras that tests need.
EVERYTHING = -e ".[demo-test,common]"

.PHONY: pretrain style test test-newest test-oldest constraints common demo-test docs linkcheck dist try-dist

pretrain: $(VENV)/installed
	$(VENV)/bin/albef pretrain --config scenes

style: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/typos
	$(VENV)/bin/mypy

test: style
	$(PYTEST) --durations 8 $(PARALLEL)

# The same tests with the newest release of every library. CONTRIBUTING says what to do when they fail.
test-newest: override VENV = .venv-newest
test-newest:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet $(EVERYTHING)
	$(PYTEST) $(PARALLEL)

# The same tests with the oldest release of every library that setup.cfg allows.
test-oldest: override VENV = .venv-oldest
test-oldest:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet uv
	$(VENV)/bin/uv pip install --quiet --python $(VENV) --resolution lowest-direct $(EVERYTHING)
	$(PYTEST) $(PARALLEL)

# Pin the newest release of every library, after test-newest has passed; the oldest Python has the fewest releases.
constraints: override VENV = .venv-constraints
constraints:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] != (3, 11) and 'constraints.txt is made with Python 3.11')"
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade setuptools
	$(VENV)/bin/pip install --quiet "$(TORCH)" -e ".[style,docs]" $(EVERYTHING)
	$(VENV)/bin/pip freeze --all --exclude-editable --exclude pip > $(VENV)/frozen.txt
	echo "# Exact versions that the tests ran with; written by make constraints." > $(VENV)/constraints.txt
	sed '/^nvidia-/d; /^triton==/d; s/+cpu$$//' $(VENV)/frozen.txt >> $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt

# transformers' own tests, from the installed version, and the tests of the ONNX export.
common: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --no-build-isolation -e ".[common]"
	PYTHONPATH="$$($(VENV)/bin/python tests/common/fetch.py $(VENV)/common)" $(VENV)/bin/python -m pytest -q -rs \
		tests/common/models.py tests/common/processor.py tests/test_export.py

# The demo in a browser: needs chromium and chromedriver (Debian: chromium-driver).
demo-test: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --no-build-isolation -e ".[demo-test]"
	$(PYTEST) -rs tests/demo/test_demo_browser.py

# The site, in docs/_build/html; a warning is an error.
docs linkcheck: override VENV = .venv-docs
docs: .venv-docs/installed
	$(VENV)/bin/sphinx-build --fail-on-warning --keep-going -b html docs docs/_build/html

# The links of the site that lead elsewhere.
linkcheck: .venv-docs/installed
	$(VENV)/bin/sphinx-build --fail-on-warning --keep-going -b linkcheck docs docs/_build/linkcheck

# What is uploaded to PyPI.
dist: override VENV = .venv-dist
dist:
	@! grep -n "github.com/you/" setup.cfg CITATION.cff || { echo "Set the owner of the repository there."; exit 1; }
	rm -rf dist $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet build twine
	$(VENV)/bin/python -m build
	$(VENV)/bin/twine check --strict dist/*

.venv-docs/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --constraint constraints.txt setuptools
	.venv-docs/bin/pip install --quiet --constraint constraints.txt --no-build-isolation -e ".[docs]"
	touch $@

# The wheel in an empty environment, from an empty folder: training, evaluation, search.
try-dist: override VENV = .venv-try
try-dist:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet "$$(ls dist/albef_hf-*.whl)[train,search]"
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" .github/try_dist.sh

# No build isolation: pip would build the package with an unpinned setuptools.
$(VENV)/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt setuptools
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --no-build-isolation -e ".[test,demo,style]"
	touch $@
