#!/bin/sh
# make soak: COUNT events (a multiple of 10,000) through one node, then whether memory or what is stored has grown.
# WORK=rows: COUNT rows created and deleted. WORK=calls: COUNT calls. Both kill the server KILLS times.
set -eu
cd "$(dirname "$0")/.."
. scripts/tools.sh
need_rust
need_nats_server
build_all
PELTON_BIN="$(target_folder)/release/pelton"
export PELTON_BIN
: "${COUNT:=1000000}"
export COUNT
cargo test --release --locked --workspace --test soak
