//! Memory limits: each worker gets a control group of its own, and all groups have the same limit.
//!
//! The groups are made below the driver's own group (so that limits that it has hold for the workers, too), or,
//! where version 2 forbids that because the driver itself is in it, beside it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use btfs_bench_common::cleanup;

const ROOT: &str = "/sys/fs/cgroup";

/// Where groups can be made.
pub struct Cgroups {
    parent: PathBuf,
    version: Version,
    limit: u64,
    made: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    One,
    Two,
}

impl Cgroups {
    /// Finds a place where groups with this memory limit, in bytes, can be made. Fails rather than measuring
    /// without a limit.
    pub fn find(limit: u64) -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").context("no control groups on this system")?;
        let mut reasons = Vec::new();
        for (version, parent) in candidates(&own) {
            let mut cgroups = Cgroups { parent, version, limit, made: 0 };
            match cgroups.create() {
                Ok(probe) => {
                    cleanup::remove_cgroup(&probe);
                    return Ok(cgroups);
                }
                Err(error) => reasons.push(format!("{error:#}")),
            }
        }
        bail!(
            "a memory limit needs the right to make control groups with the memory controller:\n  {}",
            reasons.join("\n  ")
        )
    }

    /// Makes a group with the limit.
    pub fn create(&mut self) -> Result<PathBuf> {
        let group = self.parent.join(format!("btfs-engine-bench-{}-{}", std::process::id(), self.made));
        self.made += 1;
        fs::create_dir(&group).with_context(|| format!("cannot make {}", group.display()))?;
        cleanup::add_cgroup(&group);
        let limited = self.set_limit(&group);
        if limited.is_err() {
            cleanup::remove_cgroup(&group);
        }
        limited?;
        Ok(group)
    }

    fn set_limit(&self, group: &Path) -> Result<()> {
        let limit = self.limit.to_string();
        let (limit_file, swap_file, swap_limit) = match self.version {
            Version::One => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", limit.as_str()),
            Version::Two => ("memory.max", "memory.swap.max", "0"),
        };
        let path = group.join(limit_file);
        fs::write(&path, &limit).with_context(|| format!("cannot write {}", path.display()))?;
        // Absent where swap is not accounted for.
        let swap_path = group.join(swap_file);
        if swap_path.exists() {
            fs::write(&swap_path, swap_limit)
                .with_context(|| format!("cannot write {}", swap_path.display()))?;
        }
        Ok(())
    }
}

/// The groups below which groups could be made, the best first. `own` is `/proc/self/cgroup`.
fn candidates(own: &str) -> Vec<(Version, PathBuf)> {
    let mut found = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let path = path.trim_start_matches('/');
        if controllers.split(',').any(|controller| controller == "memory") {
            found.push((Version::One, Path::new(ROOT).join("memory").join(path)));
        } else if controllers.is_empty() {
            let group = Path::new(ROOT).join(path);
            let beside = group.parent().filter(|parent| parent.starts_with(ROOT)).map(Path::to_owned);
            found.push((Version::Two, group));
            found.extend(beside.map(|parent| (Version::Two, parent)));
        }
    }
    found
}

/// Whether the kernel killed a process of this group because of its limit.
pub fn was_out_of_memory(group: &Path) -> bool {
    let kills = |file: &str| {
        let text = fs::read_to_string(group.join(file)).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse::<u64>();
        count.ok()
    };
    kills("memory.events").or_else(|| kills("memory.oom_control")).is_some_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_found() {
        let found = candidates("4:memory:/a/b\n1:cpu:/a\n0::/c/d\n");
        let expected = [
            (Version::One, "/sys/fs/cgroup/memory/a/b"),
            (Version::Two, "/sys/fs/cgroup/c/d"),
            (Version::Two, "/sys/fs/cgroup/c"),
        ];
        assert_eq!(found, expected.map(|(version, path)| (version, PathBuf::from(path))));
    }
}
