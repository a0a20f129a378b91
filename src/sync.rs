//! The synchronisation primitives of the engine, in one place so that `--cfg shuttle` can replace all of them
//! by model-checked ones. Nothing else in `wal`, `pool` and `tree` names `parking_lot` or `std::thread`.
//!
//! [`RawLatch`] is a reader-writer lock without a guard: the pool ties its own guards to frames.

#[cfg(shuttle)]
pub use model::*;
#[cfg(not(shuttle))]
pub use real::*;

#[cfg(not(shuttle))]
mod real {
    pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
    pub use std::sync::atomic;
    pub use std::thread;

    use parking_lot::lock_api::{RawRwLock as _, RawRwLockDowngrade as _};

    /// A reader-writer latch without guards.
    pub struct RawLatch(parking_lot::RawRwLock);

    impl RawLatch {
        pub const fn new() -> Self {
            RawLatch(parking_lot::RawRwLock::INIT)
        }
        pub fn lock_shared(&self) {
            self.0.lock_shared();
        }
        pub fn try_lock_shared(&self) -> bool {
            self.0.try_lock_shared()
        }
        pub fn lock_exclusive(&self) {
            self.0.lock_exclusive();
        }
        pub fn try_lock_exclusive(&self) -> bool {
            self.0.try_lock_exclusive()
        }
        /// # Safety
        /// The caller holds a shared lock, which this gives up.
        pub unsafe fn unlock_shared(&self) {
            // SAFETY: passed on to the caller.
            unsafe { self.0.unlock_shared() }
        }
        /// # Safety
        /// The caller holds the exclusive lock, which this gives up.
        pub unsafe fn unlock_exclusive(&self) {
            // SAFETY: passed on to the caller.
            unsafe { self.0.unlock_exclusive() }
        }
        /// # Safety
        /// The caller holds the exclusive lock; it holds a shared one afterwards.
        pub unsafe fn downgrade(&self) {
            // SAFETY: passed on to the caller.
            unsafe { self.0.downgrade() }
        }
    }

    /// A spinning thread gives way.
    pub fn spin_wait() {
        std::thread::yield_now();
    }

    /// Runs `f` with the mutex released.
    pub fn unlocked<'a, T, R>(guard: &mut MutexGuard<'a, T>, _: &'a Mutex<T>, f: impl FnOnce() -> R) -> R {
        MutexGuard::unlocked(guard, f)
    }
}

#[cfg(shuttle)]
mod model {
    pub use shuttle::sync::atomic;
    pub use shuttle::thread;
    use std::ops::{Deref, DerefMut};
    use std::time::{Duration, Instant};

