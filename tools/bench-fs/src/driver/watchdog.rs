//! Ends rows that hang: a process that waits for a FUSE daemon can be helped only by the daemon's end.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Watches one row at a time.
pub struct Watchdog {
    shared: Arc<(Mutex<State>, Condvar)>,
    limit: Duration,
}

#[derive(Default)]
struct State {
    watched: Option<(Instant, u32)>,
    has_bitten: bool,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Watchdog {
    pub fn start(limit_seconds: u64) -> Watchdog {
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let watchdog = Watchdog { shared: shared.clone(), limit: Duration::from_secs(limit_seconds) };
        std::thread::spawn(move || run(&shared));
        watchdog
    }

    /// From now on, until it rests, a daemon, which is a child of this process, has only so much time.
    pub fn watch(&self, daemon: Option<u32>) {
        let mut state = lock(&self.shared.0);
        state.has_bitten = false;
        state.watched = daemon.map(|daemon| (Instant::now() + self.limit, daemon));
        self.shared.1.notify_all();
    }

    /// Whether the time was over.
    pub fn rest(&self) -> bool {
        let mut state = lock(&self.shared.0);
        state.watched = None;
        state.has_bitten
    }
}

fn run((state, changed): &(Mutex<State>, Condvar)) {
    let mut state = lock(state);
    loop {
        let now = Instant::now();
        let wait = match state.watched {
            Some((deadline, daemon)) if deadline <= now => {
                state.watched = None;
                state.has_bitten = true;
                btfs_bench_common::cleanup::kill_process(daemon);
                continue;
            }
            Some((deadline, _)) => deadline - now,
            None => Duration::from_secs(3600),
        };
        state = changed.wait_timeout(state, wait).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
    }
}
