# make study   search a small network on data that comes with scikit-learn, from an empty machine to an exported folder
# make test    all tests
# make quick   what can be tested in a minute: no database server, no browser, no process of its own
# make check   lint and types
# make benchmark           what compressing costs in time and memory
# make benchmark-search    what a search costs beside its trials; MRI=DIR measures AlexNet on the MRI set too
# make benchmark-large     how seconds and memory grow with the number of images
# make benchmark-scores    how fast ten thousand trials with their scores are read
# make benchmark-refine    what refining gains and takes; MRI=DIR has the images
# make benchmark-agreement how far the files of an export are from each other; MRI=DIR has other images
# make benchmark-page      the page of a study of 10,000 trials: seconds, bytes, memory
# make benchmark-samplers  how many trials each sampler takes on a landscape that was measured once
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Python compiles a module when it is first imported and keeps the result; compiling all of torch at once takes twice as
# long as unpacking it.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
STUDY := digits-study
# Twice the cores, at most 4: many tests wait for servers and for other processes.
PROCESSES = $(shell $(PYTHON) -c 'import os; print(min(4, 2 * os.cpu_count()))')

.PHONY: study test quick check benchmark benchmark-search benchmark-large benchmark-scores benchmark-refine benchmark-samplers benchmark-page benchmark-agreement clean

# torch and torchvision are pinned together here: each torchvision fits one torch. pyproject.toml has the range that works.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch==2.13.0
	$(INSTALL) torchvision==0.28.0 --editable .
	touch $@

$(VENV)/.installed-for-tests: $(VENV)/.installed
	$(INSTALL) --editable '.[dev]'
	$(BIN)/python tests/browser.py
	touch $@

study: $(VENV)/.installed
	mkdir -p $(STUDY)
	$(BIN)/hscc-search run digits --storage sqlite:///$(STUDY)/studies.db
	$(BIN)/hscc-search front digits --storage sqlite:///$(STUDY)/studies.db --html $(STUDY)/front.html
	test -d $(STUDY)/knee || $(BIN)/hscc-search export digits --storage sqlite:///$(STUDY)/studies.db --select knee --out $(STUDY)/knee
	@echo "page: $(STUDY)/front.html"
	@echo "exported knee of the front: $(STUDY)/knee (model card: $(STUDY)/knee/README.md)"
	@echo "next: $(BIN)/hscc-search dashboard --storage sqlite:///$(STUDY)/studies.db"

test: $(VENV)/.installed-for-tests
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

quick: $(VENV)/.installed-for-tests
	$(BIN)/python -m pytest -m 'not slow' --numprocesses logical --maxprocesses 4 --dist loadfile

check: $(VENV)/.installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(VENV)/.installed-for-tests
	$(BIN)/python tests/benchmark_compress.py

benchmark-search: $(VENV)/.installed-for-tests
	$(BIN)/python tests/benchmark_search.py $(MRI)

benchmark-large: $(VENV)/.installed-for-tests
	$(BIN)/python tests/benchmark_large.py

benchmark-scores: $(VENV)/.installed-for-tests
	$(BIN)/python tests/benchmark_scores.py

benchmark-refine: $(VENV)/.installed-for-tests
	$(BIN)/python tests/benchmark_refine.py $(MRI)

benchmark-samplers: $(VENV)/.installed-for-tests
	$(BIN)/python tests/benchmark_samplers.py

benchmark-agreement: $(VENV)/.installed-for-tests
	$(BIN)/python tests/benchmark_agreement.py $(MRI)

benchmark-page: $(VENV)/.installed-for-tests
	$(BIN)/python tests/benchmark_page.py

clean:
	rm -rf $(VENV) $(STUDY)
