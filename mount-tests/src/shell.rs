//! Commands as a user types them. Their output goes to the log of the case; a command that fails ends the case.

use crate::mount::wait_until;
use crate::sys;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// What each script begins with. `! command` would not end a script where the command succeeds, so: `refused command`.
const PRELUDE: &str = r#"
set -euo pipefail
refused() { if "$@" 2>/dev/null; then echo "should have been refused: $*" >&2; exit 1; fi; }
"#;

/// Bash in a directory, as a user, with some variables. Scripts stop at the first error.
pub struct Shell {
    directory: std::path::PathBuf,
    user: Option<(u32, u32)>,
    variables: Vec<(String, String)>,
}

impl Shell {
    /// As the user who runs the tests.
    pub fn new(directory: impl AsRef<Path>) -> Shell {
        Shell { directory: directory.as_ref().to_owned(), user: None, variables: Vec::new() }
    }

    /// As the ordinary user of the tests.
    pub fn as_user(mut self) -> Shell {
        self.user = Some(sys::ordinary_user());
        self
    }

    /// With a variable in the environment.
    pub fn set(mut self, name: &str, value: impl AsRef<Path>) -> Shell {
        self.variables.push((name.to_owned(), value.as_ref().to_str().expect("a path in UTF-8").to_owned()));
        self
    }

    /// The command, for those who want to start it themselves.
    pub fn command(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        command.arg("-c").arg(format!("{PRELUDE}{script}")).current_dir(&self.directory).stdin(Stdio::null());
        // Nothing of the caller's configuration: not of git, nor of the locale.
        command.env("LC_ALL", "C").env("HOME", &self.directory).env("GIT_CONFIG_NOSYSTEM", "1");
        command
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*");
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        if let Some((uid, gid)) = self.user {
            // Set before: Command drops all supplementary groups together with root's id.
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Runs the script, which must succeed.
    pub fn run(&self, script: &str) {
        let status = self.command(script).status().expect("bash starts");
        assert!(status.success(), "{status} of: {script}");
    }

    /// Runs the script, which must succeed, and gives what it printed, without white space at the ends.
    pub fn output(&self, script: &str) -> String {
        let output = self.command(script).stderr(Stdio::inherit()).output().expect("bash starts");
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(output.status.success(), "{} of: {script}\n{text}", output.status);
        text
    }

    /// Starts the script in a process group of its own, so that all of it can be killed.
    pub fn start(&self, script: &str) -> Child {
        self.command(script).process_group(0).spawn().expect("bash starts")
    }
}

/// Ends a script started with [`Shell::start`], with all its processes.
pub fn end(mut child: Child) {
    sys::kill(-(child.id() as i32), libc::SIGKILL).ok();
    child.wait().expect("a child can be waited for");
    // Its children too, so that none of them keeps a file open.
    wait_until("all processes of a script have ended", || sys::kill(-(child.id() as i32), 0).is_err());
}

/// Runs a command that must succeed, silently; on failure both outputs are shown.
pub fn must(command: &mut Command) -> Output {
    let output = outcome(command);
    assert!(output.status.success(), "{command:?}: {}", describe(&output));
    output
}

/// Runs a command and gives its outcome, whatever it is. Not for daemons that keep the outputs open.
pub fn outcome(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// The status and both outputs, for messages.
pub fn describe(output: &Output) -> String {
    let signal = output.status.signal().map(|s| format!(" (signal {s})")).unwrap_or_default();
    format!(
        "{}{signal}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
