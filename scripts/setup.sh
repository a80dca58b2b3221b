#!/bin/sh
# make setup: everything `make demo` and `make test` need, without running either.
set -eu
cd "$(dirname "$0")/.."
. scripts/tools.sh
need_rust
need_nats_server
need_nats_py
