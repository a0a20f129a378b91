//! `btfs mount`, `btfs umount`, `mount.fuse.btfs`.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, sysconf};

use super::daemon::{self, Parent};
use super::{CliResult, Failure, bytes, image, log_to_stderr, mkfs, remark, size, status};
use crate::escape::escaped;
use crate::fs::{Atime, Fs, FsError};
use crate::mount::mounts::{self, Mounted};
use crate::mount::{Mount, MountOptions, block_signals, control};
use crate::storage::{FileStorage, OpenError, OpenMode};
use crate::tree::Options;

const MARKED: &str =
    "the image is marked as damaged: let `btfs fsck -p` look at it (-y if that is not enough)";

#[derive(Parser)]
pub struct Args {
    /// Stay in the foreground; messages go to standard error
    #[arg(short = 'f', long)]
    foreground: bool,
    /// Stay in the foreground and print every request
    #[arg(short = 'd', long)]
    debug: bool,
    /// Make the image and the directory if they are not there
    #[arg(long)]
    create: bool,
    /// The size of an image made by --create [default: 64G]
    #[arg(long, value_parser = size, requires = "create")]
    size: Option<u64>,
    /// Options, separated by commas: ro, allow_other, noatime, writeback=on, commit=SEC, cache_size=SIZE, threads=N,
    /// errors=remount-ro|abort, nosuid, nodev, noexec, …
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// The image
    image: PathBuf,
    /// The directory to mount it at
    dir: PathBuf,
}

/// Called by mount(8).
#[derive(Parser)]
#[command(name = "mount.fuse.btfs", version)]
pub struct HelperArgs {
    /// The image
    image: PathBuf,
    /// The directory to mount it at
    dir: PathBuf,
    /// Options
    #[arg(short = 'o')]
    options: Vec<String>,
    /// Only pretend
    #[arg(short = 'f')]
    fake: bool,
    /// Ignore options that are not known
    #[arg(short = 's')]
    sloppy: bool,
    #[arg(short = 'n', hide = true)]
    no_table: bool,
    #[arg(short = 'v', hide = true)]
    verbose: bool,
    #[arg(short = 't', hide = true)]
    fs_type: Option<String>,
    #[arg(short = 'N', hide = true)]
    namespace: Option<PathBuf>,
}

#[derive(Parser)]
pub struct UmountArgs {
    /// Detach now, even if it is in use, and finish when it is not any more
    #[arg(short = 'l', long)]
    lazy: bool,
    /// The directory
    dir: PathBuf,
}

fn parse_options(lists: &[String], sloppy: bool) -> Result<MountOptions, Failure> {
    let mut options = MountOptions::default();
    for list in lists {
        options.parse(list, sloppy).map_err(|e| Failure::new(status::USAGE, e))?;
    }
    Ok(options)
}

pub fn run_helper(args: HelperArgs) -> CliResult {
    let lists = args.options.iter().flat_map(|list| list.split(','));
    if lists.clone().any(|o| o == "remount") {
        return remount(&args, lists);
    }
    let options = parse_options(&args.options, args.sloppy)?;
    if args.fake {
        return Ok(0);
    }
    if let Some(namespace) = &args.namespace {
        let entered = File::open(namespace)
            .and_then(|f| Ok(nix::sched::setns(f, nix::sched::CloneFlags::CLONE_NEWNS)?));
        entered.map_err(|e| Failure::at(status::SYSTEM, namespace, e))?;
    }
    mount(&args.image, &args.dir, &options, Background::Yes)
}

/// Options in the table of mounts that no user gives.
const OF_THE_KERNEL: [&str; 7] = ["user_id", "group_id", "fd", "rootmode", "max_read", "blksize", "seclabel"];
/// Options that hold until the image is unmounted.
const LASTING: [&str; 5] = ["commit", "cache_size", "threads", "writeback", "errors"];
/// What mount(8) passes on to the kernel.
const FLAGS: [&str; 8] = ["ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec"];
/// The same of access times.
const ATIME_FLAGS: [&str; 4] = ["atime", "noatime", "relatime", "strictatime"];

