#!/bin/sh
# make mutations: takes one safeguard after the other away. The tests that are there for it must pass with it and fail without it.
# With SEEDS (numbers) the verifier runs on each mutation, too, for at most DURATION seconds of faults a seed.
set -eu
cd "$(dirname "$0")/.."
. scripts/tools.sh
need_rust
need_nats_server

# A safeguard, and the tests of the runtime (`commit::…`, by module) or of the integration binary (`safeguards::…`) for it.
table='
position-condition  commit::tests::of_two_owners_one_commits
position-condition  safeguards::a_node_that_sleeps_before_its_commit_wakes_up_in_vain
key-revision        commit::tests::safeguards::what_another_wrote_since_it_was_read_is_not_written_over
validations-first   commit::tests::safeguards::two_that_write_what_the_other_read_are_not_stored_together
busy-forever        commit::tests::safeguards::who_finds_the_stream_busy_is_told_so_in_time
read-only-verdicts  safeguards::an_event_is_not_given_up_for_what_is_no_longer_so
upto-check          commit::tests::safeguards::who_is_to_blame_is_not_said_by_a_server_that_lags_behind
schedule-to-outbox  safeguards::a_timer_that_fires_twice_comes_once
park-in-memory      safeguards::what_is_to_be_tried_again_outlives_its_node
reader-guard        safeguards::what_did_not_reach_the_reader_is_read_again
reader-guard        safeguards::what_is_read_a_second_time_is_not_handled_again
source-in-place     commit::tests::safeguards::a_source_is_not_edited_in_place_and_nothing_arrives_twice
'

say "building pelton with its safeguards removable"
# The whole workspace, as everywhere: only what depends on the runtime is compiled again.
features="--features pelton/mutations"
# shellcheck disable=SC2086
cargo build --release --locked --workspace --bins $features
# shellcheck disable=SC2086
built=$(cargo test --release --locked --workspace --lib --test it --no-run $features 2>&1) || die "the tests do not build" "$built"
executable() { printf '%s\n' "$built" | sed -n "s/.*(\(.*\/$1-[0-9a-f]*\)).*/\1/p" | sed "s|^[^/]|$PWD/&|"; }
unit=$(executable pelton_runtime)
integration=$(executable it)
[ -x "$unit" ] && [ -x "$integration" ] || die "the tests are not where cargo says" "$built"
logs="$(target_folder)/tmp"
mkdir -p "$logs"
PELTON_BIN="$(target_folder)/release/pelton-mutant"
export PELTON_BIN
cp "$(target_folder)/release/pelton" "$PELTON_BIN"

# one_test NAME LOG: prints `ok`, `FAILED`, or nothing when it did not come to an end. `timeout` is for a mutant that hangs.
one_test() {
    case $1 in
        safeguards::*) folder=tests binary=$integration ;;
        *) folder=runtime binary=$unit ;;
    esac
    (cd "$folder" && timeout 300 "$binary" --exact "$1" >"$2" 2>&1) || true
    sed -n "s/^test $1 \.\.\. //p" "$2"
}

missed=0
say "with every safeguard"
unset PELTON_MUTATION
for name in $(printf '%s\n' "$table" | awk 'NF { print $2 }'); do
    log="$logs/mutation-none.log"
    [ "$(one_test "$name" "$log")" = ok ] || { cat "$log" >&2; die "$name fails with every safeguard: it says nothing about any"; }
done
say "without"
for mutation in $(printf '%s\n' "$table" | awk 'NF && !seen[$1]++ { print $1 }'); do
    [ -z "${MUTATIONS:-}" ] || case " $MUTATIONS " in *" $mutation "*) ;; *) continue ;; esac
    export PELTON_MUTATION="$mutation"
    for name in $(printf '%s\n' "$table" | awk -v of="$mutation" '$1 == of { print $2 }'); do
        verdict=$(one_test "$name" "$logs/mutation-$mutation.log")
        [ "$verdict" = FAILED ] && found=caught || { found='NOT caught'; missed=1; }
        printf '%-20s %-10s by %s\n' "$mutation" "$found" "$name"
    done
    for SEED in ${SEEDS:-}; do
        export SEED DURATION="${DURATION:-30}" CLUSTER="${CLUSTER:-1}"
        log="$logs/mutation-$mutation-$SEED.log"
        # shellcheck disable=SC2086
        if cargo test --release --locked --workspace $features --test faults >"$log" 2>&1; then found='not caught'; else found=caught; fi
        printf '%-20s %-10s by the verifier with seed %s\n' "$mutation" "$found" "$SEED"
    done
done
[ "$missed" = 0 ] || die "a safeguard can be taken away and no test notices" "see $logs/mutation-*.log"
