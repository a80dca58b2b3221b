//! Whether crates of a workspace may be built in one call.
//!
//! Cargo unites the features that all crates of a call ask of a dependency. A function must be the same, byte for
//! byte, whether it is built alone or with others: so they are built together only when there is nothing to unite.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

use futures::future::join_all;

use super::cargo::{Crate, TARGET, cargo};

/// Package (name, version, place) → the sets of features it is built with.
type Features = BTreeMap<String, BTreeSet<String>>;

/// Whether every dependency that two of the crates share has the same features in both. False when cargo does not say.
pub(crate) async fn agree(crates: &[&Crate]) -> bool {
    if crates.len() < 2 {
        return true;
    }
    let all = join_all(crates.iter().map(|one| features(one))).await;
    let mut seen = Features::new();
    for features in all {
        let Some(features) = features else {
            return false;
        };
        for (package, sets) in features {
            match seen.get(&package) {
                Some(known) if *known != sets => return false,
                Some(_) => {}
                None => {
                    seen.insert(package, sets);
                }
            }
        }
    }
    true
}

async fn features(one: &Crate) -> Option<Features> {
    let output = cargo(&one.workspace)
        .args(["tree", "--quiet", "--target", TARGET, "-p", &one.id.repr])
        .args(["--edges", "normal,build", "--prefix", "none"])
        .args(["--format", "{p}\t{f}"])
        .stdin(Stdio::null())
        .output()
        .await
        .ok()?;
    output
        .status
        .success()
        .then(|| parse(&String::from_utf8_lossy(&output.stdout)))
}

fn parse(tree: &str) -> Features {
    let mut all = Features::new();
    for line in tree.lines() {
        // Repetitions are marked.
        let line = line.trim_end().trim_end_matches(" (*)");
        let (package, features) = line.split_once('\t').unwrap_or((line, ""));
        all.entry(package.trim_end().to_owned())
            .or_default()
            .insert(features.to_owned());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_one() {
        let tree = "a v0.1.0 (/x)\t\nserde v1.0.1\tdefault,std\nserde v1.0.1\tdefault,std (*)\n";
        let all = parse(tree);
        assert_eq!(all.len(), 2);
        assert_eq!(all["serde v1.0.1"], ["default,std".to_owned()].into());
        assert_eq!(all["a v0.1.0 (/x)"], [String::new()].into());
    }
}
