//! libFuzzer on one target: `ATOLL_FUZZ_TARGET=frame atoll-fuzz CORPUS...`. With `ATOLL_FUZZ_SEEDS=FOLDER` the target's seeds
//! are written there first.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static READ: OnceLock<fn(&[u8]) -> bool> = OnceLock::new();

fn begin() {
    let name = std::env::var("ATOLL_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = atoll_fuzz::target(&name) else {
        let known: Vec<&str> = atoll_fuzz::TARGETS.iter().map(|target| target.name).collect();
        eprintln!("ATOLL_FUZZ_TARGET is '{name}': choose among {}", known.join(", "));
        std::process::exit(2);
    };
    if let Some(folder) = std::env::var_os("ATOLL_FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            let path = std::path::Path::new(&folder).join(format!("seed-{number}"));
            if let Err(error) = std::fs::write(&path, seed) {
                eprintln!("{}: {error}", path.display());
                std::process::exit(2);
            }
        }
    }
    let _ = READ.set(target.read);
}

fuzz_target!(
    init: begin(),
    |data: &[u8]| {
        if let Some(read) = READ.get() {
            read(data);
        }
    }
);
