# make demo    watch efm-lb keep pgpool, HAProxy and PgBouncer right through a switchover and a failover
# make test    prove it: every test, with the real servers
# make faults  try to break it, for as long as it takes; a table at the end says what was tried, and what was lost
# make check   types, lint, format, architecture
# make bench   efm-lb and the bash hooks side by side on one cluster
.DEFAULT_GOAL := help
.PHONY: help demo test faults check bench packages sshd namespaces clean
.DELETE_ON_ERROR:
# Every hook of a test would compile efm-lb anew.
unexport PYTHONDONTWRITEBYTECODE

VENV   := .venv
PYTHON := $(VENV)/bin/python
SUDO   := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PGBINS := /usr/lib/postgresql/*/bin /usr/pgsql-*/bin
## PostgreSQL's server: its client's package makes such a directory too.
SERVER  = $(foreach bin,$(wildcard $(PGBINS)),$(and $(wildcard $(bin)/postgres),$(wildcard $(bin)/initdb),$(bin)))

help:
	@sed -n 's/^# //p' Makefile

packages:
	@missing=""; \
	[ -n "$(SERVER)" ] || missing="$$missing postgresql"; \
	[ -x /usr/sbin/haproxy ] || command -v haproxy >/dev/null || missing="$$missing haproxy"; \
	[ -x /usr/sbin/pgpool ] || command -v pgpool >/dev/null || missing="$$missing pgpool2"; \
	[ -x /usr/sbin/pgbouncer ] || command -v pgbouncer >/dev/null || missing="$$missing pgbouncer"; \
	python3 -c 'import venv, ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	if [ -n "$$missing" ]; then \
		echo "installing:$$missing"; \
		$(SUDO) apt-get update -qq && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	fi

# Load balancers on other hosts are tested through a real sshd.
sshd:
	@[ -x /usr/sbin/sshd ] || command -v sshd >/dev/null || { \
		echo "installing: openssh-server" && \
		$(SUDO) apt-get update -qq && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openssh-server; \
	}

# Networks that fail are tested between network namespaces, which root alone can make.
namespaces:
	@missing=""; \
	[ -x /usr/sbin/ip ] || command -v ip >/dev/null || missing="$$missing iproute2"; \
	[ -x /usr/sbin/nft ] || command -v nft >/dev/null || missing="$$missing nftables"; \
	if [ "$$(id -u)" = 0 ] && [ -n "$$missing" ]; then \
		echo "installing:$$missing" && \
		apt-get update -qq && \
		env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	fi

$(VENV)/installed: pyproject.toml | packages
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --upgrade 'pip>=25.1'
	$(PYTHON) -m pip install --quiet --editable . --group dev
	@touch $@

demo: $(VENV)/installed
	$(VENV)/bin/efm-lb rehearse

# Most of a test is waiting for a server: two files at a time.
test: sshd namespaces $(VENV)/installed
	$(PYTHON) -m pytest --numprocesses 2 --dist loadfile

faults: sshd namespaces $(VENV)/installed
	$(PYTHON) -m pytest --numprocesses 2 --dist loadfile -m "long or not long" tests/faults

check: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/installed
	command -v valgrind >/dev/null || $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq valgrind
	$(PYTHON) -m compileall -q core adapters
	$(PYTHON) benchmarks/bench.py

clean:
	rm -rf $(VENV) build dist
