//! Prints the structures of an image, with what is wrong with them.
//!
//! For images that the engine refuses as much as for healthy ones: nothing here trusts a length, an offset or a link, and
//! nothing writes. It reads through `btfs::storage`, `btfs::page` and `btfs::wal` only, and takes the fields of a
//! structure apart by tables of its own ([`fields`]), so that it is also a second reading of `docs/format.md`.
//! Only [`sample`], which makes an image, uses the engine.

pub mod doublewrite;
pub mod fields;
pub mod hex;
pub mod image;
pub mod log;
pub mod page;
pub mod sample;
pub mod superblock;
pub mod tree;

use image::Image;

/// The example of docs/engine.md, as a test: it is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/engine.md")]
pub struct Readme;

/// What to print of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// One line for each part, and the verdict on it.
    Summary,
    /// Both superblocks.
    Superblock,
    /// The records from the checkpoint on.
    Log,
    /// Both halves of the doublewrite area.
    Doublewrite,
    /// One page of the data area, byte by byte.
    Page(u64),
    /// All pages of the tree, level by level.
    Tree,
    /// One group's bitmap.
    Bitmap(u32),
    /// All structures byte by byte: for small images.
    Dump,
}

/// What a command prints, and whether everything it looked at was in order.
#[derive(Debug, Default)]
pub struct Report {
    /// The text.
    pub text: String,
    /// What is wrong, one line each; all of it is in the text, too.
    pub problems: Vec<String>,
}

impl Report {
    /// Adds a line.
    pub fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(line.as_ref().trim_end());
        self.text.push('\n');
    }

    /// Adds a line that says what is wrong.
    pub fn problem(&mut self, problem: impl Into<String>) {
        let problem = problem.into();
        self.line(format!("  !! {problem}"));
        self.problems.push(problem);
    }
}

/// Runs a command on an image.
pub fn run(image: &Image, command: Command) -> Report {
    let mut report = Report::default();
    match command {
        Command::Summary => summary(image, &mut report),
        Command::Superblock => superblock::print(image, &mut report),
        Command::Log => log::print(image, &mut report),
        Command::Doublewrite => doublewrite::print(image, &mut report),
        Command::Page(number) => page::print(image, number, &mut report),
        Command::Tree => tree::print(image, &mut report),
        Command::Bitmap(group) => page::print_bitmap(image, group, &mut report),
        Command::Dump => dump(image, &mut report),
    }
    report
}

fn summary(image: &Image, report: &mut Report) {
    superblock::summarize(image, report);
    log::summarize(image, report);
    doublewrite::summarize(image, report);
    tree::summarize(image, report);
}

/// Everything that a small image holds, in the order of the file.
fn dump(image: &Image, report: &mut Report) {
    superblock::print(image, report);
    log::dump(image, report);
    doublewrite::print(image, report);
    let Some(superblock) = &image.superblock else { return };
    page::print(image, superblock.bitmap_page(0).0, report);
    page::print(image, superblock.root.0, report);
}
