//! Records behind the filesystem's back: whole pages whose records make no sense.

use btfs::fs::name_hash;
use btfs::page::node::{Node, NodeMut};
use btfs::storage::Storage;

use crate::base::Base;
use crate::input::{Input, get, put};
use crate::mutate::Work;

/// Offset and width of the fields of each kind of record, by the first byte of its key and, for `10`, by what follows the group.
const INODE: [(usize, usize); 21] = [
    (0, 1),
    (1, 1),
    (2, 2),
    (4, 4),
    (8, 4),
    (12, 4),
    (16, 8),
    (24, 8),
    (32, 8),
    (40, 4),
    (44, 8),
    (52, 4),
    (80, 4),
    (84, 4),
    (88, 8),
    (96, 8),
    (104, 8),
    (112, 4),
    (116, 8),
    (124, 8),
    (128, 4),
];
const ENTRY: [(usize, usize); 4] = [(0, 8), (8, 1), (9, 1), (10, 8)];
const XATTR: [(usize, usize); 6] = [(0, 1), (1, 1), (2, 8), (12, 4), (16, 8), (24, 4)];
const EXTENT: [(usize, usize); 8] = [(0, 1), (1, 1), (2, 2), (4, 4), (8, 8), (24, 4), (28, 4), (16, 8)];
const SHARED: [(usize, usize); 2] = [(0, 4), (4, 4)];
const ORPHAN: [(usize, usize); 2] = [(0, 1), (1, 8)];
const STATE: [(usize, usize); 1] = [(0, 8)];

fn fields(key: &[u8]) -> &'static [(usize, usize)] {
    match (key.first(), key.get(6)) {
        (Some(0x10), Some(1)) => &INODE,
        (Some(0x10), _) => &ENTRY,
        (Some(0x20), _) => &XATTR,
        (Some(0x30), _) => &EXTENT,
        (Some(0x40), _) => &SHARED,
        (Some(0x50), _) => &ORPHAN,
        _ => &STATE,
    }
}

fn some_key(base: &Base, input: &mut Input<'_>) -> Vec<u8> {
    let n = input.below(base.keys.len());
    base.keys.get(n).cloned().unwrap_or_default()
}

/// A key: one that there is, one near it, or any of some kind.
pub fn key(work: &mut Work<'_>, input: &mut Input<'_>) -> Vec<u8> {
    let base = work.base;
    match input.u8() % 4 {
        0 => some_key(base, input),
        1 => {
            let mut key = some_key(base, input);
            let width = [1, 3, 5, 8][input.below(4)];
            let at = 1 + input.u8() as usize % key.len().max(1);
            let value = input.value(base, get(&key, at, width));
            put(&mut key, at, width, value);
            key
        }
        2 => {
            let kind = input.u8() % 7;
            let a = input.value(base, 0);
            let b = if kind < 4 { input.value(base, 0) } else { 0 };
            let (a8, b8) = (a.to_be_bytes(), b.to_be_bytes());
            match kind {
                0 => [&[0x10], &a8[..5], &[1], &a8[5..]].concat(),
                1 => [&[0x10], &a8[3..], &[2], &b8[..]].concat(),
                2 => [&[0x20], &a8[..], &b8[..]].concat(),
                3 => [&[0x30], &a8[..], &b8[..]].concat(),
                4 => [&[0x40], &a8[..]].concat(),
                5 => [&[0x50], &a8[..]].concat(),
                _ => vec![0x60],
            }
        }
        _ => {
            let n = input.u8() as usize % 24;
            input.bytes(n).to_vec()
        }
    }
}

/// A value: one that there is, with some fields changed, or any.
pub fn value(work: &mut Work<'_>, input: &mut Input<'_>) -> Vec<u8> {
    if input.u8().is_multiple_of(8) {
        let n = input.u8() as usize;
        return input.bytes(n).to_vec();
    }
    let key = some_key(work.base, input);
    let mut value = find(work, &key).unwrap_or_default();
    for _ in 0..input.u8() % 4 {
        change_field(work.base, &key, &mut value, input);
    }
    value
}

fn change_field(base: &Base, key: &[u8], value: &mut [u8], input: &mut Input<'_>) -> (usize, u64) {
    let fields = fields(key);
    let (at, width) = fields[input.below(fields.len())];
    let new = input.value(base, get(value, at, width));
    put(value, at, width, new);
    (at, new)
}

/// The value under a key, as the damaged image has it.
fn find(work: &mut Work<'_>, key: &[u8]) -> Option<Vec<u8>> {
    let page = work.page(work.base.leaf_of(key)?.offset());
    let node = Node(page);
    node.validate().ok()?;
    node.get(key).map(<[u8]>::to_vec)
}

