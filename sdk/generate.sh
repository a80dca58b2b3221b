#!/bin/sh
# Makes src/bindings.rs and src/http/bindings.rs from the WIT files. They are committed, because wit-bindgen's
# `generate!` would cost every guest's first build half a minute. Needs:
#   cargo install wit-bindgen-cli --version 0.61.1 --locked --no-default-features --features rust
set -eu
cd "$(dirname "$0")"
test "$(wit-bindgen --version)" = "wit-bindgen-cli 0.61.1"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

wit-bindgen rust wit --world function --out-dir "$out" --format --generate-all --skip get-all \
  --pub-export-macro --export-macro-name __export_function --default-bindings-module pelton_sdk::__private::bindings
wit-bindgen rust src/http/client.wit --out-dir "$out" --format --generate-all

stamp() { printf '// From WIT with sha256 %s\n' "$(cat "$@" | sha256sum | cut -d' ' -f1)"; }
{ stamp wit/deps/config.wit wit/deps/logging.wit wit/pelton.wit; cat "$out/function.rs"; } > src/bindings.rs
{ stamp src/http/client.wit; cat "$out/client.rs"; } > src/http/bindings.rs