    /// `shuttle`'s mutex with `parking_lot`'s interface.
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);
    /// The guard of [`Mutex`].
    pub struct MutexGuard<'a, T> {
        mutex: &'a Mutex<T>,
        /// `None` only while the guard gives the mutex up for a moment.
        inner: Option<shuttle::sync::MutexGuard<'a, T>>,
    }
    /// `shuttle`'s condition variable with `parking_lot`'s interface.
    pub struct Condvar(shuttle::sync::Condvar);
    /// Whether a timed wait ran out of time.
    pub struct WaitTimeoutResult(bool);

    impl WaitTimeoutResult {
        pub fn timed_out(&self) -> bool {
            self.0
        }
    }

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Mutex(shuttle::sync::Mutex::new(value))
        }
        pub fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard { mutex: self, inner: Some(self.acquire()) }
        }
        fn acquire(&self) -> shuttle::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(|e| e.into_inner())
        }
    }

    impl<T: Default> Default for Mutex<T> {
        fn default() -> Self {
            Mutex::new(T::default())
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            match &self.inner {
                Some(g) => g,
                None => unreachable!("a guard is empty only inside Condvar::wait"),
            }
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            match &mut self.inner {
                Some(g) => g,
                None => unreachable!("a guard is empty only inside Condvar::wait"),
            }
        }
    }

    impl Condvar {
        pub fn new() -> Self {
            Condvar(shuttle::sync::Condvar::new())
        }
        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            if let Some(g) = guard.inner.take() {
                guard.inner = Some(self.0.wait(g).unwrap_or_else(|e| e.into_inner()));
            }
        }
        /// A wait that a notification must end: its time limit does the rounds of a background thread, or would hide
        /// a lost notification. Under the model checker the time never comes, so a lost notification is a deadlock.
        pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _: Duration) -> WaitTimeoutResult {
            self.wait(guard);
            WaitTimeoutResult(false)
        }
        /// A wait that may be in vain: under the model checker its time is always up, after others have had their turn.
        pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _: Instant) -> WaitTimeoutResult {
            guard.inner = None;
            shuttle::thread::yield_now();
            guard.inner = Some(guard.mutex.acquire());
            WaitTimeoutResult(true)
        }
        pub fn notify_all(&self) {
            self.0.notify_all();
        }
        pub fn notify_one(&self) {
            self.0.notify_one();
        }
    }

    impl Default for Condvar {
        fn default() -> Self {
            Condvar::new()
        }
    }

    /// A reader-writer latch without guards, from a mutex and a condition variable.
    pub struct RawLatch {
        /// Readers, or -1 for a writer.
        state: shuttle::sync::Mutex<isize>,
        changed: shuttle::sync::Condvar,
    }

    impl RawLatch {
        pub fn new() -> Self {
            RawLatch { state: shuttle::sync::Mutex::new(0), changed: shuttle::sync::Condvar::new() }
        }
        fn state(&self) -> shuttle::sync::MutexGuard<'_, isize> {
            self.state.lock().unwrap_or_else(|e| e.into_inner())
        }
        pub fn lock_shared(&self) {
            let mut s = self.state();
            while *s < 0 {
                s = self.changed.wait(s).unwrap_or_else(|e| e.into_inner());
            }
            *s += 1;
        }
        pub fn try_lock_shared(&self) -> bool {
            let mut s = self.state();
            if *s < 0 {
                return false;
            }
            *s += 1;
            true
        }
        pub fn lock_exclusive(&self) {
            let mut s = self.state();
            while *s != 0 {
                s = self.changed.wait(s).unwrap_or_else(|e| e.into_inner());
            }
            *s = -1;
        }
        pub fn try_lock_exclusive(&self) -> bool {
            let mut s = self.state();
            if *s != 0 {
                return false;
            }
            *s = -1;
            true
        }
        /// # Safety
        /// The caller holds a shared lock, which this gives up.
        pub unsafe fn unlock_shared(&self) {
            let mut s = self.state();
            assert!(*s > 0, "shared latch released but not held");
            *s -= 1;
            self.changed.notify_all();
        }
        /// # Safety
        /// The caller holds the exclusive lock, which this gives up.
        pub unsafe fn unlock_exclusive(&self) {
            let mut s = self.state();
            assert!(*s == -1, "exclusive latch released but not held");
            *s = 0;
            self.changed.notify_all();
        }
        /// # Safety
        /// The caller holds the exclusive lock; it holds a shared one afterwards.
        pub unsafe fn downgrade(&self) {
            let mut s = self.state();
            assert!(*s == -1, "downgrade of a latch that is not held");
            *s = 1;
            self.changed.notify_all();
        }
    }

    /// A spinning thread gives way.
    pub fn spin_wait() {
        shuttle::thread::yield_now();
    }

    /// Runs `f` with the mutex released.
    pub fn unlocked<'a, T, R>(
        guard: &mut MutexGuard<'a, T>,
        mutex: &'a Mutex<T>,
        f: impl FnOnce() -> R,
    ) -> R {
        guard.inner = None;
        let result = f();
        guard.inner = Some(mutex.acquire());
        result
    }
}
