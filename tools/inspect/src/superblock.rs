//! The two superblocks.

use btfs::page::superblock::Superblock;

use crate::Report;
use crate::fields;
use crate::hex::Annotated;
use crate::image::Image;

/// Bytes of a superblock that mean something.
const SECTOR: usize = 512;

fn name(offset: u64) -> &'static str {
    if offset == 0 { "superblock A" } else { "superblock B" }
}

/// Both, field by field.
pub fn print(image: &Image, report: &mut Report) {
    for copy in &image.copies {
        report.line(format!("{}, at {}", name(copy.offset), copy.offset));
        match &copy.bytes {
            Ok(bytes) => {
                let mut to = Annotated::new(report, copy.offset, &bytes[..SECTOR]);
                fields::print(&mut to, &bytes[..SECTOR], &fields::SUPERBLOCK);
                if bytes[SECTOR..].iter().any(|b| *b != 0) {
                    report.line("  bytes behind the first sector are not zero; nobody reads them");
                }
            }
            Err(error) => report.line(format!("  cannot be read: {error}")),
        }
        match &copy.decoded {
            Ok(superblock) if Some(superblock) == image.superblock.as_ref() => report.line("  valid; counts"),
            Ok(_) => report.line("  valid; the other one is newer"),
            Err(error) => report.problem(format!("{} is not valid: {}", name(copy.offset), error)),
        }
        report.line("");
    }
}

/// What the image is, in a few lines.
pub fn summarize(image: &Image, report: &mut Report) {
    for copy in &image.copies {
        if let Err(error) = &copy.decoded {
            report.problem(format!("{}: {}", name(copy.offset), error));
        }
    }
    let Some(s) = &image.superblock else {
        report.problem("no superblock can be used");
        return;
    };
    if s.size > image.len {
        report.problem(format!("the file was cut: it has {} bytes, and the image {}", image.len, s.size));
    }
    let uuid: String = s.uuid.iter().map(|b| format!("{b:02x}")).collect();
    report.line(format!("image         {} bytes, label {:?}, UUID {uuid}", s.size, s.label));
    report.line(format!("state         {}", state(s)));
    let groups = s.group_count();
    report.line(format!(
        "groups        {} of {groups} have a bitmap page, root is page {}",
        s.groups, s.root.0
    ));
}

fn state(s: &Superblock) -> String {
    let how = if s.clean { "closed in order" } else { "open, or not closed in order" };
    format!("{how}; checkpoint {}, durable floor {}, incarnation {}", s.checkpoint, s.floor, s.incarnation)
}
