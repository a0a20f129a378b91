//! Tree pages: a slotted page with two fences, prefix truncation and search heads.
//!
//! ```text
//! | header 64 | low fence | high key | pad to 8 | slots, 8 bytes each, by key → … free … ← heap of records |
//! ```
//!
//! A record is the value's length (2 bytes), the key without the page's prefix, and the value. A slot holds the first
//! four bytes of that suffix, zero-padded, so that most comparisons of a search touch no record.
//!
//! Invariants of a page that passed [`Node::validate`]; all functions here rely on them:
//!
//! - **N1** Fences, slots and records lie inside the page, no two records share bytes, and live records and garbage
//!   add up to the heap.
//! - **N2** Keys ascend strictly, and low ≤ key < high.
//! - **N3** The prefix is the longest common prefix of low fence and high key (empty without a high key), so
//!   every key of the page begins with it. It changes only when a fence does.
//! - **N4** An inner page has at least one record, its first key equals the low fence, and each value is a page
//!   number of 8 bytes that is not 0.
//! - **N5** An incomplete split has a right sibling; a page without a high key has none.

use std::cmp::Ordering;

use super::format::*;
use super::ids::PageId;

/// A tree page, read only.
#[derive(Clone, Copy)]
pub struct Node<'a>(pub &'a PageBytes);

/// Where a key lies with respect to a page's fences.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Covers {
    /// Left of the low fence.
    Left,
    /// Between the fences.
    Inside,
    /// At or right of the high key.
    Right,
}

/// The length of the longest common prefix.
pub fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// The shortest key that is greater than `left` and not greater than `right` (suffix truncation; `left < right`).
pub fn separator<'a>(left: &[u8], right: &'a [u8]) -> &'a [u8] {
    debug_assert!(left < right);
    &right[..common_prefix(left, right) + 1]
}

/// How many slots a guessed position is usually off at the most.
const GUESS_RADIUS: usize = 16;

fn head_of(suffix: &[u8]) -> u32 {
    if let Some(first) = suffix.first_chunk::<4>() {
        return u32::from_be_bytes(*first);
    }
    let mut b = [0; 4];
    b[..suffix.len()].copy_from_slice(suffix);
    u32::from_be_bytes(b)
}

/// Where the slots of a page begin that has fences of these lengths together.
fn slots_base(fences: usize) -> usize {
    (HEADER_SIZE + fences).next_multiple_of(SLOT_SIZE)
}

