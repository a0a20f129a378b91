//! Runs cases, each in a process of its own with a mount of its own and a time limit, so that a filesystem that
//! hangs fails one case and not all. What could not be run is counted apart and never as passed.

use crate::mount::{HELPERS, Mount, Peer, binary, processes_at};
use crate::sys;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A test.
#[derive(Clone)]
pub struct Case {
    /// What a user would lose if it failed.
    pub name: &'static str,
    /// Gets a mounted, empty filesystem.
    pub run: fn(&mut Mount),
    /// Mount options.
    pub options: &'static str,
    /// Seconds after which the case has failed.
    pub limit: u64,
    /// Whether an ordinary user mounts.
    pub by_user: bool,
}

impl Case {
    /// With a limit of ten minutes, which is for what hangs, and without options.
    pub fn new(name: &'static str, run: fn(&mut Mount)) -> Case {
        Case { name, run, options: "", limit: 600, by_user: false }
    }

    /// With another time limit, in seconds.
    pub fn limit(mut self, seconds: u64) -> Case {
        self.limit = seconds;
        self
    }

    /// With mount options.
    pub fn options(mut self, options: &'static str) -> Case {
        self.options = options;
        self
    }

    /// The same under another name, mounted by an ordinary user.
    pub fn by_user(mut self, name: &'static str) -> Case {
        self.name = name;
        self.by_user = true;
        self
    }
}

/// Makes [`Case`]s of functions, named after them.
#[macro_export]
macro_rules! cases {
    ($($function:ident $(.$change:ident($argument:expr))*),* $(,)?) => {
        vec![$($crate::runner::Case::new(
            concat!(module_path!(), "::", stringify!($function)), $function)$(.$change($argument))*),*]
    };
}

/// The exit code of a case that could not be run.
const NOT_RUN: i32 = 77;

/// Ends the case: it cannot be run here. It is counted as not run.
pub fn not_run(reason: &str) -> ! {
    eprintln!("{reason}");
    std::process::exit(NOT_RUN)
}

enum Outcome {
    Passed,
    Failed(String),
    NotRun(String),
}

struct Running<'a> {
    case: &'a Case,
    pid: i32,
    base: PathBuf,
    started: Instant,
}

/// Runs the cases whose names contain one of the words on the command line, or all; gives the exit code.
/// `BTFS_TEST_JOBS` at once, 2 by default. With `BTFS_TEST_KEEP` set, what failed leaves its image behind.
pub fn main(cases: &[Case]) -> i32 {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let chosen: Vec<&Case> =
        cases.iter().filter(|c| words.is_empty() || words.iter().any(|word| c.name.contains(word))).collect();
    if std::env::args().any(|word| word == "--list") {
        chosen.iter().for_each(|case| println!("{}", case.name));
        return 0;
    }
    if sys::is_root() {
        sys::private_mounts().expect("a mount namespace of its own");
        open_fuse_to_users();
        if Peer::chosen() == Peer::Btfs {
            install_helpers();
        }
    }
    sys::umask(0o022);
    // The message and the place are enough, and say more without a backtrace around them.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    println!("{} cases on {:?}", chosen.len(), Peer::chosen());
    let (passed, failed, not_run) = run_all(&chosen);
    fs::remove_dir_all(helpers_place()).ok();
    println!("{} passed, {} failed, {} NOT RUN", passed, failed.len(), not_run.len());
    failed.iter().for_each(|name| println!("FAILED  {name}"));
    not_run.iter().for_each(|name| println!("NOT RUN {name}"));
    i32::from(!failed.is_empty() || passed == 0)
}

/// Gives ordinary users `/dev/fuse`, as every distribution does, where only root has it: in this namespace only.
fn open_fuse_to_users() {
    use std::os::unix::fs::MetadataExt;
    let device = Path::new("/dev/fuse");
    if fs::metadata(device).is_ok_and(|facts| facts.mode() & 0o006 != 0o006) {
        let open = std::env::temp_dir().join(format!("btfs-mount-tests-fuse.{}", std::process::id()));
        let made = sys::mknod(&open, libc::S_IFCHR | 0o666, 10, 229).and_then(|()| sys::chmod(&open, 0o666));
        made.expect("a device node");
        let status =
            Command::new("mount").arg("--bind").args([&open, device]).status().expect("mount starts");
        assert!(status.success(), "mount --bind: {status}");
        // What is mounted stays, without its name.
        fs::remove_file(&open).expect("unlink");
    }
}

fn helpers_place() -> PathBuf {
    std::env::temp_dir().join(format!("btfs-mount-tests-sbin.{}", std::process::id()))
}

