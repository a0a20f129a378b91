//! The latch-order checker of debug builds: a thread waits only for a page that is greater than all it holds.
//!
//! The order is the contract of `docs/concurrency.md`: tree pages by level, then by low fence (left to right, then
//! up), then bitmap pages by number. It is checked when a latch that could have waited has been granted, because only
//! then can the page's fences be read.

#[cfg(debug_assertions)]
pub use checked::{acquired, changed, released};
#[cfg(not(debug_assertions))]
pub use unchecked::{acquired, changed, released};

#[cfg(debug_assertions)]
mod checked {
    use crate::page::PageBytes;
    use crate::page::format::{TYPE_BITMAP, TYPE_TREE, page_number, page_type};
    use crate::page::node::Node;
    use std::cell::RefCell;

    #[derive(PartialEq, Eq, PartialOrd, Ord, Debug, Clone)]
    enum Place {
        Tree { level: u8, low: Vec<u8> },
        Bitmap { page: u64 },
    }

    struct Held {
        frame: usize,
        place: Option<Place>,
    }

    #[cfg(not(shuttle))]
    thread_local! { static HELD: RefCell<Vec<Held>> = const { RefCell::new(Vec::new()) } }
    #[cfg(shuttle)]
    shuttle::thread_local! { static HELD: RefCell<Vec<Held>> = RefCell::new(Vec::new()) }

    fn place(page: &PageBytes) -> Option<Place> {
        let node = Node(page);
        match page_type(page) {
            TYPE_TREE if !node.is_dead() => {
                Some(Place::Tree { level: node.level(), low: node.low().to_vec() })
            }
            TYPE_BITMAP => Some(Place::Bitmap { page: page_number(page).0 }),
            _ => None,
        }
    }

    /// A latch was granted on the frame whose data lies at `frame`; `waited`: it could have been waited for.
    pub fn acquired(frame: usize, page: &PageBytes, waited: bool) {
        let new = place(page);
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            if waited {
                for h in held.iter() {
                    assert!(
                        h.place.is_none() || new.is_none() || h.place < new,
                        "latch order: waited for {new:?} while holding {:?}",
                        h.place
                    );
                }
            }
            held.push(Held { frame, place: new });
        });
    }

    /// A latched page got new contents, and with them perhaps another place.
    pub fn changed(frame: usize, page: &PageBytes) {
        HELD.with(|held| {
            for h in held.borrow_mut().iter_mut().filter(|h| h.frame == frame) {
                h.place = place(page);
            }
        });
    }

    /// A latch was given up.
    pub fn released(frame: usize) {
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            if let Some(i) = held.iter().rposition(|h| h.frame == frame) {
                held.remove(i);
            }
        });
    }
}

/// Release builds check nothing.
#[cfg(not(debug_assertions))]
mod unchecked {
    use crate::page::PageBytes;

    #[inline]
    pub fn acquired(_: usize, _: &PageBytes, _: bool) {}
    #[inline]
    pub fn changed(_: usize, _: &PageBytes) {}
    #[inline]
    pub fn released(_: usize) {}
}
