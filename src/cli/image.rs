//! `btfs info` and `btfs resize`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;

use super::mkfs::Uuid;
use super::{CliResult, Failure, bytes, size, status};
use crate::fs::Fs;
use crate::mount::{control, mounts};
use crate::page::superblock::{SUPERBLOCK_OFFSETS, SUPERBLOCK_SIZE, Superblock, SuperblockError};
use crate::storage::{FileStorage, OpenError, OpenMode};
use crate::tree::Options;

#[derive(Parser)]
pub struct InfoArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The image
    image: PathBuf,
}

#[derive(Parser)]
pub struct ResizeArgs {
    /// The image, or the directory that it is mounted at
    image: PathBuf,
    /// The new size, not smaller than the old one
    #[arg(value_parser = size)]
    size: u64,
}

/// The newer of the superblocks that are valid.
fn superblock(image: &Path) -> Result<Superblock, Failure> {
    let fail = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => {
            Failure::open(status::SYSTEM, &OpenError::NotFound { path: image.to_owned() })
        }
        _ => Failure::new(status::SYSTEM, format_args!("{}: {e}", image.display())),
    };
    let mut file = File::open(image).map_err(fail)?;
    let len = io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(fail)?;
    let mut found: Option<Superblock> = None;
    let mut worst = SuperblockError::NotAnImage;
    for offset in SUPERBLOCK_OFFSETS {
        let mut raw = [0; SUPERBLOCK_SIZE];
        match file.read_exact_at(&mut raw, offset) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(e) => return Err(fail(e)),
        }
        match Superblock::decode(&raw, len) {
            Ok(s) if found.as_ref().is_none_or(|f| f.sequence < s.sequence) => found = Some(s),
            Ok(_) => {}
            Err(e) => worst = if worst == SuperblockError::NotAnImage { e } else { worst },
        }
    }
    let reason = match worst {
        SuperblockError::NotAnImage => "not a btfs image".to_owned(),
        SuperblockError::Damaged(reason) => format!("both superblocks are damaged ({reason})"),
        SuperblockError::Version(v) => format!("its format, version {v}, is newer than this program"),
        SuperblockError::Features(f) => format!("it needs features that this program lacks ({f:#x})"),
    };
    found.ok_or_else(|| Failure::new(status::SYSTEM, format_args!("{}: {reason}", image.display())))
}

/// How long to wait for a daemon that finishes after umount(8).
const FINISHING: Duration = Duration::from_secs(15);

/// Opens an image. umount(8) returns before the daemon has written everything: if a daemon has the image and no mount shows it, this
/// waits until it has finished.
pub fn open_released(image: &Path, mode: OpenMode) -> Result<FileStorage, OpenError> {
    let begun = Instant::now();
    let path = image.canonicalize().unwrap_or_else(|_| image.to_owned());
    loop {
        match FileStorage::open(image, mode) {
            Err(OpenError::InUse { holder: Some(holder), .. })
                if holder.name == "btfs"
                    && begun.elapsed() < FINISHING
                    && mounts::find_source(&path).is_none() =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Whether an image was closed in order.
pub fn is_clean(image: &Path) -> Result<bool, Failure> {
    superblock(image).map(|s| s.clean)
}

pub fn info(args: &InfoArgs) -> CliResult {
    let image = &args.image;
    let s = superblock(image)?;
    let metadata = fs::metadata(image)
        .map_err(|e| Failure::new(status::SYSTEM, format_args!("{}: {e}", image.display())))?;
    let on_host = metadata.blocks() * 512;
    let (state, free) = match FileStorage::open(image, OpenMode::ReadOnly) {
        Ok(storage) => {
            let options = Options { read_only: true, cache_size: 16 << 20, ..Options::default() };
            let free = match Fs::open(Arc::new(storage), &options) {
                Ok(fs) => Some(fs.usage().free * crate::page::BLOCK_SIZE as u64),
                Err(_) => None,
            };
            (if s.clean { "clean".to_owned() } else { "to be recovered at the next mount".to_owned() }, free)
        }
        Err(OpenError::InUse { holder: Some(holder), .. }) => {
            (format!("in use by process {} ({})", holder.pid, holder.name), None)
        }
        Err(OpenError::InUse { .. }) => ("in use".to_owned(), None),
        Err(e) => return Err(Failure::open(status::SYSTEM, &e)),
    };
    if args.json {
        let json = serde_json::json!({
            "image": image.to_string_lossy(),
            "label": s.label,
            "uuid": Uuid(s.uuid).to_string(),
            "version": crate::page::superblock::VERSION,
            "size": s.size,
            "free": free,
            "bytes_on_host": on_host,
            "log_size": s.log_size,
            "doublewrite_size": 2 * s.doublewrite_half_size(),
            "state": state,
            "clean": s.clean,
            "features": {"compat": s.compat, "ro_compat": s.ro_compat, "incompat": s.incompat},
        });
        println!("{json:#}");
        return Ok(0);
    }
    println!("image          {}", image.display());
    println!("label          {}", if s.label.is_empty() { "(none)" } else { &s.label });
    println!("UUID           {}", Uuid(s.uuid));
    println!("format         version {}", crate::page::superblock::VERSION);
    println!("size           {} ({} bytes)", bytes(s.size), s.size);
    if let Some(free) = free {
        println!("free           {}", bytes(free));
    }
    println!("on the host    {}", bytes(on_host));
    println!("log            {}", bytes(s.log_size));
    println!("doublewrite    {}", bytes(2 * s.doublewrite_half_size()));
    println!("state          {state}");
    Ok(0)
}

pub fn resize(args: &ResizeArgs) -> CliResult {
    let image = &args.image;
    let live = |dir: &Path| {
        control::grow(dir, args.size)
            .map_err(|e| Failure::new(status::SYSTEM, format_args!("{}: {e}", dir.display())))
    };
    if image.is_dir() {
        live(image)?;
        return Ok(0);
    }
    let storage = match FileStorage::open(image, OpenMode::ReadWrite) {
        Ok(storage) => storage,
        Err(e @ OpenError::InUse { .. }) => {
            let path = image.canonicalize().unwrap_or_else(|_| image.clone());
            let mounted = mounts::find_source(&path).ok_or_else(|| Failure::open(status::SYSTEM, &e))?;
            live(&mounted.dir)?;
            return Ok(0);
        }
        Err(e) => return Err(Failure::open(status::SYSTEM, &e)),
    };
    let fail = |e| Failure::fs(status::SYSTEM, image, &e);
    let fs = Fs::open(Arc::new(storage), &Options::default()).map_err(fail)?;
    crate::mount::Volume::grow(&fs, args.size).map_err(fail)?;
    fs.close().map_err(fail)?;
    Ok(0)
}
