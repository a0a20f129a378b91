//! The tree's structure: every page that can be reached, level by level, and the leaves in key order.
//!
//! Each level is walked in segments: a child that a parent names, and the siblings behind it whose separators have not been posted.
//! So damage in one page leaves the rest in reach, and a page is visited once (each claims its blocks): no links lead in circles.

use super::blocks::Claims;
use super::fix::Fix;
use super::image::{Image, PageError};
use super::records::Records;
use super::report::{Findings, Place, ProblemKind, Report};
use super::{Options, Result, Stage};
use crate::fs::format::{AnyKey, KEY_CAPACITY};
use crate::page::format::{PAGE_SIZE, page_lsn};
use crate::page::node::Node;
use crate::page::{Lsn, PageBytes, PageId};

/// Pages of a level with their low fences, in key order. 16 bytes and the fence a page.
#[derive(Default, Clone)]
pub(super) struct Row {
    ids: Vec<PageId>,
    ends: Vec<usize>,
    keys: Vec<u8>,
    /// Positions before which something is missing: the pages in between are reached by right links only, if at all.
    gaps: Vec<usize>,
    /// Of each page only the keys count that are not less than its low fence here, and less than the next one.
    pub bounded: bool,
}

impl Row {
    pub fn len(&self) -> usize {
        self.ids.len()
    }
    pub fn id(&self, i: usize) -> PageId {
        self.ids[i]
    }
    pub fn ids(&self) -> impl Iterator<Item = PageId> {
        self.ids.iter().copied()
    }
    /// The low fence of page `i`.
    pub fn low(&self, i: usize) -> &[u8] {
        let from = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.keys[from..self.ends[i]]
    }
    pub fn push(&mut self, id: PageId, low: &[u8]) {
        self.ids.push(id);
        self.keys.extend_from_slice(low);
        self.ends.push(self.keys.len());
    }
    /// Whether each page begins behind the one in front of it.
    fn is_ascending(&self) -> bool {
        (1..self.len()).all(|i| self.low(i - 1) < self.low(i))
    }
    fn gap(&mut self) {
        if self.gaps.last() != Some(&self.len()) {
            self.gaps.push(self.len());
        }
    }
    /// The last page whose low fence is not greater than the key; the first one if all are.
    pub fn position(&self, key: &[u8]) -> usize {
        let (mut lo, mut hi) = (0, self.len());
        while lo < hi {
            let mid = (lo + hi) / 2;
            if self.low(mid) <= key { lo = mid + 1 } else { hi = mid }
        }
        lo.saturating_sub(1)
    }
}

/// A range of keys whose leaf is not there. `high` `None`: to the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Gap {
    pub low: Vec<u8>,
    pub high: Option<Vec<u8>>,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.low.is_empty() && self.high.is_none() {
            return write!(f, "all records, and with them all files and names,");
        }
        write!(f, "the records from ")?;
        describe(f, &self.low)?;
        match &self.high {
            Some(high) => {
                write!(f, " to ")?;
                describe(f, high)
            }
            None => write!(f, " on"),
        }
    }
}

/// Says what a fence stands for; it may be the beginning of a key.
fn describe(f: &mut std::fmt::Formatter<'_>, fence: &[u8]) -> std::fmt::Result {
    for len in [10, 15, 17, 9, 1] {
        let mut key = fence.to_vec();
        key.resize(len.max(1), 0);
        if fence.len() <= len
            && let Some(key) = AnyKey::parse(&key)
        {
            return match key {
                AnyKey::Inode(ino) => write!(f, "inode {}", ino.0),
                AnyKey::Entry(group, _) => write!(f, "the names of group {group}"),
                AnyKey::Xattr(ino, _) => write!(f, "the attributes of inode {}", ino.0),
                AnyKey::Extent(ino, end) => write!(f, "byte {end} of inode {}", ino.0),
                AnyKey::Shared(end) => write!(f, "the count of block {end}"),
                AnyKey::Orphan(ino) => write!(f, "the orphan {}", ino.0),
                AnyKey::State => write!(f, "the state"),
            };
        }
    }
    match fence {
        [] => write!(f, "the first"),
        fence => write!(f, "key {fence:02x?}"),
    }
}

/// What the walk found.
#[derive(Default)]
pub(super) struct Structure {
    /// The leaves that can be read, in key order.
    pub leaves: Row,
    /// The ranges of keys that are missing between them.
    pub gaps: Vec<Gap>,
    /// Nothing is wrong with the structure.
    pub sound: bool,
}

impl Structure {
    /// The records whose keys begin with a tag.
    pub fn records<'a>(&'a self, image: &'a Image, tag: u8) -> Result<Records<'a>> {
        Records::of_tag(image, &self.leaves, tag)
    }
}

/// Pages of a row that are read ahead.
const AHEAD: usize = 256;
/// Pages of a row after which it is told again how far the walk is.
const TELL_PAGES: usize = 1024;

