# Two commands on a fresh machine:   make edit   (an edit with the embedded default)   and   make test
PYTHON ?= python3
BIN := .venv/bin
SAMPLE ?= docs/samples/ice.png
INSTRUCTION ?= What would happen if this ice cube were left in the sun?

.PHONY: edit test test-long lint tiny eval docs golden reference clean

edit: .venv/.installed
	@mkdir -p out
	@$(BIN)/reasonbrain edit $(SAMPLE) "$(INSTRUCTION)" -o out/edit.png --panel out/panel.png

test: lint
	$(BIN)/python -m pytest -m "not long"

test-long: .venv/.installed-dev
	$(BIN)/python -m pytest -m long

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The embedded default from nothing: four stages, each continues where it was stopped (hours on two cores).
tiny: .venv/.installed
	$(BIN)/python -m reasonbrain.train.tiny.autoencoder -o runs/tiny/vae
	$(BIN)/python -m reasonbrain.train.tiny.clip -o runs/tiny/clip
	$(BIN)/python -m reasonbrain.train.tiny.mllm -o runs/tiny/mllm
	$(BIN)/reasonbrain train --config tiny -o runs/tiny/edit model.encoders.pretrained=runs/tiny/clip \
		model.mllm.pretrained=runs/tiny/mllm model.diffusion.autoencoder=runs/tiny/vae
	$(BIN)/python -m reasonbrain.train.tiny.publish runs/tiny configs/tiny

eval: .venv/.installed
	$(BIN)/reasonbrain eval --benchmark mini -o runs/eval

# The documentation site, in site/ (needs Python 3.11 or newer).
docs: .venv/.installed-dev
	$(BIN)/zensical build --strict --clean

# docs/reference/*.md from the code; a test compares them.
reference: .venv/.installed
	$(BIN)/python docs/reference/generate.py

# Records tests/golden anew: only where other results are meant.
golden: .venv/.installed-dev
	$(BIN)/python tests/golden/record.py

# the tests use the extras [train] (deepspeed, bitsandbytes), [data] (datasets), [eval] (torchmetrics, openai), [docs]
# and [ray]; flash-attn comes with [flash]
.venv/.installed: setup.py constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,docs,train,data,eval,ray]"
	@touch $@

clean:
	rm -rf .venv .cache out site build *.egg-info
