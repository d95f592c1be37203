# make demo     installs what it needs, then trains, distills and reports on the embedded digits
# make compare  compares all methods of distillation on the digits at equal cost, three times
# make claims   shows the paper's claims again on the digits: every output and weight of its table 1, three times
# make mnist    MNIST, 28x28, with classes and guidance: teacher, student that takes the weight, ladder to 1 step, report
# make letters  the same with coloured letters of 32x32, which are drawn by the typefaces that come with matplotlib
# make test     installs what tests need besides (TensorFlow among it, to prepare datasets), then runs every check and test
# make peer     installs PyTorch, torch-fidelity and diffusers in an environment of their own, to compare with: tests/peers
#               and scripts/benchmarks/benchmark.py --peer
# make docs     builds the documentation, site/index.html, in an environment of its own; what is missing in it is an error
#
# PYTHON: the interpreter of the virtual environment; by default the newest working one of 3.13, 3.12, 3.11.

VENV ?= .venv
RUNS ?= runs/digits
PYTHON ?= $(shell scripts/find_python.sh)
RUN := $(VENV)/bin/python
PEER ?= .venv-peer
DOCS ?= .venv-docs

# pip compiles no Python here, most of which nobody loads; what is loaded is compiled once, where images of containers say
# that it is not to be kept, too.
export PYTHONDONTWRITEBYTECODE :=

# On some Linux systems, training on a CPU is 11 to 18% faster with large pages of memory, which the C library then uses.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo compare claims mnist letters test install lint peer docs clean

demo: install
	$(RUN) scripts/train.py --config=configs/digits_base.py --workdir=$(RUNS)/base
	$(RUN) scripts/distill.py --config=configs/digits_distill.py \
		--config.distillation.teacher_checkpoint_path=$(RUNS)/base --workdir=$(RUNS)/ladder
	@echo "Open $(RUNS)/ladder/report/index.html; digits drawn in one step are in $(RUNS)/ladder/steps_0001/samples."

compare: install
	$(RUN) scripts/train.py --config=configs/digits_base.py --workdir=$(RUNS)/base
	$(RUN) scripts/compare.py --config=configs/digits_distill.py --budget=0.5 \
		--config.distillation.teacher_checkpoint_path=$(RUNS)/base --workdir=$(RUNS)/compare
	@echo "Open $(RUNS)/compare/index.html."

claims: install
	$(RUN) scripts/claims.py --config=configs/digits_base.py --ladder=configs/digits_distill.py \
		--config.train.num_train_steps=600 --ladder.distillation.steps_per_iter=60 --config.eval.metrics="('frechet',)" \
		--workdir=$(RUNS)/claims
	@echo "Open $(RUNS)/claims/index.html."

mnist: $(VENV)/installed_mnist guided_mnist
letters: install guided_letters

guided_%:
	$(RUN) scripts/train.py --config=configs/$*_base.py --workdir=runs/$*/base
	$(RUN) scripts/distill.py --config=configs/$*_student.py \
		--config.distillation.teacher_checkpoint_path=runs/$*/base --workdir=runs/$*/student
	$(RUN) scripts/distill.py --config=configs/$*_distill.py \
		--config.distillation.teacher_checkpoint_path=runs/$*/student/steps_0064 --workdir=runs/$*/ladder
	@echo "Open runs/$*/ladder/report/index.html."

test: lint
	$(RUN) -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed_test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

install: $(VENV)/installed

define install
	test -n "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --no-compile --editable
endef

$(VENV)/installed: setup.py
	$(install) .
	touch $@

$(VENV)/installed_mnist: setup.py
	$(install) ".[mnist]"
	touch $(VENV)/installed $@

$(VENV)/installed_test: setup.py
	$(install) ".[test]"
	touch $(VENV)/installed $@

peer: $(PEER)/installed

$(PEER)/installed: scripts/benchmarks/requirements-peer.txt scripts/benchmarks/requirements-peer-alone.txt
	python3.11 -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet --no-compile --requirement $<
	$(PEER)/bin/python -m pip install --quiet --no-compile --no-deps --requirement $(word 2,$^)
	touch $@

docs: $(DOCS)/installed
	$(DOCS)/bin/python -m ruff check --select D1 --ignore D105,D107 diffusion_distillation
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict
	@echo "Open site/index.html; with search, http://localhost:8000 after 'python3 -m http.server --directory site'."

$(DOCS)/installed: setup.py
	test -n "$(PYTHON)"
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(PEER) $(DOCS) $(RUNS) site
