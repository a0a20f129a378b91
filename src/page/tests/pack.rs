//! Packing: a record that is packed into the wrong page is not found again.

use super::super::format::*;
use super::super::ids::PageId;
use super::super::node::Node;
use super::super::pack::{PackedPage, Packer, PageSink};
use super::support::*;

#[derive(Default)]
struct Pages {
    places: u64,
    put: Vec<(PageId, Page)>,
}

impl PageSink for Pages {
    type Error = &'static str;

    fn place(&mut self) -> Result<PageId, &'static str> {
        self.places += 1;
        Ok(PageId(self.places))
    }

    fn put(&mut self, packed: &PackedPage) -> Result<(), &'static str> {
        let mut page = raw_page();
        packed.build(&mut page, IMAGE)?;
        self.put.push((packed.id, page));
        Ok(())
    }
}

/// Walks a page and those below it, of which nothing may be missing; returns how many pages that were.
fn walk(pages: &Pages, id: PageId, high: Option<&[u8]>, records: &mut Vec<(Vec<u8>, Vec<u8>)>) -> usize {
    let page = &pages.put.iter().find(|(put, _)| *put == id).expect("a page was not put").1;
    let node = Node(page);
    node.validate().unwrap();
    assert_eq!(node.high(), high);
    let mut below = 0;
    for i in 0..node.count() {
        if node.level() == 0 {
            records.push((node.key(i), node.value(i).to_vec()));
            continue;
        }
        let next = (i + 1 < node.count()).then(|| node.key(i + 1));
        below += walk(pages, node.child(i), next.as_deref().or(high), records);
    }
    1 + below
}

#[test]
fn each_packed_record_is_there_once_in_order() {
    for (count, longest) in [(0, 1), (1, 4), (5000, 40), (3000, 1000)] {
        seeds(3, |rng| {
            let mut bytes = |most| {
                let len = rng.below(most);
                rng.bytes(len)
            };
            let mut keys: Vec<Vec<u8>> = (0..count).map(|_| bytes(longest)).collect();
            keys.sort_unstable();
            keys.dedup();
            let mut records: Vec<_> = Vec::new();
            let (mut pages, mut packer) = (Pages::default(), Packer::default());
            for key in keys {
                let value = bytes(RECORD_MAX / 4);
                packer.add(&mut pages, &key, &value).unwrap();
                records.push((key, value));
            }
            let root = packer.finish(&mut pages).unwrap();
            pages.put(&root).unwrap();
            let mut found = Vec::new();
            assert_eq!(walk(&pages, root.id, None, &mut found), pages.put.len());
            assert!(found == records);
            assert_eq!(pages.places, pages.put.len() as u64);
        });
    }
}