struct Walk<'a> {
    image: &'a Image,
    claims: &'a mut Claims,
    findings: &'a mut Findings,
    page: Box<PageBytes>,
    leaves: Row,
    gaps: Vec<Gap>,
    /// Where the leaves so far end; `None`: the last one has no high key.
    covered: Option<Vec<u8>>,
    pages: u64,
}

/// Where a segment of a level begins and must end.
struct Segment<'r> {
    row: &'r Row,
    i: usize,
    /// Level.
    level: u8,
    /// Parents are missing in front of the next page of the row.
    torn: bool,
}

/// Walks all levels.
pub(super) fn walk(
    image: &Image,
    claims: &mut Claims,
    findings: &mut Findings,
    report: &mut Report,
    options: &Options<'_>,
) -> Structure {
    let before = findings.total();
    let mut walk = Walk {
        image,
        claims,
        findings,
        page: Box::new([0; PAGE_SIZE]),
        leaves: Row::default(),
        gaps: Vec::new(),
        covered: Some(Vec::new()),
        pages: 0,
    };
    let root = image.superblock.root;
    let mut row = Row::default();
    row.push(root, &[]);
    let mut level = match image.read_page(root, &mut walk.page) {
        Ok(()) => Some(Node(&walk.page).level()),
        Err(error) => {
            walk.damaged(root, error);
            None
        }
    };
    report.height = level.map_or(0, |l| l as u32 + 1);
    while let Some(number) = level {
        row = walk.level(&row, number, options);
        level = number.checked_sub(1);
    }
    if let Some(low) = walk.covered.take() {
        walk.gaps.push(Gap { low, high: None });
    }
    let pages = walk.pages;
    let (leaves, gaps) = match walk.leaves.is_ascending() {
        true => (walk.leaves, walk.gaps),
        false => sorted(image, &walk.leaves),
    };
    report.tree_bytes = pages * PAGE_SIZE as u64;
    Structure { leaves, gaps, sound: findings.total() == before }
}

/// The leaves in key order, and the gaps between them, where the walk did not come to them in that order: an inner page that is older
/// than what lies beside it (a lost write) leads to leaves behind its own range. Of two that begin with the same key the newer
/// one counts. Rare, so they are read again.
fn sorted(image: &Image, row: &Row) -> (Row, Vec<Gap>) {
    let mut page: Box<PageBytes> = Box::new([0; PAGE_SIZE]);
    let mut order: Vec<(usize, Lsn, Option<Vec<u8>>)> = Vec::new();
    for i in 0..row.len() {
        if image.read_page(row.id(i), &mut page).is_ok() {
            order.push((i, page_lsn(&page), Node(&page).high().map(<[u8]>::to_vec)));
        }
    }
    order.sort_by(|(a, a_lsn, _), (b, b_lsn, _)| row.low(*a).cmp(row.low(*b)).then(b_lsn.cmp(a_lsn)));
    order.dedup_by(|(b, ..), (a, ..)| row.low(*a) == row.low(*b));
    let (mut leaves, mut gaps) = (Row { bounded: true, ..Row::default() }, Vec::new());
    let mut covered = Some(Vec::new());
    for (i, _, high) in order {
        let low = row.low(i);
        if let Some(covered) = covered.filter(|covered| covered.as_slice() < low) {
            gaps.push(Gap { low: covered, high: Some(low.to_vec()) });
        }
        leaves.push(row.id(i), low);
        covered = high;
    }
    gaps.extend(covered.map(|low| Gap { low, high: None }));
    (leaves, gaps)
}

