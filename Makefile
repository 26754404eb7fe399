# make demo     set up and run the main job on the embedded world
# make explore  search the demo's scenes in a browser
# make check    set up and look for what is quickly found: lint, documentation and the quickest tests
# make test     set up and run the tests that tell whether groundray works
# make thorough run those that show in full what these show in small; make test-all runs both
# make slow     run those that take minutes, and after make demo those of what it has learned
# make chaos    kill runs of several processes in every way (about an hour)
# make soak     kill the demo thirty times, at random (three quarters of an hour)
# make gpu      check the arithmetic of a CUDA GPU and measure the losses and a step there (less than 8 minutes on an H200)
# make docs     set up and build the documentation into site/; a dead link fails
# make notebook run docs/demo.ipynb again and keep its outputs
# make lint     set up and check format, style, types, import contracts, shell scripts and the Dockerfile
# make clean    remove the environment, what groundray and the tests have made (data, runs, tracking), and caches
# make audit    set up and look for known vulnerabilities of the locked packages
PYTHON ?= python3
BIN := .venv/bin
export RAY_ENABLE_UV_RUN_RUNTIME_ENV = 0

.PHONY: setup demo explore check quick test thorough test-all slow chaos soak gpu docs notebook lint audit lock clean

setup: .venv/.ready

# The lock names exact versions, the hashes of their files and no addresses: any package index serves it, and a file that is
# not the one that was locked is refused. Bytecode of what runs is compiled now: where Python may not write it later, each
# of a run's many processes would compile torch, transformers and Ray once more.
.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else f"groundray needs Python 3.11 or newer, this is {v[0]}.{v[1]}: run make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --require-hashes --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m groundray.cli.bytecode
	@touch $@

demo: setup
	$(BIN)/python -m groundray.train --config demo
	$(BIN)/python -m groundray.analyse retrieval --checkpoint runs/demo/model --data data/scenes/captions/val
	$(BIN)/python -m groundray.analyse relations --checkpoint runs/demo/model --data data/scenes/scene_graphs/val

explore: setup
	$(BIN)/python -m groundray.serve --checkpoint runs/demo/model --images data/scenes/captions/val \
		--norms data/scenes/source/norms --open

# The type checker takes as long as the rest, and one core.
check: setup
	$(MAKE) --jobs 2 lint docs quick

LONG := slow or chaos or soak or gpu
QUICK := tests/config tests/loss tests/stage tests/analysis/measures tests/data/test_plan.py tests/data/test_shards.py \
	tests/test_credentials.py tests/test_docs.py tests/test_rng.py
quick: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet $(QUICK) -m "not (thorough or ray or $(LONG))"

# With AGAIN=1, as in CI, tests that fail run once more, without others beside them. Those that then pass depend on their
# order or on the machine's load: faults of the tests, which are named and are to be mended.
TWO := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations 15
ALONE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --verbose --last-failed --last-failed-no-failures none
tests = $(TWO) -m $(1) || { [ $$? = 1 ] && [ -n "$(AGAIN)" ] && echo "those that failed, once more:" && $(ALONE) -m $(1); }
test: setup
	$(call tests,"not (thorough or $(LONG))")

thorough: setup
	$(call tests,"thorough and not ($(LONG))")

test-all: test thorough

slow: setup
	$(BIN)/python -m pytest -m slow

chaos: setup
	$(BIN)/python -m pytest tests/faults -m "chaos or not soak"

soak: setup
	$(BIN)/python -m pytest tests/faults -m soak -s

# Figures are measured even where a check fails. Without a GPU each of the three says so, and make fails.
OUT ?= runs/gpu
gpu: setup
	status=0; \
	$(BIN)/python -m pytest tests/gpu -m gpu --durations=5 || status=1; \
	$(BIN)/python -m groundray.bench loss --device cuda --precision bf16 --batch 180 1024 4096 --tokens 32 --max-seconds 20 \
		--only "einsum + max, compiled" flash-maxsim late-interaction-kernels --json $(OUT)/loss.json || status=1; \
	$(BIN)/python -m groundray.bench update --device cuda --precision bf16 tf32 float32 --batch 180 1024 --max-seconds 10 \
		--profile $(OUT)/profiles --json $(OUT)/update.json || status=1; \
	exit $$status

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebook: setup
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace docs/demo.ipynb

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/shellcheck .ci/run cluster/*.sh
	$(BIN)/hadolint k8s/Dockerfile

# Known vulnerabilities of the locked packages; the package index must serve advisories.
audit: setup
	$(BIN)/uv tool run pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

# Newest versions that fit pyproject.toml, for every platform, without addresses.
lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --extra dev --extra docs --extra pretrained --extra postgres \
		--extra search --extra models --extra trackers --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links pyproject.toml -o requirements.lock

clean:
	rm -rf .venv data runs mlruns mlartifacts mlflow.db* site build
	find . -type d \( -name __pycache__ -o -name '*.egg-info' -o -name '.*_cache' -o -name .hypothesis -o -name .ipynb_checkpoints \) \
		-prune -exec rm -rf {} +
