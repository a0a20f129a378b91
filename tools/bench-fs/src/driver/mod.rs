//! Runs the rows: makes the systems of each group, lets them take turns, and collects what was measured.

mod results;
mod watchdog;

use std::io::IsTerminal;

use anyhow::{Context, Result};
use btfs_bench_common::cleanup::{self, RunDir};

use crate::options::{Options, Plan};
use crate::rows::{Group, Row};
use crate::systems::{Setup, System, SystemId};
use crate::work::Bench;
use crate::work::tree::SourceTree;
pub use results::Results;
use watchdog::Watchdog;

/// Runs the whole plan.
pub fn run(options: &Options, plan: Plan) -> Result<Results> {
    cleanup::install()?;
    let dir = RunDir::create(&options.dir)?;
    std::fs::create_dir_all(&options.cache)?;
    let btfs = match &options.btfs {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("btfs"),
    };
    let setup = Setup {
        dir: dir.path().to_owned(),
        cache: options.cache.canonicalize()?,
        btfs,
        mount_options: options.mount_options.clone(),
        image_size: plan.image_bytes,
    };
    let source = SourceTree::create(dir.path(), plan.tree_files).context("making the source tree")?;
    let mut machine = btfs_bench_common::machine::describe("images", dir.path());
    let mount_options = if options.mount_options.is_empty() { "default" } else { &options.mount_options };
    machine.push(format!("btfs mounted with {mount_options} options"));
    machine.push(format!(
        "the source tree has {} files and {} directories, {} KiB",
        source.files,
        source.dirs,
        source.bytes >> 10
    ));
    let mut driver = Driver {
        results: Results::new(plan, machine),
        watchdog: Watchdog::start(options.row_limit),
        setup,
        source,
    };
    for round in 0..driver.results.plan.rounds {
        for group in Group::ALL {
            driver.run_group(group, round)?;
        }
    }
    Ok(driver.results)
}

struct Driver {
    results: Results,
    watchdog: Watchdog,
    setup: Setup,
    source: SourceTree,
}

impl Driver {
    fn run_group(&mut self, group: Group, round: u32) -> Result<()> {
        let chosen: Vec<&'static Row> = self.results.plan.rows.clone();
        let Some(last) = chosen.iter().rev().find(|row| row.group == group) else { return Ok(()) };
        let rows: Vec<&'static Row> = crate::rows::ROWS.iter().filter(|row| row.group == group).collect();
        let end = rows.iter().position(|row| row.name == last.name).map_or(0, |n| n + 1);
        let mut systems = self.create_systems(&rows, round);
        for (n, row) in rows.into_iter().take(end).enumerate() {
            progress(&format!("round {}, {}", round + 1, row.name));
            let count = systems.len().max(1);
            for turn in 0..systems.len() {
                let slot = &mut systems[(turn + n + round as usize) % count];
                let is_chosen = chosen.iter().any(|other| other.name == row.name);
                let keeps = slot.as_mut().is_none_or(|system| self.run_row(row, system, is_chosen));
                if !keeps && let Some(system) = slot.take() {
                    self.destroy(system);
                }
            }
        }
        for system in systems.into_iter().flatten() {
            self.destroy(system);
        }
        progress("");
        Ok(())
    }

    fn create_systems(&mut self, rows: &[&Row], round: u32) -> Vec<Option<System>> {
        let mut systems = Vec::new();
        for id in self.results.plan.systems.clone() {
            if rows.iter().all(|row| row.skipped_on(id).is_some()) || self.results.is_missing(id) {
                continue;
            }
            progress(&format!("round {}, making {}", round + 1, id.name()));
            let created = System::create(id, &self.setup, &format!("{}-{round}", rows[0].group.name()));
            let created = created.and_then(|mut system| match system.mount() {
                Ok(()) => Ok(system),
                Err(e) => {
                    let _ = system.destroy();
                    Err(e)
                }
            });
            match created {
                Ok(system) => systems.push(Some(system)),
                Err(e) => {
                    cleanup::stay_if_ending();
                    self.results.add_missing(id, format!("{e:#}"));
                }
            }
        }
        systems
    }

    /// False if it failed, so that the system cannot be used any more.
    fn run_row(&mut self, row: &'static Row, system: &mut System, is_chosen: bool) -> bool {
        let id = system.id;
        if row.skipped_on(id).is_some() {
            return true;
        }
        cleanup::stay_if_ending();
        self.watchdog.watch(system.daemon_id());
        let plan = self.results.plan.clone();
        let settled = system.settle();
        let mut bench = Bench { system, plan: &plan, source: &self.source };
        let result = settled.and_then(|()| (row.run)(&mut bench));
        let was_late = self.watchdog.rest();
        match result {
            Ok(measurement) => {
                if is_chosen {
                    self.results.add(row, id, measurement);
                }
                true
            }
            Err(e) => {
                cleanup::stay_if_ending();
                let late = if was_late { "took too long: " } else { "" };
                self.results.add_failure(row, id, format!("{late}{e:#}"));
                false
            }
        }
    }

    fn destroy(&mut self, mut system: System) {
        self.watchdog.watch(system.daemon_id());
        if let Err(e) = system.destroy() {
            cleanup::stay_if_ending();
            self.results.failures.push(format!("taking {} away: {e:#}", system.id.name()));
        }
        self.watchdog.rest();
    }
}

/// Says on a terminal what is going on.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
    }
}

/// A failure's place.
pub fn place(row: &Row, id: SystemId) -> String {
    format!("{} on {}", row.name, id.name())
}
