# make demo     trains, distills and reports on the digits of scikit-learn
# make compare  compares all distillation methods on the digits at equal cost, with three seeds
# make claims   reproduces the paper's claims on the digits: every output and weight of its table 1, with three seeds
# make mnist    MNIST, 28x28, with classes and guidance: a teacher, a student that takes the guidance weight, a ladder
#               to 1 step, and a report
# make letters  the same on colored 32x32 letters, rendered in the typefaces of matplotlib
# make latents  the same in the latents of an autoencoder, with a diffusion transformer
# make test     runs all checks and tests
# make peer     makes an environment with PyTorch, torch-fidelity and diffusers to compare with, for tests/peers and
#               scripts/benchmarks/benchmark.py --peer
# make docs     builds the documentation, site/index.html; fails if a docstring or a link is missing
# make clean    removes the environments, the runs of the digits and the site
#
# The commands first install what they need. PYTHON is the interpreter to make the environment with; by default the
# newest working one of Python 3.13, 3.12 and 3.11.

VENV ?= .venv
RUNS ?= runs/digits
PYTHON ?= $(shell scripts/find_python.sh)
RUN := $(VENV)/bin/python
PEER ?= .venv-peer
DOCS ?= .venv-docs

# pip does not compile Python files here, since most are never imported. Python compiles a file at its first import and
# keeps the result. Clear this variable, which container images often set, as it would discard the result.
export PYTHONDONTWRITEBYTECODE :=

# Let the C library use large memory pages. On some Linux systems, they shorten a CPU training step by 11 to 18%.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.NOTPARALLEL:
.PHONY: demo compare claims mnist letters latents test install lint peer docs clean

demo: install
	$(RUN) scripts/train.py --config=configs/digits_base.py --workdir=$(RUNS)/base
	$(RUN) scripts/distill.py --config=configs/digits_distill.py \
		--config.distillation.teacher_checkpoint_path=$(RUNS)/base --workdir=$(RUNS)/ladder
	@echo "Open $(RUNS)/ladder/report/index.html. Digits sampled in 1 step are in $(RUNS)/ladder/steps_0001/samples."

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

latents: install
	$(RUN) scripts/encode_data.py --config=configs/letters_base.py --autoencoder=letters_autoencoder \
		--out=runs/letters_latent/data
	$(MAKE) guided_letters_latent

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
	@echo "Open site/index.html. For search, run 'python3 -m http.server --directory site', open http://localhost:8000."

$(DOCS)/installed: setup.py
	test -n "$(PYTHON)"
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(PEER) $(DOCS) $(RUNS) site
