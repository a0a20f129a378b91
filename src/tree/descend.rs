//! Finding a page by key. Readers latch one page at a time and hold nothing between levels (Lehman & Yao 1981).

use super::Tree;
use crate::error::{Error, Result};
use crate::page::format::{TYPE_TREE, page_type};
use crate::page::node::{Covers, Node};
use crate::page::{PageBytes, PageId};
use crate::pool::{Alive, Counter, PageRead};

/// A descent that has visited so many pages does not end: links or fences of the image lead in circles.
const VISITS_MAX: usize = 10_000;

/// How a descent ended.
pub(super) struct Found<'p> {
    /// The page, latched shared.
    pub page: PageRead<'p>,
    /// Pages visited.
    pub visits: usize,
    /// Low fence and level of a page whose split is incomplete and that the descent passed.
    pub incomplete: Option<(u8, Vec<u8>)>,
}

/// Which page of a level is wanted.
#[derive(Clone, Copy)]
pub(super) enum Target<'k> {
    /// The one that covers this key.
    Covering(&'k [u8]),
    /// The one that covers the greatest key below this one (which is not empty).
    Below(&'k [u8]),
}

impl Target<'_> {
    fn position(self, node: Node<'_>) -> Covers {
        match self {
            Target::Covering(key) => node.covers(key),
            Target::Below(key) if key <= node.low() => Covers::Left,
            Target::Below(key) => match node.high() {
                Some(high) if key > high => Covers::Right,
                _ => Covers::Inside,
            },
        }
    }

    pub(super) fn child(self, node: Node<'_>) -> PageId {
        match self {
            Target::Covering(key) => node.child(node.child_index(key)),
            Target::Below(key) => {
                // At the high key itself the search would compare beyond the prefix; it is above all records.
                let i = match node.high() {
                    Some(high) if key >= high => node.count(),
                    _ => node.search(key).unwrap_or_else(|i| i),
                };
                node.child(i.saturating_sub(1))
            }
        }
    }
}

impl Tree {
    /// The page of `level` that covers the target, under its shared latch. Latches held on entry: none. The caller's
    /// operation is `alive`, so that no page on the way is reused. `Ok(None)`: the tree is not that high.
    #[inline]
    pub(super) fn find<'p>(
        &'p self,
        alive: &Alive<'p>,
        target: Target<'_>,
        level: u8,
        keep: bool,
    ) -> Result<Option<Found<'p>>> {
        let mut visits = 0;
        let mut incomplete = None;
        'root: while visits < VISITS_MAX {
            let mut id = self.root();
            let (mut page, mut expected);
            match self.step_from_root(target, level)? {
                Some((child, below)) if visits == 0 && self.pool.geometry().is_data_page(child) => {
                    visits = 1;
                    (id, expected) = (child, below);
                    page = self.pool.read_hinted(id, keep || expected > 0)?;
                }
                _ => {
                    page = self.pool.read(id)?;
                    expected = Node(&page).level();
                }
            }
            loop {
                visits += 1;
                let node = as_node(id, &page, expected)?;
                if node.is_dead() || visits >= VISITS_MAX {
                    alive.add(Counter::Restarts, 1);
                    continue 'root;
                }
                match target.position(node) {
                    Covers::Left => {
                        alive.add(Counter::Restarts, 1);
                        continue 'root;
                    }
                    Covers::Right => {
                        alive.add(Counter::MoveRights, 1);
                        if node.is_incomplete() && incomplete.is_none() {
                            incomplete = Some((expected, node.low().to_vec()));
                        }
                        id = node.right();
                    }
                    Covers::Inside if expected == level => {
                        return Ok(Some(Found { page, visits, incomplete }));
                    }
                    Covers::Inside if expected < level => return Ok(None),
                    Covers::Inside => {
                        id = target.child(node);
                        expected -= 1;
                    }
                }
                if !self.pool.geometry().is_data_page(id) {
                    return Err(Error::corrupt(
                        page_of(&page),
                        format_args!("it points to {id}, outside the image"),
                    ));
                }
                page = self.next_page(page, id, keep || expected > 0)?;
            }
        }
        Err(Error::corrupt("tree", "a search does not end: links and fences contradict each other"))
    }

    /// The leaf that covers the target: [`Tree::find`] in the level that every tree has.
    #[inline]
    pub(super) fn find_leaf<'p>(
        &'p self,
        alive: &Alive<'p>,
        target: Target<'_>,
        keep: bool,
    ) -> Result<Found<'p>> {
        let found = self.find(alive, target, 0, keep)?;
        found.ok_or_else(|| Error::corrupt("tree", "it has no leaves"))
    }

    /// Gives one page up and latches the next, in this order unless the mode couples latches.
    #[inline]
    fn next_page<'p>(&'p self, page: PageRead<'p>, id: PageId, keep: bool) -> Result<PageRead<'p>> {
        if self.index.couples() {
            page.leave_order();
            return self.pool.read_hinted(id, keep);
        }
        drop(page);
        self.pool.read_hinted(id, keep)
    }
}

fn page_of(page: &PageBytes) -> PageId {
    crate::page::format::page_number(page)
}

/// The page as a node of the expected level. Pages do not change type or level while an operation is alive, so
/// anything else is damage.
#[inline]
pub(super) fn as_node(id: PageId, page: &PageBytes, level: u8) -> Result<Node<'_>> {
    if page_type(page) != TYPE_TREE {
        return Err(Error::corrupt(id, "a tree link leads to a page that is not a node"));
    }
    let node = Node(page);
    if node.level() != level {
        return Err(Error::corrupt(
            id,
            format_args!("node of level {} where level {level} is expected", node.level()),
        ));
    }
    Ok(node)
}
