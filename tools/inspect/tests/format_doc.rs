//! `docs/format.md` shows a real image: its dump is the one that the program prints.

use btfs::storage::MemStorage;
use btfs_inspect::image::Image;
use btfs_inspect::{Command, run, sample};

const DOC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/format.md");
const BEGIN: &str = "<!-- dump of the sample image: begin -->\n```text\n";
const END: &str = "```\n<!-- dump of the sample image: end -->";

fn dump() -> String {
    let image = Image::new(Box::new(MemStorage::from_image(sample::make().unwrap()))).unwrap();
    let report = run(&image, Command::Dump);
    assert_eq!(report.problems, Vec::<String>::new());
    format!("{}\n", report.text.trim_end())
}

#[test]
fn the_format_document_shows_the_image_as_it_is() {
    let doc = std::fs::read_to_string(DOC).unwrap();
    let (before, rest) = doc.split_once(BEGIN).expect("docs/format.md has a place for the dump");
    let (shown, after) = rest.split_once(END).expect("the dump in docs/format.md ends");
    let dump = dump();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(DOC, [before, BEGIN, &dump, END, after].concat()).unwrap();
        return;
    }
    assert!(
        shown == dump,
        "docs/format.md does not show what `tools/inspect-image FILE sample` prints. If the format was meant to \
         change, say so in the text of the document, and renew the dump with\n    \
         UPDATE_DOCS=1 cargo test --package btfs-inspect --test format_doc\nnow it is:\n{dump}"
    );
}

#[test]
fn the_sample_image_is_always_the_same() {
    assert_eq!(sample::make().unwrap().to_vec().unwrap(), sample::make().unwrap().to_vec().unwrap());
}