/// Puts the names under which mount(8) looks for btfs over `/sbin`, in this namespace only. Where that fails, the
/// cases that need them say so.
fn install_helpers() {
    let place = helpers_place();
    fs::create_dir_all(&place).expect("a temporary directory");
    for name in HELPERS {
        std::os::unix::fs::symlink(binary(), place.join(name)).expect("symlink");
    }
    let sbin = fs::canonicalize("/sbin").expect("/sbin");
    let layers = format!("lowerdir={}:{}", place.display(), sbin.display());
    let mount = Command::new("mount").args(["-t", "overlay", "overlay", "-o", &layers]).arg(&sbin).status();
    if !mount.is_ok_and(|status| status.success()) {
        println!("overlayfs cannot be mounted over {}", sbin.display());
    }
}

fn run_all(chosen: &[&Case]) -> (usize, Vec<String>, Vec<String>) {
    let jobs = crate::random::from_environment("BTFS_TEST_JOBS", 2) as usize;
    let root = std::env::temp_dir().join(format!("btfs-mount-tests.{}", std::process::id()));
    fs::create_dir_all(&root).expect("a temporary directory");
    let (mut passed, mut failed, mut not_run) = (0, vec![], vec![]);
    let mut waiting = chosen.iter().enumerate();
    let mut running: Vec<Running> = vec![];
    loop {
        while running.len() < jobs {
            let Some((number, case)) = waiting.next() else { break };
            running.push(start(case, root.join(number.to_string())));
        }
        if running.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
        let mut still = vec![];
        for one in running {
            let Some(outcome) = look(&one) else {
                still.push(one);
                continue;
            };
            let seconds = one.started.elapsed().as_secs_f32();
            let name = one.case.name;
            let keep = matches!(outcome, Outcome::Failed(_)) && std::env::var_os("BTFS_TEST_KEEP").is_some();
            match outcome {
                Outcome::Passed => {
                    println!("ok      {name} ({seconds:.1} s)");
                    passed += 1;
                }
                Outcome::Failed(log) => {
                    println!("FAILED  {name} ({seconds:.1} s)\n{log}");
                    failed.push(name.to_owned());
                }
                Outcome::NotRun(reason) => {
                    println!("NOT RUN {name}: {reason}");
                    not_run.push(format!("{name}: {reason}"));
                }
            }
            sys::kill(-one.pid, libc::SIGKILL).ok();
            clean_up(&one.base, keep);
        }
        running = still;
    }
    fs::remove_dir(&root).ok();
    (passed, failed, not_run)
}

fn start(case: &Case, base: PathBuf) -> Running<'_> {
    fs::create_dir_all(&base).expect("a temporary directory");
    let log = File::create(base.join("log")).expect("a log");
    let pid = sys::fork(|| {
        sys::detach_into(&log);
        sys::heed_signals();
        if sys::is_root() {
            // Programs that look at all mounts, like a stressor that syncs them, must not meet one that another case kills.
            sys::private_mounts().expect("a mount namespace of the case's own");
        }
        let mut mount = Mount::plan(&base, case.options, case.by_user);
        let fusermount = || Command::new("fusermount3").arg("-V").output().is_ok_and(|o| o.status.success());
        if case.by_user && Peer::chosen() == Peer::Btfs && !fusermount() {
            not_run("without fusermount3 only root can mount");
        }
        std::env::set_current_dir(&base).expect("chdir");
        if case.by_user && Peer::chosen() == Peer::Btfs {
            // All of the case: nobody else, not even root, sees what an ordinary user has mounted.
            sys::become_user();
        }
        mount.format();
        mount.mount();
        (case.run)(&mut mount);
        mount.finish();
    });
    Running { case, pid, base, started: Instant::now() }
}

fn look(one: &Running) -> Option<Outcome> {
    let log = || {
        let bytes = fs::read(one.base.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].iter().map(|line| format!("    {line}\n")).collect::<String>()
    };
    if one.started.elapsed() > Duration::from_secs(one.case.limit) {
        // A process that waits for the filesystem ends only after its daemon, so nobody waits for it here.
        sys::kill(-one.pid, libc::SIGKILL).ok();
        return Some(Outcome::Failed(format!("{}    no end after {} s", log(), one.case.limit)));
    }
    Some(match sys::ended(one.pid)? {
        0 => Outcome::Passed,
        NOT_RUN => Outcome::NotRun(log().lines().last().unwrap_or_default().trim().to_owned()),
        code => Outcome::Failed(format!("{}    exit code {code}", log())),
    })
}

/// Ends whatever a case has left: its processes, its daemon, its mounts, its files.
fn clean_up(base: &Path, keep: bool) {
    for pid in processes_at(base) {
        sys::kill(pid, libc::SIGKILL).ok();
    }
    let mounts = fs::read("/proc/self/mounts").unwrap_or_default();
    let mounts = String::from_utf8_lossy(&mounts);
    let mut points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    points.reverse();
    for point in points.into_iter().filter(|point| Path::new(point).starts_with(base)) {
        Command::new("umount").args(["-l", point]).status().ok();
    }
    if keep {
        println!("    kept: {}", base.display());
    } else if let Err(error) = fs::remove_dir_all(base) {
        println!("    {} stays behind: {error}", base.display());
    }
}
