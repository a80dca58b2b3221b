#!/bin/sh
# make faults: the verifier. SEED decides over work and faults, DURATION (seconds) how long they last, CLUSTER (1 or 3) how many servers.
set -eu
cd "$(dirname "$0")/.."
. scripts/tools.sh
need_rust
need_nats_server
build_all
PELTON_BIN="$(target_folder)/release/pelton"
export PELTON_BIN
: "${DURATION:=90}"
: "${RATE:=300}"
export DURATION RATE
cargo test --release --locked --workspace --test faults
