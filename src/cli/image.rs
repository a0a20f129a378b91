//! `btfs info` and `btfs resize`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;

use super::mkfs::Uuid;
use super::{CliResult, Failure, bytes, print, size, status};
use crate::escape::escaped;
use crate::fs::{Fs, FsError};
use crate::mount::{control, mounts};
use crate::page::BLOCK_SIZE;
use crate::page::superblock::{Missing, Superblock, SuperblockError, VERSION, choose, read_copies};
use crate::storage::{FileStorage, OpenError, OpenMode};
use crate::tree::{Options, Tree};

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

/// Opens what may be an image. What cannot be one is not found, and not opened: nobody waits for the other end of a pipe, or makes a
/// device do something.
pub fn open_to_look(image: &Path) -> io::Result<File> {
    let place = File::options().read(true).custom_flags(libc::O_PATH).open(image)?;
    let file_type = place.metadata()?.file_type();
    if file_type.is_fifo() || file_type.is_char_device() {
        return Err(io::ErrorKind::NotFound.into());
    }
    File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))
}

/// The superblock that counts, and the length of the file.
fn read_superblock(image: &Path) -> io::Result<Result<(Superblock, u64), SuperblockError>> {
    let mut file = open_to_look(image)?;
    let len = io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
    match choose(read_copies(len, |at, bytes| file.read_exact_at(bytes, at)), len) {
        Ok(superblock) => Ok(Ok((superblock, len))),
        Err(Missing::Unreadable(e)) => Err(e),
        Err(Missing::Unusable(reason)) => Ok(Err(reason)),
    }
}

/// What other things begin with, and where: a look for an image among them would be in vain.
const OTHERS: [(u64, &[u8]); 10] = [
    (0, b"XFSB"),
    (0, b"hsqs"),
    (0, b"LUKS"),
    (0, b"\x7fELF"),
    (0, b"SQLite format 3"),
    (0, b"\x1f\x8b"),
    // A boot sector or a table of partitions: FAT, NTFS, whole disks.
    (510, b"\x55\xaa"),
    // ext2 to ext4, ISO 9660, btrfs.
    (1080, b"\x53\xef"),
    (0x8001, b"CD001"),
    (0x10040, b"_BHRfS_M"),
];
/// Less than that is left of no image.
const SEARCHED_MIN: u64 = 1 << 20;

/// What to do about a file without superblocks: if it was an image, the checker may find its pages. Empty if it has some, or is
/// something else.
pub fn hint(image: &Path) -> String {
    let lost = matches!(read_superblock(image), Ok(Err(SuperblockError::NotAnImage)));
    let searched = || -> io::Result<bool> {
        let mut file = open_to_look(image)?;
        let is = |(offset, magic): &(u64, &[u8])| {
            let mut found = vec![0; magic.len()];
            file.read_exact_at(&mut found, *offset).is_ok() && found == *magic
        };
        let other = OTHERS.iter().any(is);
        Ok(!other && io::Seek::seek(&mut file, io::SeekFrom::End(0))? >= SEARCHED_MIN)
    };
    if lost && searched().unwrap_or(false) {
        return format!("; if it was one, `btfs fsck -n {}` may find it", image.display());
    }
    String::new()
}

/// The superblock that counts, and the length of the file.
pub fn superblock(image: &Path) -> Result<(Superblock, u64), Failure> {
    let read = read_superblock(image).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            Failure::open(status::SYSTEM, &OpenError::NotFound { path: image.to_owned() })
        }
        _ => Failure::at(status::SYSTEM, image, e),
    })?;
    read.map_err(|e| {
        let reason = match e {
            SuperblockError::NotAnImage => format!("not a btfs image{}", hint(image)),
            SuperblockError::Damaged(reason) => format!("both superblocks are damaged ({reason})"),
            other => other.to_string(),
        };
        Failure::at(status::SYSTEM, image, reason)
    })
}

/// How long to wait for a daemon that finishes after umount(8).
pub const FINISHING: Duration = Duration::from_secs(15);
/// The same for somebody who only wants to know how the image is.
const GLANCE: Duration = Duration::from_secs(1);
/// Cache for that, in bytes.
const GLANCE_CACHE_SIZE: usize = 16 << 20;
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// What daemons are called: by btfs itself, and by mount(8).
const DAEMONS: [&str; 2] = ["btfs", "mount.fuse.btfs"];

