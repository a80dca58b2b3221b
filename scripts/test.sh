#!/bin/sh
# make test: unit tests of every crate, then nodes and servers as real processes.
set -eu
cd "$(dirname "$0")/.."
. scripts/tools.sh
need_rust
need_nats_server
need_nats_py
say "building pelton (the first build compiles wasmtime: about ten minutes on two cores; later ones take seconds)"
# The tests run this binary; cargo builds it only for tests of its own package.
build_all
PELTON_BIN="$(target_folder)/release/pelton"
export PELTON_BIN
say "running the tests"
cargo test --release --locked --workspace --no-fail-fast