impl Walk<'_> {
    fn add(&mut self, kind: ProblemKind, id: PageId, what: impl std::fmt::Display) {
        self.findings.add(kind, Place::page(id), what, vec![Fix::Tree]);
    }

    fn damaged(&mut self, id: PageId, error: PageError) {
        let (kind, what) = error.problem(ProblemKind::Page, "");
        self.add(kind, id, what);
    }

    fn level(&mut self, row: &Row, level: u8, options: &Options<'_>) -> Row {
        let mut below = Row::default();
        let mut gaps = row.gaps.iter().peekable();
        if gaps.next_if(|g| **g == 0).is_some() {
            below.gap();
        }
        (0..AHEAD.min(row.len())).for_each(|i| self.will_read(row.id(i)));
        for i in 0..row.len() {
            if i + AHEAD < row.len() {
                self.will_read(row.id(i + AHEAD));
            }
            let torn = gaps.next_if(|g| **g == i + 1).is_some();
            if !self.segment(Segment { row, i, level, torn }, &mut below) {
                below.gap();
            }
            if i.is_multiple_of(TELL_PAGES) {
                options.tell(Stage::Tree, self.pages, 0);
            }
        }
        below
    }

    /// Has a page read into the host's page cache meanwhile: a disk serves several reads at once.
    fn will_read(&self, id: PageId) {
        if self.image.superblock.is_data_page(id) {
            self.image.storage().will_read(id.offset(), PAGE_SIZE as u64);
        }
    }

    /// Walks from a page that has a separator to the next one that has. `false`: something of it is missing.
    fn segment(&mut self, s: Segment<'_>, below: &mut Row) -> bool {
        let (row, i) = (s.row, s.i);
        let until = (i + 1 < row.len()).then(|| row.low(i + 1));
        let (mut id, mut low, mut posted) = (row.id(i), row.low(i).to_vec(), true);
        loop {
            if !self.image.superblock.is_data_page(id) || !self.image.is_valid_run(id.run()) {
                self.add(ProblemKind::PageLink, id, "a link leads to a page that the image does not have");
                return false;
            }
            if self.claims.claim(id.run()) > 0 {
                self.add(ProblemKind::PageTwice, id, "page is reached from two places");
                return false;
            }
            let mut page = std::mem::replace(&mut self.page, Box::new([0; PAGE_SIZE]));
            let read = self.image.read_page(id, &mut page);
            let next = match read {
                Ok(()) => self.page(&s, id, &low, until, posted, Node(&page), below),
                Err(error) => {
                    self.damaged(id, error);
                    Next::Missing
                }
            };
            self.page = page;
            match next {
                Next::Right(right, high) => (id, low, posted) = (right, high, false),
                Next::End => return true,
                Next::Missing => return false,
            }
        }
    }

    /// Looks at one page of a segment.
    #[expect(clippy::too_many_arguments, reason = "what is known of the page before it is looked at")]
    fn page(
        &mut self,
        s: &Segment<'_>,
        id: PageId,
        low: &[u8],
        until: Option<&[u8]>,
        posted: bool,
        node: Node<'_>,
        below: &mut Row,
    ) -> Next {
        if node.level() != s.level {
            let what = format!("its level is {}, but its place is at level {}", node.level(), s.level);
            self.add(ProblemKind::PageLevel, id, what);
            return Next::Missing;
        }
        if node.is_dead() {
            self.add(ProblemKind::PageDead, id, "a page that was merged away is in the tree");
            return Next::Missing;
        }
        if node.low() != low {
            let what = if posted {
                "its low fence is not the separator in its parent"
            } else {
                "its low fence is not its left sibling's high key"
            };
            self.add(ProblemKind::PageFence, id, what);
            if until.is_some_and(|until| node.low() >= until) || node.high().is_some_and(|high| high <= low) {
                return Next::Missing;
            }
        }
        // Children's keys are kept, each with the prefix, which takes hardly any room in the page.
        if node.level() > 0 && node.prefix().len() > KEY_CAPACITY {
            self.add(ProblemKind::PageFence, id, "what its keys begin with is longer than any key");
            return Next::Missing;
        }
        self.take(id, low.max(node.low()), node, below);
        let Some(high) = node.high() else {
            if until.is_some() {
                self.add(ProblemKind::PageFence, id, "it has no high key, but is not the last of its level");
            } else if node.is_incomplete() {
                self.add(
                    ProblemKind::PageSplit,
                    id,
                    "its split is marked incomplete, but it has no right sibling",
                );
            }
            return Next::End;
        };
        match until {
            Some(until) if high > until => {
                self.add(ProblemKind::PageFence, id, "its high key is greater than the next separator");
                Next::End
            }
            Some(until) if high == until => {
                if node.right() != s.row.id(s.i + 1) {
                    let what = "its right link does not lead to the page that the next separator names";
                    self.add(ProblemKind::PageLink, id, what);
                } else if node.is_incomplete() && !s.torn {
                    let what = "its split is marked incomplete, but the separator is there";
                    self.add(ProblemKind::PageSplit, id, what);
                }
                Next::End
            }
            _ => {
                if !node.is_incomplete() && !s.torn {
                    self.add(ProblemKind::PageSplit, id, "its right sibling has no separator in a parent");
                }
                Next::Right(node.right(), high.to_vec())
            }
        }
    }

    /// Notes what a page holds: children, or a leaf. `low` is what its neighbours say of its low fence.
    fn take(&mut self, id: PageId, low: &[u8], node: Node<'_>, below: &mut Row) {
        self.pages += 1;
        if node.level() > 0 {
            for i in 0..node.count() {
                below.push(node.child(i), &node.key(i));
            }
            return;
        }
        match &self.covered {
            Some(covered) if covered.as_slice() < low => {
                self.gaps.push(Gap { low: covered.clone(), high: Some(low.to_vec()) });
            }
            _ => {}
        }
        self.leaves.push(id, low);
        self.covered = node.high().map(<[u8]>::to_vec);
    }
}

/// How a segment goes on.
enum Next {
    Right(PageId, Vec<u8>),
    End,
    Missing,
}
