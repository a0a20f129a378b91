//! What a live mount tells about itself.

use super::counters::Counters;
use super::damage::{Damage, Scrubber};
use super::volume::{Access, Volume};

/// Bytes of an error's message that are told: a report has a limit.
const MESSAGE_MAX: usize = 1000;

/// A JSON object: requests, the volume's own counters, damage met so far, whether changes are taken, and how far the last scrub is.
pub fn report<V: Volume>(volume: &V, counters: &Counters, damage: &Damage, scrubber: &Scrubber) -> String {
    format!(
        "{{\"requests\":{},\"volume\":{},\"damage\":{},\"state\":{},\"scrub\":{}}}",
        counters.json(),
        volume.report(),
        damage.count(),
        serde_json::Value::from(state(volume.access(), damage.failure())),
        scrubber.progress().json()
    )
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
