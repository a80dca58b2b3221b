#!/bin/sh
# make messages: MESSAGES random messages, of any bytes that the server takes, to two nodes.
set -eu
cd "$(dirname "$0")/.."
. scripts/tools.sh
need_rust
need_nats_server
build_all
PELTON_BIN="$(target_folder)/release/pelton"
export PELTON_BIN
: "${MESSAGES:=100000}"
: "${ANY_BYTES:=1}"
export MESSAGES ANY_BYTES
cargo test --release --locked --workspace --test it -- --nocapture --exact messages::random_messages_are_handled_or_given_up_once
