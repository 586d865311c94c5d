PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
# Compiled modules make every command start seconds sooner.
unexport PYTHONDONTWRITEBYTECODE


.PHONY: demo test lint lock clean

demo: $(VENV)/.installed
	$(BIN)/python -m siamese_sat.synthetic $(DEMO)/data --novel aircraft
	$(BIN)/python train.py experiment=demo data.scenes=$(DEMO)/data/train paths.output_dir=$(DEMO)/train
	# An embedder trained from scratch finds more with a level to each size, and the scenes are small.
	$(BIN)/python search.py experiment=demo_search demo=$(DEMO) search.method.sizes_per_level=1

# SLOW=1 runs the slow tests too. Files are shared out among as many processes as there are cores.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --dist loadfile $(if $(SLOW),,-m "not slow")

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --compile-bytecode --quiet --requirement requirements.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --editable .
	touch $@

lock:
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --extra dev \
	  pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(DEMO) outputs multirun .cache