impl<'a> Node<'a> {
    /// Level: 0 for a leaf.
    pub fn level(self) -> u8 {
        self.0[OFF_LEVEL]
    }
    /// Flags: [`FLAG_INCOMPLETE`], [`FLAG_DEAD`].
    pub fn flags(self) -> u16 {
        page_flags(self.0)
    }
    /// Whether the page was merged away.
    pub fn is_dead(self) -> bool {
        self.flags() & FLAG_DEAD != 0
    }
    /// Whether the right sibling's separator is missing in the parent.
    pub fn is_incomplete(self) -> bool {
        self.flags() & FLAG_INCOMPLETE != 0
    }
    /// The page's own number.
    pub fn id(self) -> PageId {
        page_number(self.0)
    }
    /// The right sibling, or [`PageId::NONE`].
    pub fn right(self) -> PageId {
        PageId(get_u64(self.0, OFF_RIGHT))
    }
    /// The number of records.
    pub fn count(self) -> usize {
        get_u16(self.0, OFF_SLOTS) as usize
    }
    fn heap(self) -> usize {
        get_u16(self.0, OFF_HEAP) as usize
    }
    fn garbage(self) -> usize {
        get_u16(self.0, OFF_GARBAGE) as usize
    }
    /// How many inserts in a row went behind the last record.
    pub fn appends(self) -> u16 {
        get_u16(self.0, OFF_APPENDS)
    }
    fn prefix_len(self) -> usize {
        get_u16(self.0, OFF_PREFIX) as usize
    }
    fn low_len(self) -> usize {
        get_u16(self.0, OFF_LOW) as usize
    }
    fn high_len(self) -> usize {
        match get_u16(self.0, OFF_HIGH) {
            NO_HIGH_KEY => 0,
            n => n as usize,
        }
    }
    /// The low fence: no key of the page is smaller.
    pub fn low(self) -> &'a [u8] {
        &self.0[HEADER_SIZE..HEADER_SIZE + self.low_len()]
    }
    /// The high key: every key of the page is smaller. `None`: the rightmost page of its level.
    pub fn high(self) -> Option<&'a [u8]> {
        if get_u16(self.0, OFF_HIGH) == NO_HIGH_KEY {
            return None;
        }
        let at = HEADER_SIZE + self.low_len();
        Some(&self.0[at..at + self.high_len()])
    }
    /// What all keys of the page begin with.
    pub fn prefix(self) -> &'a [u8] {
        &self.0[HEADER_SIZE..HEADER_SIZE + self.prefix_len()]
    }
    fn slots(self) -> usize {
        slots_base(self.low_len() + self.high_len())
    }
    /// Free bytes, garbage included: what an insert can use after compaction.
    pub fn free(self) -> usize {
        self.contiguous() + self.garbage()
    }
    fn contiguous(self) -> usize {
        self.heap() - self.slots() - self.count() * SLOT_SIZE
    }
    /// Bytes taken by slots and live records.
    pub fn used(self) -> usize {
        self.capacity() - self.free()
    }
    /// Bytes that slots and records of this page can take.
    pub fn capacity(self) -> usize {
        PAGE_SIZE - self.slots()
    }

    #[inline]
    fn slot_at(self, at: usize) -> (u32, usize, usize) {
        let v = get_u64(self.0, at);
        ((v >> 32) as u32, (v >> 16) as u16 as usize, v as u16 as usize)
    }
    #[inline]
    fn slot(self, i: usize) -> (u32, usize, usize) {
        debug_assert!(i < self.count());
        self.slot_at(self.slots() + i * SLOT_SIZE)
    }
    /// The key of record `i` without the page's prefix.
    pub fn suffix(self, i: usize) -> &'a [u8] {
        let (_, at, len) = self.slot(i);
        &self.0[at + RECORD_HEADER..at + RECORD_HEADER + len]
    }
    /// The value of record `i`.
    pub fn value(self, i: usize) -> &'a [u8] {
        let (_, at, len) = self.slot(i);
        let value = at + RECORD_HEADER + len;
        &self.0[value..value + get_u16(self.0, at) as usize]
    }
    /// Writes the whole key of record `i` into `key`.
    pub fn key_into(self, i: usize, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(self.prefix());
        key.extend_from_slice(self.suffix(i));
    }
    /// The whole key of record `i`.
    pub fn key(self, i: usize) -> Vec<u8> {
        let mut key = Vec::new();
        self.key_into(i, &mut key);
        key
    }
    /// Bytes that record `i` takes, its slot included.
    pub fn record_size(self, i: usize) -> usize {
        let (_, at, len) = self.slot(i);
        SLOT_SIZE + RECORD_HEADER + len + get_u16(self.0, at) as usize
    }
    /// Bytes that a record would take in this page, its slot included.
    pub fn size_of(self, key_len: usize, value_len: usize) -> usize {
        SLOT_SIZE + RECORD_HEADER + key_len.saturating_sub(self.prefix_len()) + value_len
    }

    /// Where the key lies with respect to the fences.
    #[inline]
    pub fn covers(self, key: &[u8]) -> Covers {
        if key < self.low() {
            return Covers::Left;
        }
        match self.high() {
            Some(high) if key >= high => Covers::Right,
            _ => Covers::Inside,
        }
    }

    /// Slots between which a key with this search head lies, or else all: a guess by where it lies between the fences. Hashes
    /// and numbers in a row are spread evenly, so a search touches two or three cache lines of slots instead of six.
    #[inline]
    fn narrow(self, head: u32, base: usize) -> (usize, usize) {
        let (mut lo, mut hi) = (0, self.count());
        let Some(high) = self.high().filter(|_| hi >= 4 * GUESS_RADIUS) else { return (lo, hi) };
        let prefix = self.prefix_len();
        let (first, last) = (head_of(&self.low()[prefix..]), head_of(&high[prefix..]));
        if head < first || head > last || first == last {
            return (lo, hi);
        }
        let guess = ((head - first) as u64 * hi as u64 / (last - first) as u64) as usize;
        let (left, right) = (guess.saturating_sub(GUESS_RADIUS), (guess + GUESS_RADIUS).min(hi - 1));
        let head_at = |i: usize| self.slot_at(base + i * SLOT_SIZE).0;
        let (left_head, right_head) = (head_at(left), head_at(right));
        if left_head < head {
            lo = left + 1;
        } else if left_head > head {
            hi = left;
        }
        if right_head > head {
            hi = hi.min(right);
        } else if right_head < head {
            lo = right + 1;
        }
        (lo, hi)
    }

    /// The record with this key (`Ok`), or where it would be inserted (`Err`). The page covers the key.
    #[inline]
    pub fn search(self, key: &[u8]) -> Result<usize, usize> {
        let suffix = key.get(self.prefix_len()..).unwrap_or(&[]);
        let head = head_of(suffix);
        let base = self.slots();
        let (mut lo, mut hi) = self.narrow(head, base);
        while lo < hi {
            let mid = (lo + hi) / 2;
            let (h, at, len) = self.slot_at(base + mid * SLOT_SIZE);
            let order = match h.cmp(&head) {
                Ordering::Equal => {
                    let at = at + RECORD_HEADER;
                    self.0[at..at + len].cmp(suffix)
                }
                unequal => unequal,
            };
            match order {
                Ordering::Less => lo = mid + 1,
                Ordering::Greater => hi = mid,
                Ordering::Equal => return Ok(mid),
            }
        }
        Err(lo)
    }

    /// The value under a key that the page covers.
    pub fn get(self, key: &[u8]) -> Option<&'a [u8]> {
        self.search(key).ok().map(|i| self.value(i))
    }

    /// The record of an inner page whose child covers the key; the page covers the key.
    #[inline]
    pub fn child_index(self, key: &[u8]) -> usize {
        match self.search(key) {
            Ok(i) => i,
            Err(i) => i.saturating_sub(1),
        }
    }
    /// The child in record `i` of an inner page.
    #[inline]
    pub fn child(self, i: usize) -> PageId {
        PageId(get_u64(self.value(i), 0))
    }

    /// How many bytes of free space a put of this record takes at the most.
    pub fn growth(self, key: &[u8], value_len: usize) -> usize {
        let new = self.size_of(key.len(), value_len);
        match self.search(key) {
            Ok(i) => new.saturating_sub(self.record_size(i)),
            Err(_) => new,
        }
    }

    /// Bytes of a page with fences inside this page's, and `count` of its records, which take `bytes` here.
    pub fn size_between(self, low: &[u8], high: Option<&[u8]>, bytes: usize, count: usize) -> usize {
        let prefix = high.map_or(0, |high| common_prefix(low, high)).saturating_sub(self.prefix_len());
        slots_base(low.len() + high.map_or(0, <[u8]>::len)) + bytes - count * prefix
    }

    /// The bytes of `self` with the records and the high key of `right` added to it, or `None` if they don't fit.
    pub fn merged_size(self, right: Node<'_>) -> Option<usize> {
        let prefix = right.high().map_or(0, |high| common_prefix(self.low(), high));
        let fences = self.low_len() + right.high_len();
        let records = |n: Node<'_>| n.used() + n.count() * (n.prefix_len() - prefix.min(n.prefix_len()));
        let size = slots_base(fences) + records(self) + records(right);
        (size <= PAGE_SIZE).then_some(size)
    }

    /// The page without its free space, as the log carries it: everything up to the last slot, then the heap.
    pub fn pack(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0[..self.slots() + self.count() * SLOT_SIZE]);
        out.extend_from_slice(&self.0[self.heap()..]);
    }

    /// Copies the page without its free space.
    pub fn copy_to(self, to: &mut PageBytes) {
        let front = self.slots() + self.count() * SLOT_SIZE;
        let heap = self.heap();
        to[..front].copy_from_slice(&self.0[..front]);
        to[heap..].copy_from_slice(&self.0[heap..]);
    }

    /// Copies the page without its free space, and of the records only those in `range`.
    pub fn copy_records_to(self, to: &mut PageBytes, range: std::ops::Range<usize>) {
        let front = self.slots() + self.count() * SLOT_SIZE;
        to[..front].copy_from_slice(&self.0[..front]);
        for i in range {
            let (_, at, _) = self.slot(i);
            let end = at + self.record_size(i) - SLOT_SIZE;
            to[at..end].copy_from_slice(&self.0[at..end]);
        }
    }

    /// Checks N1–N5. Everything that comes from the image passes here before it is used.
    pub fn validate(self) -> Result<(), &'static str> {
        if page_type(self.0) != TYPE_TREE {
            return Err("not a tree page");
        }
        if self.level() > LEVEL_MAX {
            return Err("level higher than any tree");
        }
        if self.flags() & !(FLAG_INCOMPLETE | FLAG_DEAD) != 0 {
            return Err("unknown flags");
        }
        if self.low_len() > KEY_MAX || self.high_len() > KEY_MAX {
            return Err("fence longer than a key can be");
        }
        let slots_end = self.slots() + self.count() * SLOT_SIZE;
        if self.heap() > PAGE_SIZE || slots_end > self.heap() {
            return Err("slots and heap overlap");
        }
        let prefix = self.high().map_or(0, |high| common_prefix(self.low(), high));
        if self.prefix_len() != prefix {
            return Err("prefix is not the fences' common prefix");
        }
        match self.high() {
            Some(high) if high <= self.low() => return Err("high key not above the low fence"),
            None if self.right().is_some() => return Err("right link without a high key"),
            Some(_) if !self.right().is_some() && !self.is_dead() => {
                return Err("high key without a right link");
            }
            _ => {}
        }
        if self.is_incomplete() && !self.right().is_some() {
            return Err("incomplete split without a right sibling");
        }
        self.validate_records()
    }

    fn validate_records(self) -> Result<(), &'static str> {
        let inner = self.level() > 0;
        if inner && self.count() == 0 {
            return Err("inner page without children");
        }
        let mut live = 0;
        let mut taken = Taken([0; PAGE_SIZE / 64]);
        let low = self.low().get(self.prefix_len()..).unwrap_or(&[]);
        let high = self.high().map(|h| &h[self.prefix_len()..]);
        let mut before: Option<&[u8]> = None;
        for i in 0..self.count() {
            let (head, at, len) = self.slot(i);
            if at < self.heap() || at + RECORD_HEADER + len > PAGE_SIZE {
                return Err("record outside the heap");
            }
            let value = get_u16(self.0, at) as usize;
            let size = RECORD_HEADER + len + value;
            if at + size > PAGE_SIZE {
                return Err("value runs over the page's end");
            }
            let key_len = len + self.prefix_len();
            if key_len > KEY_MAX || key_len + value > RECORD_MAX {
                return Err("record longer than the limit");
            }
            live += size;
            if !taken.take(at, size) {
                return Err("records overlap");
            }
            let suffix = self.suffix(i);
            if head != head_of(suffix) {
                return Err("search head does not match its key");
            }
            if before.is_some_and(|b| b >= suffix) {
                return Err("keys out of order");
            }
            before = Some(suffix);
            if suffix < low || high.is_some_and(|h| suffix >= h) {
                return Err("key outside the fences");
            }
            if inner && (value != 8 || !self.child(i).is_some()) {
                return Err("child is not a page number");
            }
        }
        if inner && self.suffix(0) != low {
            return Err("first key of an inner page is not its low fence");
        }
        if live + self.garbage() != PAGE_SIZE - self.heap() {
            return Err("records and garbage do not add up to the heap");
        }
        Ok(())
    }
}

