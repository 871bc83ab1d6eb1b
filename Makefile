# Everything a person or CI runs. The environment is .venv, made from nothing but Python 3.11+.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
LOWEST ?= .venv-lowest
PORT   ?= 11434
PLUGINS := $(wildcard plugins/*)
JOBS   ?= 4

.PHONY: run test soak fast test-lowest lint types bench simulate mutants states screenshots recording openwebui dist sbom examples kubernetes image version clean

# $(call environment,FOLDER): makes a virtual environment, unless a usable one is there, and leaves no half of one behind.
NEEDS := import sys; sys.exit(sys.version_info < (3, 11))
define environment
	@$(1)/bin/python -c 'import pip; $(NEEDS)' 2>/dev/null || { \
		$(PYTHON) -c '$(NEEDS)' 2>/dev/null || { \
			echo "gpugate needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>/dev/null || echo not there)." \
				"Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }; \
		$(PYTHON) -m venv --clear $(1) || { rm -rf $(1); exit 1; }; }
endef

$(VENV)/.run: setup.cfg pyproject.toml $(wildcard plugins/*/setup.cfg)
	$(call environment,$(VENV))
	@echo "Installing gpugate, its plugins and what they need into $(VENV); this takes about a minute, once ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[telegram]' $(addprefix -e ,$(PLUGINS))
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "Installing what the tests and checks need into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
		-e '.[dev,telegram]' $(addprefix -e ,$(PLUGINS))
	@touch $@

