# `make demo` and `make test` set everything up by themselves: a virtual environment in .venv, at the versions that
# constraints.txt pins. Needs Python 3.11 or newer and a Linux machine. PYTHON=python3.12 picks another one, and makes
# .venv anew if it has another. pip takes its settings from the environment here too: where there is no GPU,
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu installs a torch without the CUDA libraries into a new .venv:
# of torch 2.13.0 and 2.13.0+cpu, which are both what constraints.txt asks for, pip takes the latter.

PYTHON ?= python3
BIN := .venv/bin
VENV := .venv/pyvenv.cfg
RUNNABLE := .venv/runnable# stamps: what the demo needs is installed,
INSTALLED := .venv/installed# and all that the library is developed with
DOCUMENTED := $(addprefix tritonsoft/,functional.py mixing.py losses.py full_resolution.py sparse.py metrics.py memory.py augmentation data)
PYTEST := $(BIN)/python -m pytest -q -n auto --dist loadgroup --no-loadscope-reorder# in the order of tests/conftest.py

.PHONY: demo test bench cost figures evidence docs gallery lint types test-backends test-kernels test-ray test-recipes gpu format clean

demo: $(RUNNABLE)  ## shrink the built-in street scene and show what is kept
	$(BIN)/tritonsoft demo

test: $(INSTALLED)  ## everything that CI checks, and the time of each stage
	@for stage in lint "--jobs=2 types docs" test-backends test-kernels; do \
		start=$$(date +%s); \
		$(MAKE) --no-print-directory $$stage || exit 1; \
		echo "$$stage: $$(($$(date +%s) - start)) s"; \
	done

bench: $(INSTALLED)  ## this library beside its rivals on this machine
	$(BIN)/python -m pytest -q bench

cost: $(INSTALLED)  ## what the compiled kernels cost, without a GPU: bench/results/kernel-cost.csv, tables of docs/gpu.md
	$(BIN)/python -m bench.kernel_cost
	$(BIN)/python -m bench.plot --tables

figures: $(INSTALLED)  ## figures and tables of speed in docs/benchmarks.md and docs/gpu.md, from bench/results
	$(BIN)/python -m bench.plot

evidence: $(INSTALLED)  ## every number of examples/RESULTS.md again, in hours of a CPU: make evidence DATA=folder-of-CamVid
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[examples]"
	$(BIN)/python examples/probe_results.py --data "$(DATA)" --runs out/probe
	$(BIN)/python examples/results.py --data "$(DATA)" --runs out/training

docs: $(INSTALLED)  ## the documentation as a site, in docs/_build/html; warnings are errors
	$(BIN)/python -m sphinx --quiet --fail-on-warning --nitpicky --keep-going -b html -d docs/_build/doctrees docs docs/_build/html

gallery: $(INSTALLED)  ## the figures that pages and README show, drawn anew
	$(BIN)/python docs/draw_geometry.py
	$(BIN)/python docs/draw_street_scene.py
	$(BIN)/python examples/alignment.py examples/alignment.png
	$(BIN)/python examples/warps.py examples/warps.png

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

test-backends: $(INSTALLED)  ## the reference and Numba, the command line, and every kernel compiled for four GPUs
	$(PYTEST) --doctest-modules tests $(DOCUMENTED)

test-kernels: $(INSTALLED)  ## the Triton kernels again, interpreted on CPU tensors
	TRITON_INTERPRET=1 $(PYTEST) tests -k triton --ignore tests/test_compile.py

test-ray: $(INSTALLED)  ## shrinking data sets on a Ray cluster of two workers, which installs Ray (500 MB) first
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[ray]"
	$(BIN)/python -m pytest -q tests/test_shrink_ray.py

# In an environment on top of .venv: beside a torch of another build, a torchvision breaks all that can import it.
test-recipes: $(INSTALLED)  ## the pages of docs/recipes, which installs Lightning, torchvision and transformers (250 MB) first
	$(BIN)/python -m venv .venv/recipes
	cd .venv/recipes && for packages in lib/python*/site-packages; do echo "../../../../$$packages" > $$packages/base.pth; done
	.venv/recipes/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[recipes]"
	.venv/recipes/bin/python -m pytest -q tests/test_recipes.py

gpu: $(INSTALLED)  ## all that waits for a GPU: its times, the same comparisons on it, a check of its memory accesses
	$(BIN)/python -m bench.gpu

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# An environment stays with the Python that it was made with, unless another one is asked for.
IDENTITY := -c 'import sys; print(sys.base_prefix, sys.version)'
OF_VENV := $(shell $(BIN)/python $(IDENTITY) 2>/dev/null)
ifneq ($(origin PYTHON),file)
ifneq ($(OF_VENV),$(shell $(PYTHON) $(IDENTITY)))
OF_VENV :=
endif
endif

ifeq ($(OF_VENV),)
.PHONY: $(VENV)
endif

$(VENV):
	$(PYTHON) -c 'import sys; sys.exit("tritonsoft needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear .venv

$(RUNNABLE): $(VENV) pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]"
	touch $@

$(INSTALLED): $(VENV) pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@ $(RUNNABLE)

clean:
	rm -rf .venv build dist demo docs/_build docs/gallery *.egg-info