/// Which bytes of a page's heap records take, one bit a byte. Records that share bytes would pass every other
/// check, until a value that is replaced in place overwrites another record's length.
struct Taken([u64; PAGE_SIZE / 64]);

impl Taken {
    /// Takes a range that lies in the page. `false`: part of it was taken already.
    fn take(&mut self, at: usize, len: usize) -> bool {
        let (mut from, end) = (at, at + len);
        let mut fresh = true;
        while from < end {
            let bits = (64 - from % 64).min(end - from);
            let mask = (u64::MAX >> (64 - bits)) << (from % 64);
            fresh &= self.0[from / 64] & mask == 0;
            self.0[from / 64] |= mask;
            from += bits;
        }
        fresh
    }
}

/// What a new page is, apart from its records.
#[derive(Clone, Copy)]
pub struct NodeSpec<'a> {
    /// Its number.
    pub id: PageId,
    /// The image's identity.
    pub image: u64,
    /// Level, 0 for a leaf.
    pub level: u8,
    /// Flags.
    pub flags: u16,
    /// Low fence.
    pub low: &'a [u8],
    /// High key.
    pub high: Option<&'a [u8]>,
    /// Right sibling.
    pub right: PageId,
}

/// Builds a page from records that come in key order.
pub struct NodeBuilder<'a> {
    page: &'a mut PageBytes,
    slots: usize,
    count: usize,
    heap: usize,
    prefix: usize,
}

