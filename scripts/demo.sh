#!/bin/sh
# make demo: the lives of several orders through a real node, every expectation checked.
set -eu
cd "$(dirname "$0")/.."
. scripts/tools.sh
need_rust
need_nats_server
say "building pelton and the demo (the first build compiles wasmtime: about ten minutes on two cores; later ones take seconds)"
build_all
say "running the demo"
exec "$(target_folder)/release/demo-example"
