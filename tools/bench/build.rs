//! Hands the versions of the engines that are compared to the program, as `Cargo.lock` has them.

use std::path::{Path, PathBuf};

const ENGINES: [&str; 5] = ["redb", "heed", "rusqlite", "fjall", "lsm-tree"];

fn lock_file() -> Option<PathBuf> {
    let manifest_dir = std::env::var_os("CARGO_MANIFEST_DIR")?;
    Path::new(&manifest_dir).ancestors().map(|dir| dir.join("Cargo.lock")).find(|path| path.exists())
}

fn main() {
    let Some(path) = lock_file() else {
        println!("cargo::rustc-env=ENGINE_VERSIONS=versions unknown: no Cargo.lock");
        return;
    };
    println!("cargo::rerun-if-changed={}", path.display());
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let mut versions = Vec::new();
    for pair in lines.windows(2) {
        let name = pair[0].strip_prefix("name = \"").and_then(|rest| rest.strip_suffix('"'));
        let version = pair[1].strip_prefix("version = \"").and_then(|rest| rest.strip_suffix('"'));
        if let (Some(name), Some(version)) = (name, version)
            && ENGINES.contains(&name)
        {
            versions.push(format!("{name} {version}"));
        }
    }
    println!("cargo::rustc-env=ENGINE_VERSIONS={}", versions.join(", "));
}