/// Opens an image. umount(8) returns before the daemon has written everything: if a daemon has the image and no mount shows it, this
/// waits until it has finished, with so much patience. A mount at `dir` is known to be dead, and its daemon to be on its way out.
pub fn open_released(
    image: &Path,
    mode: OpenMode,
    patience: Duration,
    dir: Option<&Path>,
) -> Result<FileStorage, OpenError> {
    let begun = Instant::now();
    let path = image.canonicalize().unwrap_or_else(|_| image.to_owned());
    loop {
        match FileStorage::open(image, mode) {
            Err(OpenError::InUse { holder: Some(holder), .. })
                if DAEMONS.contains(&&*holder.name)
                    && begun.elapsed() < patience
                    && mounts::find_source(&path).is_none_or(|mounted| Some(&*mounted.dir) == dir) =>
            {
                std::thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
}

/// What `btfs info` tells.
struct Info {
    superblock: Superblock,
    /// Length of the image's file or device.
    len: u64,
    bytes_on_host: u64,
    /// Where it is mounted.
    mounted: Option<PathBuf>,
    state: String,
    /// Free bytes, if nobody uses the image.
    free: Option<u64>,
}

impl Info {
    fn of(image: &Path) -> Result<Info, Failure> {
        check_type(image)?;
        // A daemon that is on its way out has the image for a moment; what it writes last is of interest.
        let opened = open_released(image, OpenMode::ReadOnly, GLANCE, None);
        let (superblock, len) = superblock(image)?;
        let metadata = fs::metadata(image).map_err(|e| Failure::at(status::SYSTEM, image, e))?;
        let path = image.canonicalize().unwrap_or_else(|_| image.to_owned());
        // What nobody has locked is not what was mounted under its name.
        let is_free = opened.is_ok();
        let mounted =
            mounts::find_source(&path).filter(|mounted| !is_free || mounted.read_only).map(|m| m.dir);
        let mut free = None;
        let state = match opened {
            Ok(_) if superblock.size > len => format!(
                "cut: the file has only {} ({len} bytes); `btfs fsck -n {}` shows what is left",
                bytes(len),
                image.display()
            ),
            Ok(storage) => {
                let options =
                    Options { read_only: true, cache_size: GLANCE_CACHE_SIZE, ..Options::default() };
                let fs = Fs::open(Arc::new(storage), &options);
                free = fs.ok().map(|fs| fs.usage().free * BLOCK_SIZE as u64);
                state_of(&superblock).to_owned()
            }
            Err(OpenError::InUse { holder: Some(holder), .. }) => {
                format!("in use by process {} ({})", holder.pid, holder.name)
            }
            Err(OpenError::InUse { .. }) => "in use".to_owned(),
            Err(e) => return Err(Failure::open(status::SYSTEM, &e)),
        };
        // stat(2) counts in units of 512 bytes, whatever the blocks of the file system are.
        let bytes_on_host = metadata.blocks() * 512;
        Ok(Info { superblock, len, bytes_on_host, mounted, state, free })
    }

    fn json(&self, image: &Path) -> serde_json::Value {
        let s = &self.superblock;
        serde_json::json!({
            "image": image.to_string_lossy(),
            "label": s.label,
            "uuid": Uuid(s.uuid).to_string(),
            "version": VERSION,
            "size": s.size,
            "file_size": self.len,
            "free": self.free,
            "bytes_on_host": self.bytes_on_host,
            "log_size": s.log_size,
            "doublewrite_size": 2 * s.doublewrite_half_size(),
            "state": self.state,
            "mounted": self.mounted.as_ref().map(|dir| dir.to_string_lossy()),
            "clean": s.clean,
            "damaged": s.is_damaged(),
            "features": {"compat": s.compat, "ro_compat": s.ro_compat, "incompat": s.incompat},
        })
    }

    fn text(&self, image: &Path) -> String {
        let s = &self.superblock;
        let label = if s.label.is_empty() { "(none)".into() } else { s.label.escape_debug().to_string() };
        let lines = [
            ("image", Some(image.display().to_string())),
            ("label", Some(label)),
            ("UUID", Some(Uuid(s.uuid).to_string())),
            ("format", Some(format!("version {VERSION}"))),
            ("size", Some(format!("{} ({} bytes)", bytes(s.size), s.size))),
            ("free", self.free.map(bytes)),
            ("on the host", Some(bytes(self.bytes_on_host))),
            ("log", Some(bytes(s.log_size))),
            ("doublewrite", Some(bytes(2 * s.doublewrite_half_size()))),
            ("state", Some(self.state.clone())),
            ("mounted at", self.mounted.as_ref().map(|dir| escaped(dir.as_os_str().as_bytes()))),
        ];
        let told = |(name, value): (&str, Option<String>)| value.map(|value| format!("{name:<15}{value}"));
        lines.into_iter().filter_map(told).collect::<Vec<_>>().join("\n")
    }
}

/// How an image is that nobody uses.
fn state_of(superblock: &Superblock) -> &'static str {
    match superblock.clean {
        _ if superblock.under_repair() => "being repaired; let `btfs fsck -y` finish it",
        _ if superblock.is_damaged() => {
            "marked as damaged; let `btfs fsck -p` look at it (-y if that is not enough)"
        }
        true => "clean",
        false => "to be recovered at the next mount",
    }
}

pub fn info(args: &InfoArgs) -> CliResult {
    let info = Info::of(&args.image)?;
    match args.json {
        true => print(status::SYSTEM, format_args!("{:#}", info.json(&args.image)))?,
        false => print(status::SYSTEM, info.text(&args.image))?,
    }
    Ok(0)
}

pub fn resize(args: &ResizeArgs) -> CliResult {
    let image = &args.image;
    let live = |dir: &Path| control::grow(dir, args.size).map_err(|e| cannot_grow(dir, args.size, &e));
    if image.is_dir() {
        live(image)?;
        return Ok(0);
    }
    let storage = match open_released(image, OpenMode::ReadWrite, FINISHING, None) {
        Ok(storage) => storage,
        Err(e @ OpenError::InUse { .. }) => {
            let path = image.canonicalize().unwrap_or_else(|_| image.clone());
            let mounted = mounts::find_source(&path).ok_or_else(|| Failure::open(status::SYSTEM, &e))?;
            live(&mounted.dir)?;
            return Ok(0);
        }
        Err(e) => return Err(Failure::open(status::SYSTEM, &e)),
    };
    // The tree alone: more space may be what a repair lacks to be finished.
    let fail = |e| Failure::fs(status::SYSTEM, image, &FsError::Engine(e));
    let tree = Tree::open(Arc::new(storage), &Options::default()).map_err(fail)?;
    let grown = tree.grow(args.size);
    tree.close().map_err(fail)?;
    grown.map_err(fail)?;
    Ok(0)
}

/// Why a live mount does not grow; the daemon tells no more than a number.
fn cannot_grow(dir: &Path, wanted: u64, error: &io::Error) -> Failure {
    let source = mounts::find(dir).map(|mounted| mounted.source);
    let size = source.and_then(|image| superblock(&image).ok()).map(|(s, _)| s.size);
    match (error.raw_os_error(), size) {
        (Some(libc::EINVAL), Some(size)) if wanted < size => Failure::at(
            status::SYSTEM,
            dir,
            format_args!("an image of {size} bytes cannot shrink to {wanted}"),
        ),
        (Some(libc::EINVAL), _) => Failure::at(
            status::SYSTEM,
            dir,
            format_args!(
                "the image, or the file or device that it lies in, cannot have {wanted} bytes; the system's log says why"
            ),
        ),
        _ => super::watch::fail(dir, error),
    }
}

/// Refuses what cannot be an image before it is opened: a pipe would wait for a writer.
fn check_type(image: &Path) -> Result<(), Failure> {
    let metadata =
        fs::metadata(image).map_err(|e| Failure::open(status::SYSTEM, &OpenError::new(image, e)))?;
    let file_type = metadata.file_type();
    if file_type.is_dir() {
        return Err(Failure::at(
            status::SYSTEM,
            image,
            "is a directory; `btfs stats` tells of what is mounted there",
        ));
    }
    if file_type.is_file() || file_type.is_block_device() {
        return Ok(());
    }
    Err(Failure::open(status::SYSTEM, &OpenError::NotAFile { path: image.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Failure, mkfs};

    /// The message of a command, which fails.
    fn refused(result: CliResult) -> String {
        result.expect_err("it should fail").message
    }

    fn mounted(image: &Path) -> CliResult {
        let storage = FileStorage::open(image, OpenMode::ReadOnly).unwrap();
        let options = Options { read_only: true, ..Options::default() };
        let opened = Fs::open(Arc::new(storage), &options);
        opened.map(|_| 0).map_err(|e| Failure::fs(status::MOUNT, image, &e))
    }

    #[test]
    fn an_image_that_was_cut_is_called_that() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image.db");
        mkfs::create(&image, &mkfs::default_options(Some(64 << 20)).unwrap(), false).unwrap();
        File::options().write(true).open(&image).unwrap().set_len(40_000_000).unwrap();
        let resized = resize(&ResizeArgs { image: image.clone(), size: 128 << 20 });
        for said in [refused(mounted(&image)), refused(resized)] {
            let parts = ["was cut short: it has 40000000 bytes", "says that it has 67108864", "btfs fsck -n"];
            assert!(parts.iter().all(|part| said.contains(part)), "{said}");
        }
        // What it was is shown all the same.
        for json in [false, true] {
            assert_eq!(info(&InfoArgs { json, image: image.clone() }).unwrap(), 0);
        }
        let (superblock, len) = superblock(&image).unwrap();
        assert_eq!((superblock.size, len), (64 << 20, 40_000_000));
    }

    #[test]
    fn who_has_lost_both_superblocks_is_told_what_may_find_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image.db");
        mkfs::create(&image, &mkfs::default_options(Some(64 << 20)).unwrap(), false).unwrap();
        let file = File::options().write(true).open(&image).unwrap();
        let all = || {
            let info = refused(info(&InfoArgs { json: false, image: image.clone() }));
            let resized = refused(resize(&ResizeArgs { image: image.clone(), size: 128 << 20 }));
            [info, resized, refused(mounted(&image))]
        };
        let told = |said: &String| {
            said.contains("not a btfs image") && said.contains("if it was one, `btfs fsck -n ")
        };
        file.write_all_at(&[0; 64 << 10], 0).unwrap();
        assert!(all().iter().all(told), "{:?}", all());
        // There is no image in ext4, nor in a short text.
        file.write_all_at(b"\x53\xef", 1080).unwrap();
        assert!(all().iter().all(|said| said.contains("not a btfs image") && !told(said)), "{:?}", all());
        file.set_len(0).unwrap();
        file.write_all_at(b"some text", 0).unwrap();
        assert!(all().iter().all(|said| said.contains("not a btfs image") && !told(said)), "{:?}", all());
    }
}
