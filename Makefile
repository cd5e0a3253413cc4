# On a fresh machine: `make edit` makes an edit with the embedded default, `make test` lints and tests.
PYTHON ?= python3
BIN := .venv/bin
SAMPLE ?= docs/samples/ice.png
INSTRUCTION ?= What would happen if this ice cube were left in the sun?

EXTRAS := dev docs mini train eval data ray
comma := ,

.PHONY: edit test test-long gpu lint tiny eval docs golden planted reference lock clean

edit: .venv/.installed
	@mkdir -p out
	@$(BIN)/reasonbrain edit $(SAMPLE) "$(INSTRUCTION)" -o out/edit.png --panel out/panel.png

# two workers with one thread each; tests of one file run in one worker and share its fixtures
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: lint
	$(PYTEST) -m "not long and not gpu"

test-long: .venv/.installed-dev
	$(PYTEST) -m long

# On a machine with a GPU: what only a GPU can show, and the measurements of docs/performance.md.
gpu: .venv/.installed-dev
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m reasonbrain.eval.benchmarking.gpu out/gpu.json docs/performance.md

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/types.py
	$(BIN)/python .ci/files.py
	$(BIN)/codespell $$(git ls-files)

# Trains the embedded default from scratch in four stages, each resumable (hours on two cores).
tiny: .venv/.installed-dev
	$(BIN)/python -m reasonbrain.train.tiny.autoencoder -o runs/tiny/vae
	$(BIN)/python -m reasonbrain.train.tiny.clip -o runs/tiny/clip
	$(BIN)/python -m reasonbrain.train.tiny.mllm -o runs/tiny/mllm
	$(BIN)/reasonbrain train --config tiny -o runs/tiny/edit model.encoders.pretrained=runs/tiny/clip \
		model.mllm.pretrained=runs/tiny/mllm model.diffusion.autoencoder=runs/tiny/vae
	$(BIN)/python -m reasonbrain.train.tiny.publish runs/tiny configs/tiny

eval: .venv/.installed-dev
	$(BIN)/reasonbrain eval --benchmark mini -o runs/eval

# The documentation site, in site/ (needs Python 3.11 or newer).
docs: .venv/.installed-dev
	$(BIN)/zensical build --strict --clean

# Generates docs/reference/*.md from the code; a test compares them.
reference: .venv/.installed
	$(BIN)/python docs/reference/generate.py

# Plants small faults one at a time and runs the tests that should notice them: all (most of an hour), or FAULTS="flux/".
planted: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/planted/plant.py $(FAULTS)

# requirements.lock: all packages of all extras but [flash], with the hashes of their files, for Python 3.11 and newer on
# any platform. Then the list of their licences.
lock: .venv/.installed-dev
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip compile setup.py $(addprefix --extra ,$(EXTRAS)) -c constraints.txt --universal --python-version 3.11 \
		--no-python-downloads --generate-hashes --upgrade --no-header -o requirements.lock
	$(BIN)/python docs/licenses.py

# Records tests/golden anew. Use it only if a change is meant to change results.
golden: .venv/.installed-dev
	$(BIN)/python tests/golden/record.py

# the core, which edits
.venv/.installed: setup.py constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

# all extras except [flash], which must be compiled on a machine with nvcc
.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt \
		-e ".[$(subst $() ,$(comma),$(EXTRAS))]"
	@touch $@

clean:
	rm -rf .venv .cache out site build *.egg-info
