//! A worker process, as the driver sees it.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use btfs_bench_common::cleanup;

use super::cgroup;
use crate::WORKER_ARGUMENT;
use crate::protocol::{Request, Response, WorkerConfig};

/// A running worker. Dropping it ends the process, removes its control group, and leaves its folder.
pub struct Child {
    process: std::process::Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    config: WorkerConfig,
}

impl Child {
    /// Starts a worker, and returns it with its engine's settings.
    pub fn start(config: &WorkerConfig) -> Result<(Self, String)> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg(WORKER_ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a worker")?;
        cleanup::add_process(process.id());
        let stdin = process.stdin.take().context("no pipe to the worker")?;
        let stdout = BufReader::new(process.stdout.take().context("no pipe from the worker")?);
        let mut child = Child { process, stdin, stdout, config: config.clone() };
        let line = serde_json::to_string(config)?;
        match child.exchange(&line)? {
            Response::Ready(settings) => Ok((child, settings)),
            Response::Failed(reason) => bail!(reason),
            other => bail!("odd answer {other:?}"),
        }
    }

    /// Sends a request and waits for the answer. Fails if the worker died.
    pub fn ask(&mut self, request: &Request) -> Result<Response> {
        let line = serde_json::to_string(request)?;
        self.exchange(&line)
    }

    fn exchange(&mut self, line: &str) -> Result<Response> {
        let sent = writeln!(self.stdin, "{line}").and_then(|()| self.stdin.flush());
        let mut answer = String::new();
        let received = sent.and_then(|()| self.stdout.read_line(&mut answer));
        if !matches!(received, Ok(len) if len > 0) {
            let _ = self.process.kill();
            let status = self.process.wait()?;
            let killed_by_limit = match &self.config.cgroup {
                Some(cgroup) if cgroup::was_out_of_memory(cgroup) => " (its memory limit was reached)",
                _ => "",
            };
            bail!("the worker died: {status}{killed_by_limit}");
        }
        Ok(serde_json::from_str(&answer)?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // The databases are deleted next: closing them properly would be wasted time.
        let _ = self.process.kill();
        cleanup::remove_process(self.process.id());
        let _ = self.process.wait();
        if let Some(cgroup) = &self.config.cgroup {
            cleanup::remove_cgroup(cgroup);
        }
    }
}
