# make demo, make test, make docs: each makes its own virtual environment; all they need is Python >= 3.11 with pip.
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet -c $(CONSTRAINTS)

# Which torch, and the torchvision that was built for it. make test-versions asks for others, with their constraints.
TORCH := 2.13.0
TORCHVISION := 0.28.0
CONSTRAINTS := constraints.txt

.PHONY: demo test test-slow test-versions docs lint lint-ruff lint-format lint-types map format clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py --out demo-output

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# The sweeps: whole architectures, every rule set, files in onnxruntime. CI runs both parts.
test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# Each version of Python and torch in an environment of its own, with the fast tests and the coverage sample: hours.
# Interpreters that are not on PATH: make test-versions VERSIONS='--python /opt/python3.13/bin/python3'
test-versions: $(VENV)/.dev
	$(BIN)/python benchmarks/versions.py $(VERSIONS)

docs: $(VENV)/.dev
	$(BIN)/python docs/demo.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open build/docs/index.html"

lint: lint-ruff lint-format lint-types
	$(BIN)/python .ci/house contracts rooms drawn operators shape

lint-ruff: $(VENV)/.dev
	$(BIN)/ruff check .

lint-format: $(VENV)/.dev
	$(BIN)/ruff format --check .

lint-types: $(VENV)/.dev
	$(BIN)/python .ci/house types

map: $(VENV)/.dev
	$(BIN)/python .ci/house map

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo-output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: a step is done again only where what it installs may have changed.
# torch comes first and alone, so that nothing after it can ask for another build. torchvision, timm and silero-vad come
# without their dependencies for the same reason, and quantus, zennit and lxt too; what they import stands beside them (of
# silero-vad only its weights are read). A browser for the tests that look at pages comes from npm, where there is one, and
# the packages that the page of omenn-fx export --web runs on.
$(VENV)/.base: $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "omenn-fx needs Python >= 3.11, and $(PYTHON) is not: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==$(TORCH)
	$(PIP) --no-deps torchvision==$(TORCHVISION) timm==1.0.31 silero-vad==6.2.3 quantus==0.6.0 zennit==0.5.1 lxt==2.1
	$(PIP) pyyaml huggingface_hub safetensors pillow numpy
	touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml
	$(PIP) -e '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml export/web/package.json
	$(PIP) -e '.[demo,dev]'
	-$(BIN)/python tests/chromium.py
	-$(BIN)/python tests/npm.py
	touch $@
