# make train   set up, then train a real model on real text and prove that it got better
# make test    set up, then lint, types and tests
# make parity  the gradient of every loss under every mechanics, as a table in docs/parity.md
# make docs    write docs/losses.md and docs/pooling.md from configs/ and docstrings
# make setup   .venv with everything that both need, and the command .venv/bin/embedtrain
#
# Settings go behind: make train ARGS="run.name=mine optim.learning_rate=1e-5". Another Python: make setup PY=python3.12
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PY ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null 2>&1 && $$p -c '$(SUITABLE)' 2>/dev/null && echo $$p && break; done)

.PHONY: train test parity lint docs setup clean

train: setup
	HF_HUB_OFFLINE=$${HF_HUB_OFFLINE:-1} TOKENIZERS_PARALLELISM=false $(BIN)/accelerate launch --quiet \
		--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		train.py recipe=quickstart $(ARGS)

test: lint
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(ARGS)

parity: setup
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 EMBEDTRAIN_PARITY_TABLE=docs/parity.md $(BIN)/pytest -q -n 0 tests/training/test_parity.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m docs.generator

setup: $(VENV)/.ok

# uv does not read pip's PIP_FIND_LINKS (a folder of wheels). On a Linux machine without an NVIDIA driver the CPU build of torch
# saves gigabytes of CUDA packages; where its index is not reachable, the usual build does as well.
$(VENV)/.ok: pyproject.toml constraints.txt
	@test -n "$(PY)" || { echo "No Python 3.11, 3.12 or 3.13 found. Name one: make setup PY=/path/to/python" >&2; exit 1; }
	@$(PY) -c '$(SUITABLE)' || { echo "$(PY) is $$($(PY) --version); Python 3.11, 3.12 or 3.13 is needed: make setup PY=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PY) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt uv
	@set -e; export UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}"; \
	install() { $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt "$$@" -e '.[dev]'; }; \
	if [ -z "$$UV_FIND_LINKS" ] && [ "$$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia/version ]; then \
		echo "setting up $(VENV) (no NVIDIA driver: CPU build of torch)"; \
		install --torch-backend=cpu || { echo "the index of CPU builds is not reachable: taking the usual build of torch"; install; }; \
	else \
		echo "setting up $(VENV)"; install; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
