# Two commands for a newcomer: `make demo` and `make test`. Both install first, into .venv.
# uv installs in seconds where it is there; venv and pip do the same anywhere else.

PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null)

ifdef UV
# uv does not read pip's configuration, where a folder of wheels may be named.
VENV = uv venv -q --allow-existing --python $(PYTHON) .venv
INSTALL = UV_FIND_LINKS="$$($(PYTHON) -m pip config get global.find-links 2>/dev/null)" \
	uv pip install -q --python $(BIN)/python -c constraints.txt
else
VENV = $(PYTHON) -m venv .venv
INSTALL = $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
endif

.PHONY: demo tactiletango paper test test-slow lint secrets audit clean

demo: .venv/installed  ## base prompts from examples/ to a verified dataset and its report
	$(BIN)/ppv demo

tactiletango: .venv/installed  ## the paper's 10,000 pictures, at the miniature's scale
	$(BIN)/ppv run examples/tactiletango.txt --set proposer.route=specialist \
		--set prompter.prompts_per_base=20 --set proposer.images_per_prompt=3 \
		--set 'verifier.thresholds={"fidelity": 0.8, "alignment": 0.9}'
	$(BIN)/ppv dataset build tactiletango --runs tactiletango --quota 10000 \
		--title "TactileTango, in miniature"

paper: .venv/installed  ## the paper's comparison, arm by arm; hours, and goes on where it was cut off
	$(BIN)/python -m bench.paper

# One thread a process: two on two busy cores wait for each other.
test: .venv/installed-test  ## the tests, on services that the tests start themselves
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow"

test-slow: .venv/installed-test  ## the few that take most of a minute each
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What tests make up is spelt so that it is known; hashes of weights are no keys.
secrets: .venv/installed-test  ## passwords and keys in files that git keeps
	git ls-files -z ':!pipeline/miniature/weights' ':!*.png' | xargs -0 \
		$(BIN)/detect-secrets-hook --exclude-lines 'pass-word|:password@|hunter[0-9]|sk-(any|bench)'

audit: .venv/installed-test  ## known holes in what is pinned, where an index of them can be asked
	$(BIN)/python .ci/audit.py

clean:
	rm -rf .venv .ppv ppv-demo ppv-out

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv; the first time takes a few minutes"
	$(VENV)
	$(INSTALL) -e .
	@touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) -e '.[test]'
	@touch $@
