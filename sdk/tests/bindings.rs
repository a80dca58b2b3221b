//! The committed bindings belong to the WIT beside them: whoever changes it is told to run `generate.sh`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
use sha2::{Digest, Sha256};

fn check(bindings: &str, wit: &[&str]) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut hash = Sha256::new();
    for file in wit {
        hash.update(std::fs::read(folder.join(file)).unwrap());
    }
    let text = std::fs::read_to_string(folder.join(bindings)).unwrap();
    let stamp = format!("// From WIT with sha256 {}", hex::encode(hash.finalize()));
    let first = text.lines().next().unwrap();
    assert_eq!(
        first, stamp,
        "{bindings} is not of this WIT: run sdk/generate.sh"
    );
}

#[test]
fn the_contract_has_not_moved_on() {
    let wit = [
        "wit/deps/config.wit",
        "wit/deps/logging.wit",
        "wit/pelton.wit",
    ];
    check("src/bindings.rs", &wit);
}

#[test]
fn the_http_client_has_not_moved_on() {
    check("src/http/bindings.rs", &["src/http/client.wit"]);
}