/// The flags of a mount are the kernel's: mount(8) tells it, without asking us again. The daemon is told what it has to heed itself.
fn remount<'a>(args: &HelperArgs, options: impl Iterator<Item = &'a str>) -> CliResult {
    let dir = &args.dir;
    // Those of the table of mounts come along.
    let name = |o: &str| o.split('=').next().map(str::to_owned).unwrap_or_default();
    let kept: Vec<&str> = options.filter(|o| !OF_THE_KERNEL.contains(&&*name(o))).collect();
    parse_options(&[kept.join(",")], args.sloppy)?;
    if args.fake {
        return Ok(0);
    }
    let lasting: Vec<&str> = kept.iter().copied().filter(|o| LASTING.contains(&&*name(o))).collect();
    if !lasting.is_empty() {
        remark(format_args!(
            "{}: {} can change only when the image is mounted the next time",
            dir.display(),
            lasting.join(",")
        ));
    }
    let access = kept.iter().rfind(|o| matches!(**o, "ro" | "rw"));
    if mounts::find(dir).is_none() {
        return Err(Failure::new(status::MOUNT, mounts::MountError::NotMounted { dir: dir.into() }));
    }
    // The kernel would call it writable, and every write would fail.
    if access == Some(&"rw") && super::watch::report(dir)?["state"] == "ro" {
        return Err(Failure::at(
            status::MOUNT,
            dir,
            "the image was opened for reading only; unmount it, and mount it again",
        ));
    }
    let mut flags = vec!["remount"];
    // What is asked for comes behind what the table has, and mount(8) takes a `noatime` of the table back for `atime` only.
    let atime = kept.iter().copied().rfind(|o| ATIME_FLAGS.contains(o));
    flags.extend(kept.iter().copied().filter(|o| FLAGS.contains(o)));
    flags.extend(atime.filter(|o| *o != "noatime").map(|_| "atime").into_iter().chain(atime));
    let sync = || {
        let synced = File::open(dir).and_then(|f| f.sync_all());
        synced.map_err(|e| Failure::at(status::SYSTEM, dir, e))
    };
    if access == Some(&"ro") {
        // What has been acknowledged until now is on disk before the mount says that it changes nothing.
        sync()?;
    }
    let failed = |e: io::Error| Failure::new(status::SYSTEM, format_args!("mount: {e}"));
    let done = Command::new("mount").arg("-i").arg("-o").arg(flags.join(",")).arg(dir).status();
    let done = done.map_err(failed)?;
    if !done.success() {
        // It has said why.
        return Ok(done.code().and_then(|code| code.try_into().ok()).unwrap_or(status::MOUNT));
    }
    if access == Some(&"ro") {
        // So has what the kernel has written back for that, and what others have changed until then.
        sync()?;
    }
    // Of several places of the filesystem the one that changes most counts.
    let places = mounts::find(dir).map(|mounted| mounts::places(&mounted)).unwrap_or_default();
    let modes = [Atime::Strict, Atime::Relatime];
    let mode = modes.into_iter().find(|mode| places.iter().any(|place| place.atime == *mode));
    if let Err(e) = control::set_atime_mode(dir, mode.unwrap_or(Atime::None)) {
        remark(format_args!("{}: access times are kept as they were before: {e}", dir.display()));
    }
    Ok(0)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Background {
    Yes,
    No { debug: bool },
}

pub fn run(args: Args) -> CliResult {
    let options = parse_options(&args.options, false)?;
    if options.remount {
        return Err(Failure::new(status::USAGE, "to remount, use `mount -o remount,… DIR`"));
    }
    if args.create {
        create(&args)?;
    }
    let background = match args.foreground || args.debug {
        true => Background::No { debug: args.debug },
        false => Background::Yes,
    };
    mount(&args.image, &args.dir, &options, background)
}

/// Descriptors beside those of the workers, and those that are open already: pipes, the log, and what the library needs for a moment.
const DESCRIPTORS: u64 = 32;

/// Makes sure that workers can be started: a limit that is too small would end the daemon after it has said that all is well.
fn allow_descriptors(workers: usize) -> Result<(), Failure> {
    // Whoever started this may have left some open.
    let open = fs::read_dir("/proc/self/fd").map_or(0, |open| open.count() as u64);
    let needed = open + DESCRIPTORS + 2 * workers as u64;
    let refused = |e: nix::Error| Failure::new(status::SYSTEM, format_args!("the limit of open files: {e}"));
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(refused)?;
    if soft >= needed {
        return Ok(());
    }
    if hard < needed {
        let message = format_args!(
            "{workers} threads need {needed} open files with the {open} that there are, and the limit is {hard} (ulimit -n)"
        );
        return Err(Failure::new(status::SYSTEM, message));
    }
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard).map_err(refused)
}

