# Every command sets up what it needs; a second run does no work twice.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup chat demo test test-postgres lint bench docs
setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	$(BIN)/palimpsest models pull smollm2 minilm
	mkdir -p .types && ln -sfn .. .types/palimpsest  # where mypy and mkdocs look the package up
	touch $@

chat: setup
	@$(BIN)/palimpsest chat

demo: setup
	@$(BIN)/palimpsest demo

test: setup
	$(BIN)/pytest

test-postgres: setup  # what lies in a database, in a PostgreSQL of the run's own
	.ci/postgres $(BIN)/pytest tests/memory/test_ledger.py tests/memory/test_transfer.py \
		tests/memory/test_stream.py tests/memory/search tests/conformance \
		tests/unlearning/test_forgetting_on_servers.py \
		-k "PostgreSQL or test_ledger or test_transfer or test_stream"

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	MYPYPATH=.types $(BIN)/mypy -p palimpsest

bench: setup
	$(BIN)/palimpsest bench scm && $(BIN)/palimpsest bench recall

docs: setup
	$(BIN)/mkdocs build --strict --quiet
