//! `btfs mkfs`, `mkfs.btfs`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Parser;

use super::{CliResult, Failure, bytes, print, size, status};
use crate::fs::{Caller, Fs};
use crate::storage::{FileStorage, OpenError, OpenMode};
use crate::tree::{FormatOptions, Tree};

/// The declared size of an image unless another is asked for, in bytes. The file is sparse.
const SIZE: u64 = 64 << 30;
/// Bytes at the beginning of a device that must be zero unless overwriting is asked for.
const PROBED: usize = 1 << 20;
/// A smaller file is not what somebody has made as a place for an image.
const IMAGE_MIN: u64 = 2 << 20;

/// Make an image with an empty filesystem.
#[derive(Parser, Clone, Debug)]
#[command(name = "mkfs.btfs", version)]
pub struct Args {
    /// Size up to which the image may grow [default: 64G, or the file's or device's size]
    #[arg(long, value_parser = size)]
    pub size: Option<u64>,
    /// Label, at most 64 bytes
    #[arg(short = 'L', long, default_value = "")]
    pub label: String,
    /// UUID instead of a random one
    #[arg(short = 'U', long, value_parser = parse_uuid)]
    pub uuid: Option<Uuid>,
    /// Show what would be done
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Print nothing
    #[arg(short, long)]
    pub quiet: bool,
    /// Overwrite what is there
    #[arg(short = 'F', long)]
    pub force: bool,
    /// Print more; for mkfs(8)
    #[arg(short = 'v', hide = true)]
    pub verbose: bool,
    /// The image: a file, or a block device
    pub image: PathBuf,
    /// The size in bytes, as mkfs(8) passes it
    #[arg(value_name = "SIZE", value_parser = size, conflicts_with = "size")]
    pub blocks: Option<u64>,
}

/// 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uuid(pub [u8; 16]);

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, b) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{b:02x}")?;
        }
        Ok(())
    }
}

fn parse_uuid(text: &str) -> Result<Uuid, String> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let wrong = || "a UUID has 32 hexadecimal digits".to_owned();
    if digits.len() != 32 || !digits.is_ascii() {
        return Err(wrong());
    }
    let mut uuid = [0; 16];
    for (i, byte) in uuid.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
    }
    Ok(Uuid(uuid))
}

/// Bytes that nobody can guess.
fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A random UUID (version 4).
fn random_uuid() -> io::Result<Uuid> {
    let mut uuid: [u8; 16] = random()?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(Uuid(uuid))
}

pub fn run(args: &Args) -> CliResult {
    let fail = |e: &dyn std::fmt::Display| Failure::at(status::USAGE, &args.image, e);
    let there = existing(&args.image).map_err(|e| fail(&e))?;
    if let Existing::InUse { what, .. } = &there
        && !args.force
    {
        return Err(Failure::at(status::USAGE, &args.image, format_args!("{what}; -F overwrites it")));
    }
    let size = args.size.or(args.blocks).or(there.size()).unwrap_or(SIZE);
    let uuid = args.uuid.map_or_else(random_uuid, Ok).map_err(|e| fail(&e))?;
    let options = FormatOptions {
        size,
        label: args.label.clone(),
        uuid: uuid.0,
        hash_seed: random().map_err(|e| fail(&e))?,
        ..FormatOptions::default()
    };
    let is_there = !matches!(there, Existing::Nothing);
    if args.dry_run {
        check(&args.image, &options)?;
        // It may be mounted, or lead nowhere.
        if is_there {
            FileStorage::open(&args.image, OpenMode::ReadWrite)
                .map_err(|e| Failure::open(status::USAGE, &e))?;
        } else if args.image.is_symlink() {
            return Err(fail(&LEADS_NOWHERE));
        } else if !folder_of(&args.image).is_dir() {
            return Err(no_folder(&args.image));
        }
    } else {
        create(&args.image, &options, is_there)?;
    }
    if !args.quiet {
        let verb = if args.dry_run { "would make" } else { "made" };
        let made = format_args!("{verb} {}: up to {}, UUID {uuid}", args.image.display(), bytes(size));
        print(status::USAGE, made)?;
    }
    Ok(0)
}

