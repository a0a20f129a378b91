//! What a live mount tells about itself.

use serde_json::json;

use super::control::REPORT_SIZE;
use super::counters::Counters;
use super::damage::{Damage, Scrubber};
use super::volume::{Access, Volume};
use crate::fs::Scrub;

/// Bytes of a message or a path that are told: a report has a limit, also where each byte is escaped.
const MESSAGE_MAX: usize = REPORT_SIZE / 16;

/// A JSON object: requests, the volume's own counters, damage met so far, whether changes are taken, and how far the last scrub is.
pub fn report<V: Volume>(volume: &V, counters: &Counters, damage: &Damage, scrubber: &Scrubber) -> String {
    json!({
        "requests": counters.to_json(),
        "volume": volume.report(),
        "damage": damage.count(),
        "state": state(volume.access(), damage.failure()),
        "scrub": scrubber.progress().to_json(),
    })
    .to_string()
}

/// Findings of a scrub from number `first` on, as many as fit into `room` bytes: a JSON array of objects with `path`, `inode`,
/// `from`, `to` and `reason`. What is not known is null.
pub fn findings(scrub: &Scrub, first: u64, room: usize) -> String {
    let mut out = String::from("[");
    for finding in scrub.findings.lock().iter().skip(usize::try_from(first).unwrap_or(usize::MAX)) {
        let json = json!({
            "path": finding.ino.map(|_| last_of(&finding.path)),
            "inode": finding.ino.map(|ino| ino.0),
            "from": finding.range.map(|r| r.0),
            "to": finding.range.map(|r| r.1),
            "reason": &finding.reason[..finding.reason.floor_char_boundary(MESSAGE_MAX)],
        })
        .to_string();
        // With a comma in front and the bracket behind.
        if out.len() + json.len() + 2 > room {
            break;
        }
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str(&json);
    }
    out.push(']');
    out
}

/// The end of a path that is too long to be told.
fn last_of(path: &str) -> String {
    match path.len().checked_sub(MESSAGE_MAX) {
        None | Some(0) => path.to_owned(),
        Some(begin) => format!("…{}", &path[path.ceil_char_boundary(begin)..]),
    }
}

/// `rw`, `ro`, or `failed: ` and the error that came first.
fn state(access: Access, failure: Option<&str>) -> String {
    let error = match (access, failure) {
        (_, Some(error)) => error.to_owned(),
        (Access::Failed(error), None) => error,
        (Access::ReadWrite, None) => return "rw".into(),
        (Access::ReadOnly, None) => return "ro".into(),
    };
    let mut state = format!("failed: {error}");
    state.truncate(state.floor_char_boundary(MESSAGE_MAX));
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Finding, Ino};

    #[test]
    fn findings_are_told_in_parts_that_fit() {
        let scrub = Scrub::default();
        let path = "\u{1}".repeat(5000);
        let finding = Finding { ino: Some(Ino(7)), path: path.clone(), range: Some((0, 4096)), reason: path };
        *scrub.findings.lock() = vec![finding; 5];
        let mut told = 0;
        while told < 5 {
            let part = findings(&scrub, told, REPORT_SIZE);
            assert!(part.len() <= REPORT_SIZE);
            let part: Vec<serde_json::Value> = serde_json::from_str(&part).unwrap();
            assert!(!part.is_empty());
            assert_eq!((&part[0]["inode"], &part[0]["to"]), (&7.into(), &4096.into()));
            told += part.len() as u64;
        }
        assert_eq!(findings(&scrub, 5, REPORT_SIZE), "[]");
    }

    #[test]
    fn the_state_names_the_first_error() {
        assert_eq!(state(Access::ReadWrite, None), "rw");
        assert_eq!(state(Access::ReadOnly, None), "ro");
        assert_eq!(state(Access::Failed("late".into()), None), "failed: late");
        assert_eq!(state(Access::Failed("late".into()), Some("early")), "failed: early");
        assert_eq!(state(Access::ReadOnly, Some("damaged")), "failed: damaged");
        assert!(state(Access::ReadOnly, Some(&"…".repeat(5000))).len() <= MESSAGE_MAX);
    }
}
