//! The options of `-o`.

use std::time::Duration;

use super::adapter::OnError;
use super::mounts::MountFlags;
use crate::fs::Atime;

/// What `-o` has chosen.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What the kernel is told.
    pub flags: MountFlags,
    /// Let root in as well as the user who mounts; the same as `allow_other` to the kernel, filtered here.
    pub allow_root: bool,
    /// Change the flags of a mount that exists.
    pub remount: bool,
    /// Let the kernel collect writes.
    pub writeback: bool,
    /// What was done is durable at the latest after this time.
    pub commit: Duration,
    /// Memory for the buffer pool in bytes.
    pub cache_size: Option<usize>,
    /// Workers.
    pub threads: Option<usize>,
    /// What to do about errors.
    pub on_error: OnError,
    /// Whether reading changes access times.
    pub atime: Atime,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            flags: MountFlags::default(),
            allow_root: false,
            remount: false,
            writeback: false,
            commit: Duration::from_secs(5),
            cache_size: None,
            threads: None,
            on_error: OnError::default(),
            atime: Atime::default(),
        }
    }
}

/// An option that is not known, or whose value is not possible.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Not known.
    #[error("unknown mount option `{0}`")]
    Unknown(String),
    /// Its value is missing.
    #[error("mount option `{0}` needs a value: `{0}=…`")]
    NoValue(String),
    /// A value that is not possible.
    #[error("mount option `{name}`: `{value}` is not {expected}")]
    Value {
        /// The option.
        name: String,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl MountOptions {
    /// How many threads serve requests. Even on one processor one can serve while another waits for the disk.
    pub fn workers(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(2, |n| n.get());
        self.threads.unwrap_or_else(|| processors().clamp(2, 16))
    }

    /// Adds the options of one comma-separated list. Later ones overrule earlier ones. With `sloppy` those that are not known are passed
    /// over.
    pub fn parse(&mut self, list: &str, sloppy: bool) -> Result<(), OptionError> {
        list.split(',').filter(|o| !o.is_empty()).try_for_each(|option| match self.parse_one(option) {
            Err(OptionError::Unknown(_)) if sloppy => Ok(()),
            parsed => parsed,
        })
    }

    fn parse_one(&mut self, option: &str) -> Result<(), OptionError> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        let wrong =
            |expected| OptionError::Value { name: name.into(), value: value.unwrap_or("").into(), expected };
        match (name, value) {
            ("ro", None) => self.flags.read_only = true,
            ("rw", None) => self.flags.read_only = false,
            ("suid", None) => self.flags.no_suid = false,
            ("nosuid", None) => self.flags.no_suid = true,
            ("dev", None) => self.flags.no_dev = false,
            ("nodev", None) => self.flags.no_dev = true,
            ("exec", None) => self.flags.no_exec = false,
            ("noexec", None) => self.flags.no_exec = true,
            ("atime" | "relatime", None) => (self.flags.no_atime, self.atime) = (false, Atime::Relatime),
            ("strictatime", None) => (self.flags.no_atime, self.atime) = (false, Atime::Strict),
            ("noatime", None) => (self.flags.no_atime, self.atime) = (true, Atime::None),
            ("allow_other", None) => self.flags.allow_other = true,
            ("allow_root", None) => self.allow_root = true,
            ("remount", None) => self.remount = true,
            // Always on, or for mount(8) itself and systemd.
            ("default_permissions" | "defaults" | "auto" | "noauto", None) => {}
            ("user" | "nouser" | "users" | "nousers" | "owner" | "noowner" | "group" | "nogroup", None) => {}
            (
                "nofail" | "_netdev" | "async" | "silent" | "loud" | "nomand" | "noiversion" | "nolazytime",
                None,
            ) => {}
            ("user" | "uhelper", Some(_)) => {}
            // It says no more than `noatime` in front of it; alone it would ask for what there is not.
            ("nodiratime", None) if self.flags.no_atime => {}
            (name, _) if name.starts_with("x-") || name.starts_with("X-") => {}
            ("writeback", Some("on")) => self.writeback = true,
            ("writeback", Some("off")) => self.writeback = false,
            ("writeback", _) => return Err(wrong("`on` or `off`")),
            ("errors", Some("remount-ro")) => self.on_error = OnError::RemountReadOnly,
            ("errors", Some("abort")) => self.on_error = OnError::Abort,
            ("errors", _) => return Err(wrong("`remount-ro` or `abort`")),
            ("commit", Some(text)) => {
                let seconds = text.parse().ok().filter(|s| (1..=3600).contains(s));
                self.commit =
                    Duration::from_secs(seconds.ok_or_else(|| wrong("a number of seconds from 1 to 3600"))?);
            }
            ("threads", Some(text)) => {
                let threads = text.parse().ok().filter(|n| (1..=256).contains(n));
                self.threads = Some(threads.ok_or_else(|| wrong("a number from 1 to 256"))?);
            }
            ("cache_size", Some(text)) => {
                let size = parse_size(text).filter(|s| *s >= CACHE_MIN).and_then(|s| usize::try_from(s).ok());
                self.cache_size = Some(size.ok_or_else(|| wrong("a size of at least 16M"))?);
            }
            ("commit" | "threads" | "cache_size", None) => return Err(OptionError::NoValue(name.into())),
            _ => return Err(OptionError::Unknown(option.into())),
        }
        Ok(())
    }
}

