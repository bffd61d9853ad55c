# Two commands do everything on a machine with Python >= 3.11:
#   make quickstart   the main job, end to end, on the tiny preset (a run directory and an HTML report)
#   make test         the whole test suite
#   make check        the part of it that takes two minutes, with its coverage: no training, no long simulation
#   make lint         format, lint and types
#   make docs         the documentation as a site, in site/
#   make demo         a page on this machine on which the quickstart's models answer (ARGS="--port 8001")
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Huge pages spare XLA's CPU allocator most of its page faults; glibc reads this only at process start.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: quickstart smoke test check lint docs demo clean

quickstart: $(VENV)/.installed
	$(BIN)/python -m experiments.stages.pipeline $(ARGS)

smoke: $(VENV)/.installed
	$(BIN)/python -m experiments.stages.pipeline preset=smoke $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

CHECKED := $(addprefix tests/twin/test_, spec program delay transport qam ldpc detection estimation error_limits cache main look) \
  $(addprefix tests/rldtf_jax/test_, loss reward token_weight advantage logprob config optim metrics checkpoint tokenizer) \
  $(addprefix tests/experiments/test_, orchestration tasks tolerant wording scoring reading environment corpus statistics files)

check: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow' $(addsuffix .py, $(CHECKED)) \
	  --cov=twin --cov=rldtf_jax --cov-report=term $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/python -m ruff format --check --quiet .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

demo: $(VENV)/.installed-demo
	$(BIN)/python -m demo $(ARGS)

$(VENV)/.installed: setup.py requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python >= 3.11 is needed, $(PYTHON) is $$($(PYTHON) -V). Set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[test]'
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  $(BIN)/python -m playwright install chromium
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[docs]'
	@touch $@

$(VENV)/.installed-demo: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[demo]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .hypothesis