impl<'a> NodeBuilder<'a> {
    /// Begins a page; what `page` held is gone.
    pub fn new(page: &'a mut PageBytes, spec: NodeSpec<'_>) -> Self {
        init_header(page, TYPE_TREE, spec.id, spec.image);
        page[OFF_LEVEL] = spec.level;
        put_u16(page, OFF_FLAGS, spec.flags);
        put_u64(page, OFF_RIGHT, spec.right.0);
        let prefix = spec.high.map_or(0, |high| common_prefix(spec.low, high));
        put_u16(page, OFF_PREFIX, prefix as u16);
        put_u16(page, OFF_LOW, spec.low.len() as u16);
        put_u16(page, OFF_HIGH, spec.high.map_or(NO_HIGH_KEY, |h| h.len() as u16));
        let high = spec.high.unwrap_or(&[]);
        let at = HEADER_SIZE + spec.low.len();
        let slots = slots_base(spec.low.len() + high.len());
        page[HEADER_SIZE..at].copy_from_slice(spec.low);
        page[at..at + high.len()].copy_from_slice(high);
        page[at + high.len()..slots].fill(0);
        NodeBuilder { page, slots, count: 0, heap: PAGE_SIZE, prefix }
    }

    /// The bytes still free.
    pub fn free(&self) -> usize {
        self.heap - self.slots - self.count * SLOT_SIZE
    }