/// Makes sure that the image can be written up to its end: a limit that is met later would end all writing.
fn allow_file_size(image: &Path) -> Result<(), Failure> {
    let refused = |e: &dyn std::fmt::Display| {
        Failure::new(status::SYSTEM, format_args!("the limit of file sizes: {e}"))
    };
    let metadata = fs::metadata(image).map_err(|e| Failure::at(status::SYSTEM, image, e))?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).map_err(|e| refused(&e))?;
    // Devices have no such limit.
    if !metadata.is_file() {
        return Ok(());
    }
    if hard < metadata.len() {
        let len = bytes(metadata.len());
        return Err(refused(&format_args!("it is {} (ulimit -f), and the image has {len}", bytes(hard))));
    }
    // Also where the image may still grow.
    if soft < hard {
        setrlimit(Resource::RLIMIT_FSIZE, hard, hard).map_err(|e| refused(&e))?;
    }
    Ok(())
}

/// Refuses a cache that no memory of this machine can hold. To know of its pages alone would take memory at once.
fn check_cache_size(options: &MountOptions) -> Result<(), Failure> {
    let of = |variable| sysconf(variable).ok().flatten().and_then(|n| u64::try_from(n).ok());
    let Some(wanted) = options.cache_size else { return Ok(()) };
    let memory = of(SysconfVar::_PHYS_PAGES).zip(of(SysconfVar::PAGE_SIZE)).map(|(n, size)| n * size);
    match memory {
        Some(memory) if wanted as u64 > memory => Err(Failure::new(
            status::SYSTEM,
            format_args!("cache_size={wanted}: this machine has {} of memory", bytes(memory)),
        )),
        _ => Ok(()),
    }
}

/// Makes what is missing.
fn create(args: &Args) -> Result<(), Failure> {
    let made_dir = match fs::create_dir(&args.dir) {
        Ok(()) => true,
        // What is there may be a directory, or a mount whose daemon is dead; that is looked at later.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
        Err(e) => return Err(Failure::at(status::MOUNT, &args.dir, e)),
    };
    let made = match fs::metadata(&args.image) {
        // As touch(1) leaves it.
        Ok(metadata) if metadata.is_file() && metadata.len() == 0 => Some(true),
        Ok(_) => None,
        Err(_) => Some(false),
    }
    .map_or(Ok(()), |overwrite| {
        let format = mkfs::default_options(args.size).map_err(|e| Failure::new(status::SYSTEM, e))?;
        mkfs::create(&args.image, &format, overwrite).map_err(|e| Failure { status: status::MOUNT, ..e })
    });
    if made.is_err() && made_dir {
        // The error that is told is the one that matters.
        let _ = fs::remove_dir(&args.dir);
    }
    made
}

/// The absolute path of a directory that can be mounted at, and whether it has a mount whose daemon has died. That one stays until the
/// new one is ready: what uses the directory meanwhile is to get errors, and not the directory below.
fn mount_point(dir: &Path) -> Result<(PathBuf, bool), Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::at(status::MOUNT, dir, e);
    if mounts::is_dead(dir)
        && let Some(dead) = mounts::find(dir)
    {
        return Ok((dead.dir, true));
    }
    let absolute = match fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => dir.canonicalize(),
        Ok(_) => return Err(fail(&"the mount point is not a directory")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(fail(&"the mount point does not exist; make it with mkdir"));
        }
        Err(e) => Err(e),
    };
    if let Some(mounted) = mounts::find(absolute.as_deref().unwrap_or(dir)) {
        // Somebody else's, who lets nobody in: nor is anybody told whether it is dead.
        let hint = if absolute.is_err() { "; if its daemon has died, umount(8) takes it away" } else { "" };
        return Err(fail(&format_args!(
            "the mount point is busy: {} is mounted here{hint}",
            escaped(mounted.source.as_os_str().as_bytes())
        )));
    }
    absolute.map(|dir| (dir, false)).map_err(|e| fail(&e))
}