/// Checks what can be checked before anything is changed: what is at the image's place may be overwritten, but not lost for nothing.
fn check(image: &Path, options: &FormatOptions) -> Result<(), Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::at(status::USAGE, image, e);
    let needed = Tree::format_cost(options).map_err(|e| fail(&e))?;
    let (path, gained) = match fs::metadata(image) {
        Ok(metadata) if metadata.file_type().is_block_device() => return Ok(()),
        Ok(metadata) => (image, metadata.blocks() * 512),
        Err(_) => (folder_of(image), 0),
    };
    // What the host cannot tell is found out by writing.
    if let Ok(host) = nix::sys::statvfs::statvfs(path)
        && host.blocks() > 0
    {
        let free = host.blocks_available().saturating_mul(host.fragment_size());
        if free.saturating_add(gained) < needed {
            return Err(fail(&format_args!(
                "the image takes {} at once, and the disk that it lies on has {} left",
                bytes(needed),
                bytes(free)
            )));
        }
    }
    Ok(())
}

const LEADS_NOWHERE: &str = "a symbolic link to a file that is not there";

fn no_folder(image: &Path) -> Failure {
    Failure::at(status::USAGE, folder_of(image), "no such directory")
}

/// The directory that a file lies in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

/// Makes an image. If that fails, what was at its place is as before as far as possible: nothing is left if there was nothing.
pub fn create(image: &Path, options: &FormatOptions, overwrite: bool) -> Result<(), Failure> {
    check(image, options)?;
    let is_new = matches!(fs::symlink_metadata(image), Err(e) if e.kind() == io::ErrorKind::NotFound);
    let storage = FileStorage::create_sized(image, overwrite, options.size).map_err(|e| match e {
        OpenError::Exists { .. } if !image.exists() => Failure::at(status::USAGE, image, LEADS_NOWHERE),
        OpenError::NotFound { .. } => no_folder(image),
        e => Failure::open(status::USAGE, &e),
    })?;
    let user = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let caller = Caller { privileged: true, ..Caller::new(user.0, user.1, crate::mount::now()) };
    let made = Fs::format(Arc::new(storage), options, &caller);
    if made.is_err() && is_new {
        // The error that is told is the one that matters.
        let _ = fs::remove_file(image);
    }
    made.map_err(|e| Failure::fs(status::USAGE, image, &e))
}

/// The options of an image that `mount --create` makes.
pub fn default_options(size: Option<u64>) -> io::Result<FormatOptions> {
    let uuid = random_uuid()?.0;
    Ok(FormatOptions { size: size.unwrap_or(SIZE), uuid, hash_seed: random()?, ..FormatOptions::default() })
}

/// What is at the place of an image to be made.
enum Existing {
    Nothing,
    /// A file or device without contents, of this size.
    Empty(u64),
    /// Something that must not be overwritten without being asked to, and its size, if an image can have it.
    InUse {
        what: &'static str,
        size: Option<u64>,
    },
}

impl Existing {
    fn size(&self) -> Option<u64> {
        match self {
            Existing::Empty(size) if *size > 0 => Some(*size),
            Existing::InUse { size, .. } => *size,
            _ => None,
        }
    }
}

fn existing(image: &Path) -> io::Result<Existing> {
    let metadata = match fs::metadata(image) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Existing::Nothing),
        Err(e) => return Err(e),
    };
    let is_device = metadata.file_type().is_block_device();
    if !is_device && !metadata.is_file() {
        // What it is, and that it will not do, is found out when it is opened. A pipe would wait for a writer here.
        return Ok(Existing::Empty(0));
    }
    if metadata.is_file() && metadata.len() == 0 {
        return Ok(Existing::Empty(0));
    }
    if !is_device {
        let size = metadata.len();
        return Ok(match metadata.blocks() {
            // A file that has been given its size and nothing else.
            0 => Existing::Empty(size),
            _ => Existing::InUse { what: "already exists", size: (size >= IMAGE_MIN).then_some(size) },
        });
    }
    let mut file = File::open(image)?;
    let mut head = vec![0; PROBED];
    let read = read_up_to(&mut file, &mut head)?;
    let size = io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
    Ok(match head[..read].iter().all(|b| *b == 0) {
        true => Existing::Empty(size),
        false => Existing::InUse { what: "the device has contents", size: Some(size) },
    })
}

