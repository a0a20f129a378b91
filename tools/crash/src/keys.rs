//! Keys and values that make pages split and merge soon.

use btfs::page::format::{KEY_MAX, RECORD_MAX};
use btfs::storage::Rng;

/// The first byte of the keys of data records, which no other key begins with.
pub const DATA_PREFIX: u8 = 0xfe;

/// How keys come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// Short and random.
    Short,
    /// Ascending: splits at the end of pages.
    Ascending,
    /// Descending.
    Descending,
    /// Long, with long shared prefixes: inner pages split soon.
    Long,
    /// Near the longest that is allowed.
    Longest,
    /// Most in a narrow range.
    HotSpot,
    /// Of every length, the empty key among them.
    Ragged,
    /// Ascending in several places at once.
    Lanes,
}

impl KeyKind {
    /// All of them.
    pub const ALL: [KeyKind; 8] = [
        KeyKind::Short,
        KeyKind::Ascending,
        KeyKind::Descending,
        KeyKind::Long,
        KeyKind::Longest,
        KeyKind::HotSpot,
        KeyKind::Ragged,
        KeyKind::Lanes,
    ];
}

/// A source of keys.
#[derive(Clone, Debug)]
pub struct Keys {
    kind: KeyKind,
    space: u64,
    next: u64,
}

impl Keys {
    /// Keys of a kind; `space` is about how many different ones there are.
    pub fn new(kind: KeyKind, space: u64, first: u64) -> Self {
        Keys { kind, space, next: first }
    }

    /// A key.
    pub fn next(&mut self, rng: &mut Rng) -> Vec<u8> {
        let n = rng.below(self.space);
        self.next += 1;
        let mut key = match self.kind {
            KeyKind::Short => n.to_be_bytes()[5..].to_vec(),
            KeyKind::Ascending => self.next.to_be_bytes().to_vec(),
            KeyKind::Descending => (u64::MAX / 2 - self.next).to_be_bytes().to_vec(),
            KeyKind::Long => {
                let mut key = vec![b'a' + (n % 3) as u8; 100 + (n % 5) as usize * 150];
                key.extend_from_slice(&n.to_be_bytes());
                key
            }
            KeyKind::Longest => {
                let mut key = n.to_be_bytes()[6..].to_vec();
                key.resize(KEY_MAX - (n % 3) as usize, b'x');
                key
            }
            KeyKind::HotSpot if rng.chance(9, 10) => ((1u64 << 40) | (n % 64)).to_be_bytes().to_vec(),
            KeyKind::HotSpot => n.to_be_bytes().to_vec(),
            KeyKind::Ragged => n.to_be_bytes().repeat(40)[..(n % 300) as usize].to_vec(),
            KeyKind::Lanes => [(self.next % 5).to_be_bytes(), self.next.to_be_bytes()].concat(),
        };
        if key.first() == Some(&DATA_PREFIX) {
            key[0] = 0xff;
        }
        key
    }
}

/// How long values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// All of one length: log records of one batch then begin where those of another did.
    Fixed(usize),
    /// Up to 300 bytes.
    Small,
    /// Anything.
    Mixed,
    /// From 1,000 bytes to the longest allowed.
    Large,
}

/// A value, different each time (unless it is shorter than 8 bytes).
pub fn value(kind: ValueKind, rng: &mut Rng, key: &[u8]) -> Vec<u8> {
    let max = RECORD_MAX - key.len();
    let len = match kind {
        ValueKind::Fixed(len) => len,
        ValueKind::Small => rng.index(300),
        ValueKind::Large => 1000 + rng.index(max.saturating_sub(1000).max(1)),
        ValueKind::Mixed => match rng.below(10) {
            0 => 0,
            1 => max,
            2 | 3 => 1500,
            n => n as usize * 100,
        },
    };
    let mut value = vec![rng.below(256) as u8; len.min(max)];
    let unique = value.len().min(8);
    rng.fill(&mut value[..unique]);
    value
}