    /// Bytes that a record would take, its slot included.
    pub fn size_of(&self, key_len: usize, value_len: usize) -> usize {
        SLOT_SIZE + RECORD_HEADER + key_len.saturating_sub(self.prefix) + value_len
    }

    /// Adds the record with this whole key. `false`: no room, nothing was added.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> bool {
        self.push_parts(&[], key.get(self.prefix..).unwrap_or(&[]), value)
    }

    /// Adds record `i` of another page, whose prefix may differ.
    pub fn push_from(&mut self, from: Node<'_>, i: usize) -> bool {
        let (prefix, suffix) = (from.prefix(), from.suffix(i));
        if self.prefix <= prefix.len() {
            self.push_parts(&prefix[self.prefix..], suffix, from.value(i))
        } else {
            self.push_parts(&[], suffix.get(self.prefix - prefix.len()..).unwrap_or(&[]), from.value(i))
        }
    }

    fn push_parts(&mut self, a: &[u8], b: &[u8], value: &[u8]) -> bool {
        let key_len = a.len() + b.len();
        let size = RECORD_HEADER + key_len + value.len();
        if size + SLOT_SIZE > self.free() {
            return false;
        }
        self.heap -= size;
        let at = self.heap;
        write_record(self.page, at, a, b, value);
        let key = at + RECORD_HEADER;
        let head = head_of(&self.page[key..key + key_len]);
        write_slot(self.page, self.slots + self.count * SLOT_SIZE, head, at, key_len);
        self.count += 1;
        true
    }

    /// Writes the counts; the page is valid from here on.
    pub fn finish(self) {
        put_u16(self.page, OFF_SLOTS, self.count as u16);
        put_u16(self.page, OFF_HEAP, self.heap as u16);
    }
}

fn write_record(page: &mut PageBytes, at: usize, a: &[u8], b: &[u8], value: &[u8]) {
    put_u16(page, at, value.len() as u16);
    let key = at + RECORD_HEADER;
    page[key..key + a.len()].copy_from_slice(a);
    let b_at = key + a.len();
    page[b_at..b_at + b.len()].copy_from_slice(b);
    let value_at = b_at + b.len();
    page[value_at..value_at + value.len()].copy_from_slice(value);
}

