//! Each thread's copy of the root page.
//!
//! The root is on the way of every descent; its latch alone would be fought over by all cores. It changes rarely, so a thread
//! searches a copy of its own as long as the pool's count of root changes stands where it stood when the copy was made. A copy
//! that has just become old is harmless: descents cope with parents that lag behind, and the pages it leads to are not
//! reused while the operation is alive, because the count was read after the operation began.

use std::cell::RefCell;

use super::Tree;
use super::descend::Target;
use crate::error::Result;
use crate::page::format::PAGE_SIZE;
use crate::page::node::Node;
use crate::page::{PageBytes, PageId};

struct Copy {
    pool: u64,
    version: u64,
    page: Box<PageBytes>,
}

/// Trees that a thread can use in turn without copying the root each time.
const COPIES: usize = 4;

type Copies = RefCell<[Option<Copy>; COPIES]>;

#[cfg(not(shuttle))]
thread_local! { static ROOTS: Copies = const { RefCell::new([const { None }; COPIES]) } }
#[cfg(shuttle)]
shuttle::thread_local! { static ROOTS: Copies = RefCell::new([const { None }; COPIES]) }

impl Tree {
    /// The child of the root where the search for the target goes on, and its level; `None` if the target lies at the root's
    /// own level or above. No latch is held on entry or exit; the caller's operation is alive.
    #[inline]
    pub(super) fn step_from_root(&self, target: Target<'_>, level: u8) -> Result<Option<(PageId, u8)>> {
        let pool = self.pool.id();
        ROOTS.with(|roots| {
            let copy = &mut roots.borrow_mut()[pool as usize % COPIES];
            let current = |c: &&mut Copy| c.pool == pool && c.version == self.pool.root_version();
            let copy = match copy.as_mut().filter(current) {
                Some(copy) => copy,
                None => self.copy_root(copy)?,
            };
            let node = Node(&copy.page);
            Ok((node.level() > level).then(|| (target.child(node), node.level() - 1)))
        })
    }

    #[cold]
    fn copy_root<'c>(&self, copy: &'c mut Option<Copy>) -> Result<&'c mut Copy> {
        let root = self.pool.read(self.root())?;
        super::descend::as_node(self.root(), &root, Node(&root).level())?;
        let new = match copy.take() {
            Some(old) => old,
            None => Copy { pool: 0, version: 0, page: Box::new([0; PAGE_SIZE]) },
        };
        let copy = copy.insert(new);
        // The count cannot move while the root is latched.
        copy.version = self.pool.root_version();
        copy.pool = self.pool.id();
        copy.page.copy_from_slice(&root[..]);
        Ok(copy)
    }
}
