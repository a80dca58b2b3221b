#!/bin/sh
# make campaign: the verifier with each of SEEDS on each of CLUSTERS (servers), for DURATION seconds of faults. A run fails, too, when it had less
# than LEAST inputs or too few faults: of 80 seconds on it asks for 15 kills of nodes, 5 of servers, 5 pauses and 3 cuts at least.
set -eu
cd "$(dirname "$0")/.."
. scripts/tools.sh
: "${SEEDS:=1 2 3 4 5 6 7 8 9 10}"
: "${CLUSTERS:=1 3}"
: "${DURATION:=120}"
: "${RATE:=300}"
: "${LEAST:=20000}"
export DURATION RATE LEAST
need_rust
need_nats_server
build_all
built=$(cargo test --release --locked --workspace --test faults --no-run 2>&1) || die "the verifier does not build" "$built"
verifier=$(printf '%s\n' "$built" | sed -n 's/.*(\(.*\/faults-[0-9a-f]*\)).*/\1/p' | sed "s|^[^/]|$PWD/&|")
[ -x "$verifier" ] || die "the verifier is not where cargo says" "$built"
PELTON_BIN="$(target_folder)/release/pelton"
export PELTON_BIN
logs="$(target_folder)/tmp/campaign"
rm -rf "$logs"
mkdir -p "$logs"
table="$logs/table"

# What a log says: how many of a kind, or nothing.
inputs_of() { sed -n 's/^faults: .* published; \([0-9]*\) inputs.*/\1/p' "$1"; }
faults_of() { sed -n "s/^faults: \(.*, \)*$2 \([0-9]*\).*/\2/p" "$1"; }
row() { printf '%-7s %-6s %-7s %7s %8s %6s %8s %7s %5s %11s\n' "$@"; }

failed=0
row servers seed verdict seconds inputs kills 'of serv' pauses cuts violations >"$table"
for CLUSTER in $CLUSTERS; do
    for SEED in $SEEDS; do
        export CLUSTER SEED
        log="$logs/$CLUSTER-$SEED.log"
        begun=$(date +%s)
        # What hangs is a failure, too: a run drains for at most 90 seconds.
        if (cd tests && timeout $((DURATION * 2 + 300)) "$verifier" >"$log" 2>&1); then verdict=ok; else verdict=FAILED; fi
        violations=$(sed -n 's/^faults: \([0-9]*\) violations.*/\1/p' "$log")
        row "$CLUSTER" "$SEED" "$verdict" $(($(date +%s) - begun)) "$(inputs_of "$log")" "$(faults_of "$log" KillNode)" \
            "$(faults_of "$log" KillServer)" "$(faults_of "$log" PauseNode)" "$(faults_of "$log" Cut)" "${violations:--}" >"$logs/row"
        cat "$logs/row" >>"$table"
        say "$(sed 's/  */ /g' "$logs/row" | awk '{ printf "CLUSTER=%s SEED=%s %s after %s s", $1, $2, $3, $4 }')"
        grep '^faults: [0-9].*published\|^faults: KillNode' "$log" || true
        [ "$verdict" = ok ] && rm "$log" && continue
        failed=$((failed + 1))
        grep '^faults: .*' "$log" | tail -n 2
        say "its log is $log"
    done
done
rm -f "$logs/row"
cat "$table"
[ "$failed" = 0 ] || die "$failed runs failed" "their logs are in $logs"
