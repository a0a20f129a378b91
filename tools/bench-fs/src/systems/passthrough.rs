//! libfuse's passthrough_ll, compiled from the example in Debian's package libfuse3-dev. If that is not installed, the package is
//! downloaded and unpacked into a folder of our own; nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::run;

const PACKAGE: &str = "libfuse3-dev";
const SOURCE: &str = "usr/share/doc/libfuse3-dev/examples/passthrough_ll.c";

/// The compiled program, from the cache if it is there.
pub fn program(cache: &Path) -> Result<PathBuf> {
    let cache = cache.join("passthrough");
    let program = cache.join("passthrough_ll");
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&cache)?;
    let root = if Path::new("/").join(SOURCE).exists() { PathBuf::from("/") } else { download(&cache)? };
    let library = find_library(&root).context("libfuse3.a is not in libfuse3-dev")?;
    let unfinished = cache.join("passthrough_ll.new");
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-D_FILE_OFFSET_BITS=64", "-I"]).arg(root.join("usr/include/fuse3"));
    compiler.arg(root.join(SOURCE)).arg(library).args(["-lpthread", "-ldl", "-o"]).arg(&unfinished);
    run(&mut compiler)?;
    fs::rename(unfinished, &program)?;
    Ok(program)
}

fn download(cache: &Path) -> Result<PathBuf> {
    run(Command::new("apt-get").args(["download", "-qq", PACKAGE]).current_dir(cache))?;
    let packages = fs::read_dir(cache)?.flatten().map(|entry| entry.path());
    let package = packages.filter(|path| path.extension().is_some_and(|e| e == "deb")).max();
    let root = cache.join("root");
    run(Command::new("dpkg").arg("-x").arg(package.context("apt-get download brought nothing")?).arg(&root))?;
    Ok(root)
}

/// Below `usr/lib` there is a folder named after the architecture.
fn find_library(root: &Path) -> Option<PathBuf> {
    let dirs = fs::read_dir(root.join("usr/lib")).ok()?.flatten().map(|entry| entry.path());
    dirs.map(|dir| dir.join("libfuse3.a")).find(|path| path.exists())
}
