#!/bin/sh
# make bench: the measurements in tests/benches; NAMES, the parts of them wanted.
set -eu
cd "$(dirname "$0")/.."
. scripts/tools.sh
need_rust
need_nats_server
ls tests/benches/*.rs >/dev/null 2>&1 || die "there are no measurements yet: tests/benches is empty"
build_all
PELTON_BIN="$(target_folder)/release/pelton"
export PELTON_BIN
# Names are words.
# shellcheck disable=SC2086
cargo bench --locked --workspace --bench '*' -- ${NAMES:-}
