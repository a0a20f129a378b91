//! Every write to an image, recorded below the daemon that makes them: by `blklogwrites` of qemu-storage-daemon, in the format of
//! the kernel's dm-log-writes. What was recorded is replayed to any moment, also to what a power cut could leave there.

use crate::mount::wait_until;
use crate::random::Random;
use crate::runner::not_run;
use crate::shell::{must, outcome};
use crate::sys;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const SECTOR: u64 = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// A recording that goes on.
pub struct Recorder {
    /// What is to be mounted.
    pub image: PathBuf,
    log: PathBuf,
    daemon: i32,
}

impl Recorder {
    /// Begins to record what is written to `data`; all files for it are in `place`.
    pub fn begin(data: &Path, place: &Path) -> Recorder {
        const PROGRAM: &str = "qemu-storage-daemon";
        let help = Command::new(PROGRAM).arg("--version").output();
        if !help.is_ok_and(|help| help.status.success()) {
            not_run("there is no qemu-storage-daemon: on Debian, apt-get install qemu-utils");
        }
        let (image, log, pid) = (place.join("recorded.db"), place.join("writes"), place.join("recorder.pid"));
        File::create(&image).expect("a place for the image");
        File::create(&log).and_then(|log| log.set_len(16 << 30)).expect("a log");
        let file =
            |name: &str, path: &Path| format!("driver=file,node-name={name},filename={}", path.display());
        let mut command = Command::new(PROGRAM);
        command.args(["--blockdev", &file("data", data), "--blockdev", &file("log", &log)]);
        command
            .args(["--blockdev", "driver=blklogwrites,node-name=both,file=data,log=log,log-sector-size=512"]);
        command.arg("--export").arg(format!(
            "type=fuse,id=image,node-name=both,mountpoint={},writable=on,growable=off",
            image.display()
        ));
        let started = outcome(command.args(["--daemonize", "--pidfile"]).arg(&pid));
        if !started.status.success() {
            not_run(&format!("qemu-storage-daemon: {}", String::from_utf8_lossy(&started.stderr).trim()));
        }
        let daemon = fs::read_to_string(&pid).expect("its number").trim().parse().expect("a number");
        Recorder { image, log, daemon }
    }

    /// Where the recording ends now, in bytes: what was acknowledged before was recorded before.
    pub fn position(&self) -> u64 {
        let log = File::open(&self.log).expect("open the log");
        let mut end = 0;
        while let Ok(data) = sys::seek(&log, end, libc::SEEK_DATA) {
            end = sys::seek(&log, data, libc::SEEK_HOLE).expect("SEEK_HOLE");
        }
        end
    }

    /// Ends it. The image is not in use.
    pub fn end(self) -> Recording {
        sys::kill(self.daemon, libc::SIGTERM).expect("end the recorder");
        wait_until("the recorder has ended", || sys::kill(self.daemon, 0).is_err());
        Recording::read(&self.log)
    }
}

/// One thing that was recorded.
struct Entry {
    /// Where it ends in the log.
    end: u64,
    /// Where in the image.
    to: u64,
    /// Where its bytes are in the log, and how many.
    from: u64,
    len: u64,
    flags: u64,
}

/// All writes and flushes, in their order.
pub struct Recording {
    log: File,
    entries: Vec<Entry>,
}

impl Recording {
    fn read(path: &Path) -> Recording {
        let log = File::open(path).expect("open the log");
        let words = |at: u64| {
            let mut bytes = [0; 32];
            log.read_exact_at(&mut bytes, at).expect("read the log");
            [0, 8, 16, 24].map(|i| u64::from_le_bytes(bytes[i..i + 8].try_into().expect("8 bytes")))
        };
        let [magic, version, count, sector] = words(0);
        assert_eq!((magic, version, sector as u32 as u64), (MAGIC, 1, SECTOR), "the head of the log");
        let (mut entries, mut at) = (Vec::new(), SECTOR);
        for _ in 0..count {
            let [sector, sectors, flags, _] = words(at);
            let len = if flags & DISCARD != 0 { 0 } else { sectors * SECTOR };
            let from = at + SECTOR;
            at = from + len;
            entries.push(Entry { end: at, to: sector * SECTOR, from, len, flags });
        }
        Recording { log, entries }
    }

    /// How many writes and flushes there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The moments right after a flush: so many entries have been done.
    pub fn flushes(&self) -> Vec<usize> {
        let flushes = self.entries.iter().enumerate().filter(|(_, e)| e.flags & (FLUSH | FUA) != 0);
        flushes.map(|(at, _)| at + 1).collect()
    }

    /// How long the log was when so many entries had been done.
    pub fn position(&self, entries: usize) -> u64 {
        entries.checked_sub(1).map_or(0, |last| self.entries[last].end)
    }
}

/// Replays a recording onto an image, forwards.
pub struct Replay<'a> {
    recording: &'a Recording,
    image: PathBuf,
    done: usize,
}

impl<'a> Replay<'a> {
    /// Onto this image, which is as it was when the recording began.
    pub fn new(recording: &'a Recording, image: &Path) -> Replay<'a> {
        Replay { recording, image: image.to_owned(), done: 0 }
    }

    /// To the moment when so many entries have been done.
    pub fn to(&mut self, entries: usize) {
        let image = OpenOptions::new().write(true).open(&self.image).expect("open the image");
        for entry in &self.recording.entries[self.done..entries] {
            self.write(&image, entry, &[true]);
        }
        self.done = entries;
    }

    /// Writes those sectors of an entry for which `kept`, which is repeated, says so.
    fn write(&self, image: &File, entry: &Entry, kept: &[bool]) {
        let mut bytes = vec![0; entry.len as usize];
        self.recording.log.read_exact_at(&mut bytes, entry.from).expect("read the log");
        if kept == [true] {
            return image.write_all_at(&bytes, entry.to).expect("write to the image");
        }
        for (number, sector) in bytes.chunks(SECTOR as usize).enumerate() {
            if kept[number % kept.len()] {
                image.write_all_at(sector, entry.to + number as u64 * SECTOR).expect("write to the image");
            }
        }
    }

    /// A copy of the image as it is now.
    pub fn copy(&self, to: &Path) {
        must(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(&self.image).arg(to));
    }

    /// A copy in which each entry from here to `until` is kept, lost or torn.
    pub fn copy_cut(&self, to: &Path, until: usize, random: &mut Random) {
        self.copy(to);
        let image = OpenOptions::new().write(true).open(to).expect("open the copy");
        // Most lost, most kept, or anything.
        let often = [2, 8, 5][random.below(3) as usize];
        for entry in self.recording.entries[self.done..until].iter().filter(|entry| entry.len > 0) {
            match random.below(10) {
                0 | 1 => {
                    let kept: Vec<bool> = (0..entry.len / SECTOR).map(|_| random.below(2) == 0).collect();
                    self.write(&image, entry, &kept);
                }
                n if n < often => self.write(&image, entry, &[true]),
                _ => {}
            }
        }
    }
}