fn read_up_to(file: &mut File, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read(&mut buf[done..])? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_read_as_it_is_written() {
        let text = "0123abcd-4567-89ab-cdef-0123456789ab";
        assert_eq!(parse_uuid(text).unwrap().to_string(), text);
        assert!(parse_uuid("0123").is_err() && parse_uuid("zz23abcd-4567-89ab-cdef-0123456789ab").is_err());
    }

    #[test]
    fn an_image_that_exists_is_not_overwritten_unless_asked() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image.db");
        let args = |force: bool| {
            let mut args = vec!["mkfs.btfs", "-q", "--size", "64M"];
            args.extend(force.then_some("-F"));
            let args = args.into_iter().map(Into::into).chain([image.clone().into_os_string()]);
            Args::try_parse_from(args.collect::<Vec<std::ffi::OsString>>()).unwrap()
        };
        assert_eq!(run(&args(false)).unwrap(), 0);
        assert!(run(&args(false)).unwrap_err().message.contains("already exists; -F overwrites it"));
        assert_eq!(run(&args(true)).unwrap(), 0);
        // Made anew it keeps its size, if nobody says another.
        let args: Vec<std::ffi::OsString> = vec!["mkfs.btfs".into(), "-qF".into(), image.clone().into()];
        assert_eq!(run(&Args::try_parse_from(args).unwrap()).unwrap(), 0);
        assert_eq!(fs::metadata(&image).unwrap().len(), 64 << 20);
        // Nor while it is in use, and whoever only asks is told so.
        let _used = FileStorage::open(&image, OpenMode::ReadWrite).unwrap();
        for force in ["-F", "-Fn"] {
            let message = refused(&[force], &image);
            assert!(message.contains("in use"), "{message}");
        }
    }

    /// The message with which these arguments are refused; the last one is the image.
    fn refused(arguments: &[&str], image: &Path) -> String {
        let all = ["mkfs.btfs"].iter().chain(arguments).map(Into::into).chain([image.into()]);
        let args = Args::try_parse_from(all.collect::<Vec<std::ffi::OsString>>()).unwrap();
        run(&args).unwrap_err().message
    }

    #[test]
    fn what_is_refused_costs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old.db"), dir.path().join("new.db"));
        fs::write(&old, [7; 1 << 20]).unwrap();
        let label = "x".repeat(65);
        for arguments in [["--size", "1K"], ["--size", "1025P"], ["--size", "8191P"], ["-L", &label]] {
            for image in [&old, &new] {
                for force in ["-F", "-Fn"] {
                    let message = refused(&[&[force], &arguments[..]].concat(), image);
                    assert!(!message.is_empty());
                }
            }
        }
        assert!(fs::read(&old).unwrap() == [7; 1 << 20], "the old file is lost");
        assert!(!new.exists(), "a part of an image is left");
        assert!(refused(&["--size", "1K"], &new).contains("an image cannot have"));
        let nowhere = dir.path().join("no").join("image.db");
        for mode in [&[][..], &["-n"]] {
            let message = refused(mode, &nowhere);
            assert!(message.ends_with("/no: no such directory"), "{message}");
        }
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        for mode in [&[][..], &["-n"]] {
            assert!(refused(mode, &link).contains("a symbolic link to a file that is not there"));
        }
    }

    #[test]
    fn a_pipe_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for force in [&["-F"][..], &[]] {
            assert!(refused(force, &pipe).contains("neither a regular file nor a block device"));
        }
    }
}