fn mount(image: &Path, dir: &Path, options: &MountOptions, background: Background) -> CliResult {
    if options.allow_root && options.flags.allow_other {
        return Err(Failure::new(
            status::USAGE,
            "allow_other lets in everybody, and allow_root nobody but root",
        ));
    }
    let image = image.canonicalize().map_err(|e| Failure::open(status::MOUNT, &OpenError::new(image, e)))?;
    let (dir, is_dead) = mount_point(dir)?;
    let mode = if options.flags.read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
    let storage =
        image::open_released(&image, mode, image::FINISHING, is_dead.then_some(&*dir)).map_err(|e| {
            let failure = Failure::open(status::MOUNT, &e);
            match e.may_be_readable() && mode == OpenMode::ReadWrite {
                true => failure.and("; if it may be read, it can be mounted with -o ro"),
                false => failure,
            }
        })?;
    allow_descriptors(options.workers())?;
    check_cache_size(options)?;
    if mode == OpenMode::ReadWrite {
        allow_file_size(&image)?;
    }
    let parent = match background {
        Background::Yes => daemon::split()?,
        Background::No { .. } => Parent::none(),
    };
    let system = |e: &dyn std::fmt::Display| Failure::new(status::SYSTEM, e);
    if let Err(e) = block_signals() {
        return Err(parent.failed(system(&e)));
    }
    match background {
        Background::Yes => {
            if let Err(e) = daemon::log_to_syslog() {
                return Err(parent.failed(system(&format_args!("starting a thread: {e}"))));
            }
        }
        Background::No { debug } => log_to_stderr(debug),
    }
    abort_on_panic();
    let mounted = match open_and_mount(storage, &image, &dir, options) {
        Ok(mounted) => mounted,
        Err(failure) => return Err(parent.failed(failure)),
    };
    match parent.ready() {
        // Who wanted the mount was ended while it was made, and believes that there is none.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
            log::warn!("{}: unmounted, since nobody waits for the mount any more", dir.display());
            if let Err(e) = mounts::unmount(&dir, true) {
                log::error!("{}: still mounted: {e}", dir.display());
            }
        }
        Err(e) => log::warn!("letting go of the terminal: {e}"),
        Ok(()) => {}
    }
    mounted.serve().map_err(|e| {
        log::error!("{}: {e}", image.display());
        Failure::at(status::SYSTEM, &image, e)
    })?;
    Ok(0)
}

fn open_and_mount(
    storage: FileStorage,
    image: &Path,
    dir: &Path,
    options: &MountOptions,
) -> Result<Mount<Fs>, Failure> {
    let defaults = Options::default();
    let tree_options = Options {
        cache_size: options.cache_size.unwrap_or(defaults.cache_size),
        commit_interval: options.commit,
        read_only: options.flags.read_only,
        ..defaults
    };
    let storage = Arc::new(storage);
    let fs = Fs::open(storage.clone(), &tree_options).map_err(|e| {
        let damaged = matches!(&e, FsError::Engine(e) if e.is_corrupt());
        // Or the check at boot would pass over an image that was closed in order.
        if damaged
            && !options.flags.read_only
            && let Err(e) = crate::fsck::mark_damaged(&*storage)
        {
            log::warn!("{}: it could not be marked as damaged: {e}", image.display());
        }
        Failure::fs(status::MOUNT, image, &e)
    })?;
    if !fs.tree().recovery().clean {
        log::warn!("{}: {}", image.display(), fs.tree().recovery());
    }
    if fs.tree().is_damaged() {
        log::warn!("{}: {MARKED}", image.display());
    }
    fs.set_atime_mode(if options.flags.read_only { Atime::None } else { options.atime });
    Mount::new(fs, image, dir, options).map_err(|e| Failure::new(status::MOUNT, e))
}

/// A thread that panics leaves half-changed state behind; nothing may go on from there. What was committed is safe in the log.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        log::error!("{info}");
        log::logger().flush();
        std::process::abort();
    }));
}

