#!/bin/sh
# make lint: formatting, and every lint as an error.
set -eu
cd "$(dirname "$0")/.."
. scripts/tools.sh
need_rust
cargo fmt --version >/dev/null 2>&1 || die "no rustfmt" "run: rustup component add rustfmt"
cargo clippy --version >/dev/null 2>&1 || die "no clippy" "run: rustup component add clippy"
say "formatting"
cargo fmt --all --check
say "lints"
cargo clippy --release --locked --workspace --all-targets -- -D warnings
