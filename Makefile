# Everything runs in .venv, which each target sets up first if it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: setup quickstart test lint format

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# make quickstart DATA=PATH takes an MSD or nnU-Net folder, and writes to out/quickstart-NAME.
quickstart: export QUICKSTART_DATA = $(DATA)
quickstart: $(STAMP)
	$(BIN)/python -m finetune quickstart $(if $(DATA),\
	  --input "$$QUICKSTART_DATA" \
	  --output "out/quickstart-$$(basename "$$QUICKSTART_DATA")")

# Four files at a time, two on each of two cores, since many tests wait for others' processes; the
# files that take longest come first.
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