/// How long what has been closed may keep a mount busy.
const CLOSING: Duration = Duration::from_millis(500);
/// The longest pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Unmounts; what has only just been closed may keep a mount busy for a moment.
fn unmount_patiently(dir: &Path, lazy: bool) -> Result<(), mounts::MountError> {
    let patience = Instant::now() + CLOSING;
    loop {
        match mounts::unmount(dir, lazy) {
            Err(mounts::MountError::Busy { .. }) if Instant::now() < patience => {
                std::thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
}

/// How long a daemon that was killed may be on its way out.
const DYING: Duration = Duration::from_secs(5);
/// After so long somebody who waits for a daemon wants to know why.
const REMARK: Duration = Duration::from_secs(2);

/// Waits until the daemon of a mount that was taken away has written everything: it holds the image's lock so long. `false`: it goes
/// on, since the filesystem is mounted elsewhere as well, or somebody else has the image by now.
fn wait_for_daemon(image: &File, gone: &Mounted, dead: bool) -> io::Result<bool> {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(1);
    let mut remarked = false;
    loop {
        match image.try_lock_shared() {
            Ok(()) => return Ok(true),
            Err(fs::TryLockError::WouldBlock) => {}
            Err(fs::TryLockError::Error(e)) => return Err(e),
        }
        let waited = begun.elapsed();
        if dead && (waited > DYING || mounts::find_source(&gone.source).is_some()) {
            return Ok(false);
        }
        if !dead && waited > REMARK && !remarked {
            remarked = true;
            if mounts::find_source(&gone.source).is_some_and(|mounted| !mounted.is_of(gone)) {
                let (dir, image) = (gone.dir.display(), gone.source.display());
                remark(format_args!("{dir}: unmounted, and not waited for: {image} is another image by now"));
                return Ok(false);
            }
            if let Some(place) = mounts::elsewhere(gone) {
                remark(format_args!("{}: unmounted; the image is still mounted {place}", gone.dir.display()));
                return Ok(false);
            }
            remark(format_args!("{}: unmounted; waiting until everything is on disk", gone.dir.display()));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE);
    }
}

pub fn umount(args: &UmountArgs) -> CliResult {
    let mounted = mounts::find(&args.dir).ok_or_else(|| {
        Failure::new(status::SYSTEM, mounts::MountError::NotMounted { dir: args.dir.clone() })
    })?;
    if args.lazy {
        // The daemon may be stopped, or stuck on its disk: it is asked nothing.
        unmount_patiently(&mounted.dir, true).map_err(|e| Failure::new(status::MOUNT, e))?;
        return Ok(0);
    }
    let dead = mounts::is_dead(&mounted.dir);
    let image = &mounted.source;
    let fail = |e: io::Error| {
        Failure::new(status::SYSTEM, format_args!("unmounted, but cannot wait for {}: {e}", image.display()))
    };
    // Where the daemon cannot be waited for, this is what can be made sure of.
    let synced = if dead { Ok(()) } else { File::open(&mounted.dir).and_then(|dir| dir.sync_all()) };
    unmount_patiently(&mounted.dir, dead).map_err(|e| Failure::new(status::MOUNT, e))?;
    // Not before: the image may lie below its mount.
    let waited = match image::open_to_look(image) {
        Ok(file) => wait_for_daemon(&file, &mounted, dead),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let (dir, image) = (mounted.dir.display(), image.display());
            remark(format_args!(
                "{dir}: unmounted, and not waited for: {image} has another name by now, or none"
            ));
            Ok(false)
        }
        Err(e) => Err(e),
    };
    if !waited.map_err(fail)? {
        return synced.map_or_else(|e| Err(fail(e)), |()| Ok(0));
    }
    if dead {
        return Ok(0);
    }
    let superblock = match image::superblock(image) {
        Ok((superblock, _)) => superblock,
        // Nothing was written, whatever has the image's name by now.
        Err(_) if mounted.read_only => return Ok(0),
        Err(failure) => return Err(failure),
    };
    // What was mounted read-only may have been left by a crash before.
    if !superblock.clean && !mounted.read_only {
        return Err(Failure::at(
            status::SYSTEM,
            image,
            "the image was not closed in order; see the system's log, and check it with `btfs fsck`",
        ));
    }
    if superblock.is_damaged() {
        remark(format_args!("{}: {MARKED}", image.display()));
    }
    Ok(0)
}
