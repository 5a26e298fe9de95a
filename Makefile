# Two commands: `make demo` and `make test`. Both set up .venv when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BACKBONE ?= resnet18
WEIGHTS ?=
IMAGES ?=
# Half of the time tests wait: for processes, leases, the database. The slowest files come first.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo bench test lint setup constraints clean

demo: $(READY)
	$(BIN)/python -m patchstore.demo --backbone "$(BACKBONE)" --weights "$(WEIGHTS)"

bench: $(READY)
	$(BIN)/patchstore bench $(IMAGES) --backbone "$(BACKBONE)" --weights "$(or $(WEIGHTS),random:0)" --plots build

test: $(READY) lint
	$(BIN)/python -m pytest $(PARALLEL)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo "installing into $(VENV): some 7 GB with torch's CUDA, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]" --constraint constraints.txt
	@touch $@

# Every transitive version, from an environment in which the tests passed.
constraints: $(READY)
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt

clean:
	-test ! -d demo/store || PATCHSTORE_HOME=demo/store $(BIN)/patchstore stop
	rm -rf $(VENV) demo build
