# The two commands that do everything are `make demo` and `make test`; `make` alone lists the rest.
# The work is in scripts/, which run just as well without make.

.POSIX:
.PHONY: help demo test faults campaign soak mutations messages build lint bench setup clean

help:
	@echo 'make demo    run the order system end to end on a throw-away NATS, and check what it did'
	@echo 'make test    all tests, on real nats-server processes'
	@echo 'make faults  nodes and servers under kill -9, pauses and cuts, then an audit (SEED=, DURATION= seconds, CLUSTER=1|3)'
	@echo 'make campaign  the same with ten seeds on one server and on three: an hour and more (SEEDS=, CLUSTERS=, DURATION=)'
	@echo 'make soak    a million events, then whether anything grew: memory of a node, what is stored (COUNT=)'
	@echo 'make mutations  takes one safeguard after the other away; a test must notice each time'
	@echo 'make messages  random messages of any bytes to two nodes: each must be handled or given up once (MESSAGES=)'
	@echo 'make build   the binary: target/release/pelton'
	@echo 'make lint    rustfmt and clippy'
	@echo 'make bench   measurements (NAMES= some of them)'
	@echo 'make setup   only what demo and test need: checks Rust, fetches nats-server and nats-py into ~/.cache/pelton'
	@echo 'make clean   deletes target/ (the fetched tools stay in ~/.cache/pelton; delete that folder by hand)'

demo:
	@./scripts/demo.sh

test:
	@./scripts/test.sh

faults:
	@./scripts/faults.sh

campaign:
	@./scripts/campaign.sh

soak:
	@./scripts/soak.sh

mutations:
	@./scripts/mutations.sh

messages:
	@./scripts/messages.sh

build:
	@. ./scripts/tools.sh && need_rust && build_all

lint:
	@./scripts/lint.sh

bench:
	@./scripts/bench.sh

setup:
	@./scripts/setup.sh

clean:
	cargo clean