/// Puts a record or deletes it, in the leaf that it belongs to.
fn store(work: &mut Work<'_>, key: &[u8], value: Option<&[u8]>) -> bool {
    let Some(leaf) = work.base.leaf_of(key) else { return false };
    let page = work.page(leaf.offset());
    let fits = value.is_none_or(|v| key.len() <= 1024 && key.len() + v.len() <= 4096);
    if !fits || Node(page).validate().is_err() || Node(page).level() != 0 || Node(page).is_dead() {
        return false;
    }
    // Earlier changes may have given the page other fences.
    if Node(page).low() > key || Node(page).high().is_some_and(|high| high <= key) {
        return false;
    }
    match value {
        Some(value) => NodeMut(page).put(key, value),
        None => NodeMut(page).delete(key),
    }
}

/// One change of the records.
pub fn change(work: &mut Work<'_>, op: u8, input: &mut Input<'_>) {
    match op {
        // Fields of a record.
        0..=3 => {
            let key = some_key(work.base, input);
            let Some(mut value) = find(work, &key) else { return };
            let (at, new) = change_field(work.base, &key, &mut value, input);
            let done = store(work, &key, Some(&value));
            work.say(|| format!("record {key:02x?}, field at {at} -> {new:#x}: {done}"));
        }
        // A record that was not there, or another value.
        4 => {
            let (key, value) = (key(work, input), value(work, input));
            let done = store(work, &key, Some(&value));
            work.say(|| format!("record {key:02x?} -> {:02x?}: {done}", &value[..value.len().min(140)]));
        }
        5 => {
            let key = some_key(work.base, input);
            let done = store(work, &key, None);
            work.say(|| format!("record {key:02x?} is deleted: {done}"));
        }
        // The value under another key.
        6 => {
            let (from, to) = (some_key(work.base, input), key(work, input));
            let Some(value) = find(work, &from) else { return };
            let moved = input.u8().is_multiple_of(2);
            let done = store(work, &to, Some(&value));
            if moved {
                store(work, &from, None);
            }
            work.say(|| format!("record {from:02x?} as {to:02x?}, moved {moved}: {done}"));
        }
        7 => entry(work, input),
        _ => extent(work, input),
    }
}

/// An entry at its name's place.
fn entry(work: &mut Work<'_>, input: &mut Input<'_>) {
    let base = work.base;
    let group = input.value(base, 1);
    let (ino, kind) = (input.value(base, 1), input.u8() % 9);
    let names: [&[u8]; 8] =
        [b"dir", b"small", b"lost+found", b"new", b"#1", b"second name", &[b'n'; 255], b"#group-1"];
    let n = input.u8() as usize;
    let name = if n < 128 { names[n % 8] } else { input.bytes(n % 32) };
    let cookie = name_hash(&base.superblock.hash_seed, name) << 8 | u64::from(input.u8() % 4);
    let key = [&[0x10], &group.to_be_bytes()[3..], &[2], &cookie.to_be_bytes()].concat();
    let value = [&ino.to_be_bytes(), &[kind][..], name].concat();
    let done = store(work, &key, Some(&value));
    work.say(|| {
        format!(
            "entry {:?} of group {group} -> {ino:#x} of kind {kind}: {done}",
            name.escape_ascii().to_string()
        )
    });
}

/// An extent with the checksums of what lies in its blocks.
fn extent(work: &mut Work<'_>, input: &mut Input<'_>) {
    let base = work.base;
    let (ino, begin) = (input.value(base, 1), input.u8() as u64 * 4096);
    let (start, blocks) = (input.value(base, 0), 1 + input.u8() as u64 % 20);
    let (flags, less) = (input.u8() % 4, input.u16() as u64 % 4096);
    let len = blocks * 4096 - less;
    let mut value = vec![1, flags, 0, 0];
    value.extend_from_slice(&(len as u32).to_be_bytes());
    value.extend_from_slice(&start.to_be_bytes());
    value.extend_from_slice(&[0; 8]);
    for block in start..start.saturating_add(if flags == 1 { 0 } else { blocks }) {
        let mut bytes = [0; 4096];
        let at = block.saturating_mul(4096);
        if at < base.superblock.size {
            let _ = base.storage().read_at(at, &mut bytes);
        }
        value.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    }
    let key = [&[0x30], &ino.to_be_bytes()[..], &(begin + len).to_be_bytes()].concat();
    let done = store(work, &key, Some(&value));
    work.say(|| {
        format!("extent of {ino:#x}, {begin}+{len} in block {start}+{blocks}, flags {flags}: {done}")
    });
}