/// A batch of the filesystem may touch some hundred pages.
const CACHE_MIN: u64 = 16 << 20;

/// A size in bytes, with a suffix of K, M, G, T, P or E for powers of 1024. Without a sign: elsewhere `+1G` means "1G more".
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.strip_suffix("iB").or_else(|| text.strip_suffix('B')).unwrap_or(text);
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        b't' | b'T' => (&text[..text.len() - 1], 40),
        b'p' | b'P' => (&text[..text.len() - 1], 50),
        b'e' | b'E' => (&text[..text.len() - 1], 60),
        _ => (text, 0),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &str) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions::default();
        options.parse(list, false)?;
        Ok(options)
    }

    #[test]
    fn a_line_of_fstab_is_understood() {
        let line =
            "rw,noatime,nodiratime,nofail,owner,x-systemd.automount,allow_other,commit=30,cache_size=64M";
        let o = parsed(line).unwrap();
        assert!(o.flags.no_atime && o.flags.allow_other && !o.flags.read_only);
        assert_eq!((o.commit.as_secs(), o.cache_size), (30, Some(64 << 20)));
        assert_eq!(o.atime, Atime::None);
    }

    #[test]
    fn the_last_of_two_opposites_counts() {
        assert!(!parsed("ro,nosuid,rw").unwrap().flags.read_only);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        assert_eq!(parsed("rw,quota").unwrap_err().to_string(), "unknown mount option `quota`");
        assert_eq!(parsed("ro=1").unwrap_err(), OptionError::Unknown("ro=1".into()));
        assert!(parsed("commit=0").unwrap_err().to_string().contains("`0` is not a number of seconds"));
        assert!(parsed("commit=3600").is_ok() && parsed("commit=3601").is_err());
        assert!(parsed("writeback").is_err() && parsed("cache_size=1M").is_err());
    }

    #[test]
    fn sizes_have_suffixes() {
        assert_eq!(parse_size("64G"), Some(64 << 30));
        assert_eq!(parse_size("512KiB"), Some(512 << 10));
        assert_eq!(parse_size("100"), Some(100));
        assert_eq!(parse_size("99999999999T"), None);
        assert_eq!(parse_size("1P"), Some(1 << 50));
        assert_eq!(parse_size("16E"), None);
        assert_eq!(parse_size("G"), None);
        assert_eq!(parse_size("+1M"), None);
        assert_eq!(parse_size("1.5M"), None);
    }
}