fn write_slot(page: &mut PageBytes, at: usize, head: u32, offset: usize, key_len: usize) {
    put_u64(page, at, (head as u64) << 32 | (offset as u64) << 16 | key_len as u64);
}

/// A tree page that is being changed. The caller holds its exclusive latch.
pub struct NodeMut<'a>(pub &'a mut PageBytes);

impl NodeMut<'_> {
    /// The page, to read.
    pub fn node(&self) -> Node<'_> {
        Node(self.0)
    }

    /// Inserts or replaces. `false`: no room even after compaction, and nothing changed.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> bool {
        let node = self.node();
        match node.search(key) {
            Ok(i) => self.replace(i, key, value),
            Err(i) => self.insert(i, key, value),
        }
    }

    fn insert(&mut self, i: usize, key: &[u8], value: &[u8]) -> bool {
        let node = self.node();
        let suffix = key.get(node.prefix_len()..).unwrap_or(&[]);
        let size = RECORD_HEADER + suffix.len() + value.len();
        if size + SLOT_SIZE > node.free() {
            return false;
        }
        if size + SLOT_SIZE > node.contiguous() {
            self.compact();
        }
        let node = self.node();
        let (count, at) = (node.count(), node.heap() - size);
        let slot = node.slots() + i * SLOT_SIZE;
        let slots_end = node.slots() + count * SLOT_SIZE;
        let appends = if i == count { node.appends().saturating_add(1) } else { 0 };
        self.0.copy_within(slot..slots_end, slot + SLOT_SIZE);
        write_record(self.0, at, suffix, &[], value);
        write_slot(self.0, slot, head_of(suffix), at, suffix.len());
        put_u16(self.0, OFF_SLOTS, count as u16 + 1);
        put_u16(self.0, OFF_HEAP, at as u16);
        put_u16(self.0, OFF_APPENDS, appends);
        true
    }

    fn replace(&mut self, i: usize, key: &[u8], value: &[u8]) -> bool {
        let node = self.node();
        let (head, at, len) = node.slot(i);
        let old = get_u16(self.0, at) as usize;
        if value.len() == old {
            let value_at = at + RECORD_HEADER + len;
            self.0[value_at..value_at + old].copy_from_slice(value);
            return true;
        }
        let (old_size, size) = (RECORD_HEADER + len + old, RECORD_HEADER + len + value.len());
        if size > node.free() + old_size {
            return false;
        }
        let garbage = node.garbage() + old_size;
        if size > node.contiguous() {
            // The old record goes first, so that compaction gives its bytes back.
            let appends = node.appends();
            self.delete_at(i);
            let fits = self.insert(i, key, value);
            put_u16(self.0, OFF_APPENDS, appends);
            return fits;
        }
        let new_at = node.heap() - size;
        let slot = node.slots() + i * SLOT_SIZE;
        let suffix = key.get(node.prefix_len()..).unwrap_or(&[]);
        write_record(self.0, new_at, suffix, &[], value);
        write_slot(self.0, slot, head, new_at, len);
        put_u16(self.0, OFF_HEAP, new_at as u16);
        put_u16(self.0, OFF_GARBAGE, garbage as u16);
        true
    }

    /// Deletes a key; whether it was there.
    pub fn delete(&mut self, key: &[u8]) -> bool {
        match self.node().search(key) {
            Ok(i) => {
                self.delete_at(i);
                true
            }
            Err(_) => false,
        }
    }

    fn delete_at(&mut self, i: usize) {
        let node = self.node();
        let (_, at, _) = node.slot(i);
        let size = node.record_size(i) - SLOT_SIZE;
        let (count, heap, garbage) = (node.count(), node.heap(), node.garbage());
        let slot = node.slots() + i * SLOT_SIZE;
        let slots_end = node.slots() + count * SLOT_SIZE;
        self.0.copy_within(slot + SLOT_SIZE..slots_end, slot);
        put_u16(self.0, OFF_SLOTS, count as u16 - 1);
        if count == 1 {
            put_u16(self.0, OFF_HEAP, PAGE_SIZE as u16);
            put_u16(self.0, OFF_GARBAGE, 0);
        } else if at == heap {
            put_u16(self.0, OFF_HEAP, (heap + size) as u16);
        } else {
            put_u16(self.0, OFF_GARBAGE, (garbage + size) as u16);
        }
    }

    /// Moves the records together; the slots keep their order.
    fn compact(&mut self) {
        let old = *self.0;
        let node = Node(&old);
        let mut heap = PAGE_SIZE;
        for i in 0..node.count() {
            let (head, at, len) = node.slot(i);
            let size = node.record_size(i) - SLOT_SIZE;
            heap -= size;
            self.0[heap..heap + size].copy_from_slice(&old[at..at + size]);
            write_slot(self.0, node.slots() + i * SLOT_SIZE, head, heap, len);
        }
        put_u16(self.0, OFF_HEAP, heap as u16);
        put_u16(self.0, OFF_GARBAGE, 0);
    }

    /// Sets and clears flags.
    pub fn change_flags(&mut self, set: u16, clear: u16) {
        let flags = self.node().flags() & !clear | set;
        put_u16(self.0, OFF_FLAGS, flags);
    }

    /// The left half of a split: drops the records from `high` on, and marks the split as incomplete.
    pub fn truncate(&mut self, high: &[u8], right: PageId) -> Result<(), &'static str> {
        let old = *self.0;
        let node = Node(&old);
        if node.covers(high) != Covers::Inside || high == node.low() {
            return Err("a split's separator lies outside the page");
        }
        if high.len() > KEY_MAX || !right.is_some() {
            return Err("a split's separator or right sibling is impossible");
        }
        let keep = node.search(high).unwrap_or_else(|i| i);
        let spec = NodeSpec { flags: node.flags() | FLAG_INCOMPLETE, high: Some(high), right, ..node.spec() };
        let mut builder = NodeBuilder::new(self.0, spec);
        let fits = (0..keep).all(|i| builder.push_from(node, i));
        builder.finish();
        set_page_lsn(self.0, page_lsn(&old));
        fits.then_some(()).ok_or("a split's left half does not fit")
    }

    /// The left half of a merge: takes over the records, the high key and the right link of `right`.
    pub fn absorb(&mut self, right: Node<'_>) -> Result<(), &'static str> {
        let old = *self.0;
        let node = Node(&old);
        if node.high() != Some(right.low()) || node.level() != right.level() {
            return Err("merged pages are not neighbours");
        }
        if right.is_dead() {
            return Err("page to merge is dead");
        }
        let spec = NodeSpec { flags: right.flags(), high: right.high(), right: right.right(), ..node.spec() };
        let mut builder = NodeBuilder::new(self.0, spec);
        let fits = (0..node.count()).all(|i| builder.push_from(node, i))
            && (0..right.count()).all(|i| builder.push_from(right, i));
        builder.finish();
        set_page_lsn(self.0, page_lsn(&old));
        fits.then_some(()).ok_or("merged pages do not fit into one")
    }
}