$(LOWEST)/.dev: setup.cfg pyproject.toml .ci/lowest.py $(wildcard plugins/*/setup.cfg)
	$(call environment,$(LOWEST))
	$(LOWEST)/bin/python .ci/lowest.py > $(LOWEST)/constraints.txt
	@echo "Installing the lowest versions of all dependencies into $(LOWEST) ..."
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt \
		-e '.[dev,telegram]' $(addprefix -e ,$(PLUGINS))
	@touch $@

run: $(VENV)/.run         ## the gateway with a simulated pod: no account, no GPU, no Ollama
	@$(BIN)/gpugate demo --port $(PORT)

# Months of simulated traffic, random lives, gateways that are killed again and again, whole bills, each fault of each provider, wheels, a browser.
SOAK := tests/months $(addprefix tests/e2e/test_,bills.py builds.py dashboard_in_a_browser.py killed_in_the_clouds.py \
	pod_bills.py processes.py reverse_proxies.py sigkill.py two_gateways.py ways_out.py ways_out_at_the_clouds.py) \
	tests/core/test_lives.py tests/providers/test_supervisor_killed.py \
	$(wildcard plugins/*/tests/test_*_faults.py plugins/*/tests/test_*_lives.py) \
	$(addprefix plugins/gpugate-slurm/tests/test_slurm_,gateway.py real.py)
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test: $(VENV)/.dev        ## the tests, the plugins' included; they wait more than they work, so JOBS of them at once
	$(PYTEST) $(addprefix --ignore=,$(SOAK)) tests plugins examples/write-a-provider

soak: $(VENV)/.dev        ## the long tests: months, kills, bills, faults of providers, wheels, a browser
	$(PYTEST) $(SOAK)

FAST := -n $(JOBS) --dist worksteal --ignore tests/e2e --ignore tests/providers --ignore tests/months tests

fast: $(VENV)/.dev        ## without whole gateways and real processes
	$(BIN)/python -m pytest $(FAST)

test-lowest: $(LOWEST)/.dev  ## the fast part, with the lowest versions of all dependencies that setup.cfg allows
	$(LOWEST)/bin/python -m pytest $(FAST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.dev       ## the tables of benchmarks/README.md, measured here
	$(BIN)/python -m benchmarks

simulate: $(VENV)/.dev    ## a month of traffic, faults and crashes under each idle policy: docs/simulation.md
	$(BIN)/python -m simulation

mutants: $(VENV)/.dev     ## seeded faults that the tests must catch
	$(BIN)/python -m tests.mutants

OLLAMA ?= http://127.0.0.1:11435
MODEL  ?= phi3:mini
intents: $(VENV)/.dev     ## how well the bot's local model understands people; OLLAMA and MODEL say which
	$(BIN)/python -m tests.bot.intents.measure_intents --url $(OLLAMA) --model $(MODEL)

states: $(VENV)/.dev      ## docs/states.md from the transition table
	$(BIN)/python -m gpugate.core.transition_docs > docs/states.md

.PHONY: reference docs
reference: $(VENV)/.dev   ## docs/reference/settings.md and commands.md, from the classes and commands
	$(BIN)/python -m docs.generate

$(VENV)/.docs: $(VENV)/.run pyproject.toml
	@echo "Installing what builds the documentation into $(VENV) ..."
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["docs"], sep="\n")' \
		| $(BIN)/python -m pip install --quiet --disable-pip-version-check -r /dev/stdin
	@touch $@

docs: $(VENV)/.docs       ## the documentation as a site, in build/site; a link that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

screenshots: $(VENV)/.dev ## the pictures of docs/dashboard.md, by the tests of the page; needs Debian's chromium-driver
	GPUGATE_SCREENSHOTS=docs/images $(BIN)/python -m pytest tests/e2e/test_dashboard_in_a_browser.py

recording: $(VENV)/.dev   ## the cold start that README.md shows, by docs/record.py
	$(BIN)/python -m docs.record

$(VENV)/.packaging: pyproject.toml $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group packaging
	@touch $@

dist: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 315532800)
dist: $(VENV)/.packaging  ## sdist and wheel of every distribution in dist/: the same bytes for the same commit
	rm -rf dist
	for folder in . $(PLUGINS); do $(BIN)/python -m build --quiet --outdir dist $$folder || exit 1; done
	$(BIN)/twine check --strict dist/*

sbom: dist                ## sbom.cdx.json: what an installation of gpugate, its plugins and all extras consists of
	$(PYTHON) -m venv --clear build/sbom
	build/sbom/bin/python -m pip install --quiet --disable-pip-version-check --find-links dist \
		"gpugate[telegram,uvloop,metrics,notify,otel,top]" $(notdir $(PLUGINS))
	$(BIN)/cyclonedx-py environment --output-file sbom.cdx.json build/sbom/bin/python

examples: $(VENV)/.packaging  ## Dockerfile, manifests and workflows, by the rules of the programs that will read them
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec examples/compose/compose.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/kubernetes-validate --strict examples/kubernetes/*.yaml

NAMESPACE ?= gpugate-test
kubernetes: $(VENV)/.dev  ## the provider contract at the cluster of KUBECONFIG, in the namespace NAMESPACE, which is made and removed
	@test -n "$(KUBECONFIG)" || { echo "make kubernetes KUBECONFIG=~/.kube/config [NAMESPACE=gpugate-test]" >&2; exit 2; }
	kubectl create namespace $(NAMESPACE)
	kubectl -n $(NAMESPACE) create deployment gpugate-contract --image=registry.k8s.io/pause:3.10 --replicas=0
	GPUGATE_TEST_KUBECONFIG=$(KUBECONFIG) GPUGATE_TEST_NAMESPACE=$(NAMESPACE) \
		$(BIN)/python -m pytest -o timeout=3600 plugins/gpugate-kubernetes/tests/test_kubernetes_real.py; \
		status=$$?; kubectl delete namespace $(NAMESPACE); exit $$status

image:                    ## the image of Dockerfile, built and tried with buildah, as root; BASE, IMAGE: .ci/image
	@.ci/image

version:                  ## gives all distributions a version: make version TO=0.2.0
	@$(PYTHON) .ci/version.py $(TO)
openwebui: $(VENV)/.run   ## the real Open WebUI in front of a demo, from list to picture; installs it (several GB)
	$(BIN)/python examples/openwebui/check.py

llamacpp: $(VENV)/.run    ## the real llama.cpp server as a pod with another engine than Ollama; builds it (an hour)
	$(BIN)/python examples/llamacpp/check.py

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info
