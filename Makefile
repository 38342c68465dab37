# make demo: the main job on a fresh machine. make test: the tests. Both install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Files stay whole, as their fixtures are expensive, and come in the order of tests/conftest.py.
PARALLEL := -n auto --dist loadscope --no-loadscope-reorder

.PHONY: install demo test tests-alone check quick-tests fuzz lint typecheck bench gpu clean

install: $(VENV)/.installed

# Bytecode is made of what is imported, when it is: of all packages it would take as long as the rest. And it is kept,
# whatever the environment says: without it each of some hundred processes that tests start would take 16 s to import.
unexport PYTHONDONTWRITEBYTECODE

$(VENV)/.installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[test,bench,tune,report,serve]'
	touch $@

demo: install
	$(BIN)/python examples/demo.py
	$(BIN)/python examples/train_digits.py --epochs 5 --no-resume --require-accuracy 90

# Side by side: tests wait a quarter of their time, for processes that they start and for disks.
test: install
	+$(MAKE) --no-print-directory -j3 lint typecheck tests-alone

tests-alone:
	$(BIN)/python -m pytest $(PARALLEL)

check: install
	+$(MAKE) --no-print-directory -j3 lint typecheck quick-tests

quick-tests:
	$(BIN)/python -m pytest $(PARALLEL) --quick -m "not slow" -q -r fE

# For MINUTES, what an enemy or an accident might do to the package.
fuzz: install
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),5)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: install
	rm -rf build/typed && mkdir -p build/typed && cp -r tvm_na build/typed/ # as installed: one package
	cp -r models schedules build/typed/tvm_na/
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../mypy-cache -p tvm_na

# With DTYPE=bfloat16 what is told of half precision, beside what is there.
bench: install
	-$(BIN)/python -m benchmarks.suite $(if $(DTYPE),--dtype $(DTYPE)) --output build/bench # what fails in it is told by the page
	$(BIN)/python -m benchmarks.suite report build/bench --publish

# On a machine with a GPU and a CUDA compiler. Where there is no compiler, or little time: docs/guide/benchmarks.md.
gpu: install
	$(BIN)/python -m benchmarks.gpu.prepare build/gpu-folder --target cuda --python ''
	PYTHON=$(CURDIR)/$(BIN)/python sh build/gpu-folder/run.sh build/gpu
	$(BIN)/python -m pytest -m gpu

clean:
	rm -rf $(VENV) build *.egg-info demo
