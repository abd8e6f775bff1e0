# `make demo` and `make test` set everything up by themselves: a machine needs Python 3.11 or later, and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow bench lint .venv clean

# Train on the embedded digits, draw new ones, and have a classifier read them; then segment digit scenes with few
# labels, from a denoiser of scenes without labels and from scratch.
demo: .venv
	$(BIN)/python train/denoise.py configs/digits.yaml --run_dir runs/demo
	$(BIN)/python sample/check_digits.py runs/demo
	$(BIN)/python train/denoise.py configs/scenes_denoiser.yaml --run_dir runs/scenes_denoiser
	$(BIN)/python train/segment.py configs/scenes_few_labels.yaml --run_dir runs/scenes_from_denoiser \
		--model.init_from runs/scenes_denoiser --model.timestep 20
	$(BIN)/python train/segment.py configs/scenes_few_labels.yaml --run_dir runs/scenes_from_scratch
	$(BIN)/python sample/check_scenes.py runs/scenes_from_denoiser runs/scenes_from_scratch --digits runs/demo

test: .venv
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow"

# What takes longer: kills at random moments, the compiler, training to a stated figure.
test-slow: .venv
	$(BIN)/python -m pytest -m slow

# Speed and memory beside diffusers and MONAI: half an hour on two quiet cores. DATA=PATH/TO/cifar10 reads real pictures.
bench: .venv
	$(BIN)/python benchmarks/bench.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/bench.py --report

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

.venv: .venv/complete

.venv/complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs
