//! The tree's pages as they lie in the image, level by level. What only the log holds is not there yet.

use std::collections::HashSet;

use btfs::PageId;
use btfs::page::PageBytes;
use btfs::page::format::{TYPE_TREE, page_lsn, page_type};
use btfs::page::node::Node;
use btfs::page::superblock::Superblock;

use crate::Report;
use crate::hex::text;
use crate::image::Image;

/// Pages that are visited, at the most.
const PAGES_MAX: usize = 1_000_000;

/// What a walk found.
#[derive(Default)]
struct Walk {
    seen: HashSet<PageId>,
    levels: Vec<usize>,
    records: u64,
    problems: Vec<String>,
    lines: Vec<String>,
}

fn load(image: &Image, s: &Superblock, id: PageId) -> Result<Box<PageBytes>, String> {
    if !s.is_data_page(id) {
        return Err("the image has no such page".into());
    }
    let page = image.page(id)?;
    match crate::page::check(s, id, &page) {
        Some(reason) => Err(reason.into()),
        None if page_type(&page) != TYPE_TREE => Err("not a tree page".into()),
        None => Ok(page),
    }
}

fn describe(id: PageId, node: Node<'_>, page: &PageBytes) -> String {
    let fill = node.used() * 100 / node.capacity().max(1);
    let high = node.high().map_or("none".into(), text);
    let mut line = format!(
        "  page {:<8} {:4} records, {fill:3} % full, LSN {}, {} to {high}",
        id.0,
        node.count(),
        page_lsn(page).0,
        text(node.low()),
    );
    if node.is_incomplete() {
        line.push_str(", split not complete");
    }
    if node.is_dead() {
        line.push_str(", dead");
    }
    line
}

impl Walk {
    /// One level from its leftmost page on by right links; returns the leftmost page of the next.
    fn level(
        &mut self,
        image: &Image,
        s: &Superblock,
        first: PageId,
        expected: Option<u8>,
    ) -> Option<(PageId, u8)> {
        let mut below = None;
        let (mut id, mut low, mut pages) = (first, Vec::new(), 0);
        let mut number = expected;
        while self.seen.len() < PAGES_MAX {
            if !self.seen.insert(id) {
                self.problems.push(format!("{id} is reached twice"));
                break;
            }
            let page = match load(image, s, id) {
                Ok(page) => page,
                Err(error) => {
                    self.problems.push(format!("{id}: {error}"));
                    break;
                }
            };
            let node = Node(&page);
            let level = *number.get_or_insert(node.level());
            if pages == 0 {
                self.lines.push(format!("level {level}"));
            }
            self.lines.push(describe(id, node, &page));
            pages += 1;
            if node.level() != level {
                self.problems.push(format!("{id} is of level {}, expected {level}", node.level()));
                break;
            }
            if node.low() != low {
                self.problems.push(format!("{id}: its low fence is not its left sibling's high key"));
            }
            if level == 0 {
                self.records += node.count() as u64;
            } else if below.is_none() && node.count() > 0 {
                below = Some((node.child(0), level - 1));
            }
            let Some(high) = node.high() else { break };
            low = high.to_vec();
            id = node.right();
        }
        self.levels.push(pages);
        below
    }
}

fn walk(image: &Image, s: &Superblock) -> Walk {
    let mut walk = Walk::default();
    let mut next = Some((s.root, None));
    while let Some((id, level)) = next {
        next = walk.level(image, s, id, level).map(|(id, level)| (id, Some(level)));
    }
    if walk.seen.len() >= PAGES_MAX {
        walk.problems.push(format!("only the first {PAGES_MAX} pages were visited"));
    }
    walk
}

/// All pages.
pub fn print(image: &Image, report: &mut Report) {
    let Some(s) = &image.superblock else {
        return report.problem("without a superblock nobody knows where the root lies");
    };
    let walk = walk(image, s);
    walk.lines.iter().for_each(|line| report.line(line));
    conclude(&walk, s, report);
}

/// One line.
pub fn summarize(image: &Image, report: &mut Report) {
    let Some(s) = &image.superblock else { return };
    conclude(&walk(image, s), s, report);
}

fn conclude(walk: &Walk, s: &Superblock, report: &mut Report) {
    walk.problems.iter().for_each(|problem| report.problem(problem));
    let levels: Vec<String> = walk.levels.iter().map(usize::to_string).collect();
    let lag = if s.clean { "" } else { " (without what is only in the log)" };
    report.line(format!(
        "tree          {} records; pages by level from the root: {}{lag}",
        walk.records,
        levels.join(", ")
    ));
}
