//! Compiled once, loaded ever after; what is damaged is compiled again.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::super::cache::{Cache, Origin};
use super::Bench;
use super::guest::Guest;

#[tokio::test]
async fn the_second_load_does_not_compile() {
    let bench = Bench::new(4);
    let folder = bench.folder.path().join("artifacts");
    let cache = Cache::open(&folder).unwrap();
    assert_eq!(
        fs::metadata(&folder).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let engine = &bench.sandbox.inner.engine;
    let component = Guest::new("").component();
    let origin = || cache.load(engine, &component).unwrap().1;
    assert_eq!(origin(), Origin::Compiled);
    assert_eq!(origin(), Origin::Cached);
    let file = fs::read_dir(&folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let good = fs::read(&file).unwrap();

    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let foreign = b"PELTONC1 of another kind".to_vec();
    for bad in [
        flipped,
        good[..good.len() / 2].to_vec(),
        foreign,
        Vec::new(),
    ] {
        fs::write(&file, bad).unwrap();
        assert_eq!(origin(), Origin::Compiled);
        assert!(fs::read(&file).unwrap() == good, "written again");
        assert_eq!(origin(), Origin::Cached);
    }

    let other = Guest::new("nop").component();
    assert_eq!(cache.load(engine, &other).unwrap().1, Origin::Compiled);
}

#[tokio::test]
async fn the_folder_does_not_grow_without_end() {
    let bench = Bench::new(4);
    let folder = bench.folder.path().join("artifacts");
    let cache = Cache::open(&folder).unwrap();
    for n in 0..300 {
        fs::write(folder.join(format!("{n}.cwasm")), "old").unwrap();
    }
    fs::write(folder.join("kept.txt"), "not ours").unwrap();
    let engine = &bench.sandbox.inner.engine;
    cache.load(engine, &Guest::new("").component()).unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 256 + 1);
    assert_eq!(
        cache.load(engine, &Guest::new("").component()).unwrap().1,
        Origin::Cached
    );
}
