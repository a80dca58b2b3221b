#!/bin/sh
# make mutations: the verifier against builds that lack one safeguard each. It must fail every time, within a few seeds.
set -eu
cd "$(dirname "$0")/.."
. scripts/tools.sh
need_rust
need_nats_server
say "building pelton with its safeguards removable"
cargo build --release --locked --workspace --bins --features pelton/mutations
PELTON_BIN="$(target_folder)/release/pelton-mutant"
export PELTON_BIN
cp "$(target_folder)/release/pelton" "$PELTON_BIN"
: "${DURATION:=30}" "${CLUSTER:=1}" "${SEEDS:=1 2 3}"
export DURATION CLUSTER
missed=0
for PELTON_MUTATION in ${MUTATIONS:-position-condition key-revision validations-first busy-forever read-only-verdicts park-in-memory reader-guard}; do
    export PELTON_MUTATION
    caught=
    for SEED in $SEEDS; do
        export SEED
        log="$(target_folder)/tmp/mutation-$PELTON_MUTATION-$SEED.log"
        if ! cargo test --release --locked --workspace --features pelton/mutations --test faults >"$log" 2>&1; then
            caught=$SEED
            break
        fi
    done
    if [ -n "$caught" ]; then
        say "$PELTON_MUTATION: caught by seed $caught: $(grep -m 1 -e VIOLATION -e '^faults: [^Sa-z0-9]' -e stuck "$log" || tail -n 1 "$log")"
    else
        say "$PELTON_MUTATION: NOT caught by seeds $SEEDS"
        missed=1
    fi
done
exit $missed