impl<'a> Node<'a> {
    /// What the page is, apart from its records.
    pub fn spec(self) -> NodeSpec<'a> {
        NodeSpec {
            id: self.id(),
            image: get_u64(self.0, OFF_IMAGE),
            level: self.level(),
            flags: self.flags(),
            low: self.low(),
            high: self.high(),
            right: self.right(),
        }
    }
}

/// The inverse of [`Node::pack`]: the page whose packed bytes these are, checked like one read from the image.
pub fn unpack(packed: &[u8], page: &mut PageBytes) -> Result<(), &'static str> {
    if packed.len() < HEADER_SIZE || packed.len() > PAGE_SIZE {
        return Err("packed page has an impossible length");
    }
    let fences = get_u16(packed, OFF_LOW) as usize
        + match get_u16(packed, OFF_HIGH) {
            NO_HIGH_KEY => 0,
            n => n as usize,
        };
    let front = slots_base(fences) + get_u16(packed, OFF_SLOTS) as usize * SLOT_SIZE;
    if front > packed.len() {
        return Err("packed page is shorter than its slots");
    }
    let heap = PAGE_SIZE - (packed.len() - front);
    if heap != get_u16(packed, OFF_HEAP) as usize {
        return Err("packed page's heap has another length");
    }
    page[..front].copy_from_slice(&packed[..front]);
    page[front..heap].fill(0);
    page[heap..].copy_from_slice(&packed[front..]);
    Node(page).validate()
}
