//! Reading a case's bytes: whatever they are, they mean something.

use crate::base::Base;

/// What is left of a case's bytes. Behind the end come zeros.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of a case.
    pub fn new(bytes: &'a [u8]) -> Self {
        Input(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes, at most `n`.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n.min(self.0.len()));
        self.0 = tail;
        head
    }

    fn number(&mut self, width: usize) -> u64 {
        self.bytes(width).iter().fold(0, |n, b| n << 8 | u64::from(*b))
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.number(1) as u8
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        self.number(2) as u16
    }

    /// A number below `n`, of one byte or two; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        let number = if n > 256 { self.u16() as usize } else { self.u8() as usize };
        if n == 0 { 0 } else { number % n }
    }

    /// A number to stand in place of `old`: as written here, near the old one, or one that means something in this image.
    pub fn value(&mut self, base: &Base, old: u64) -> u64 {
        let named = |input: &mut Self| base.numbers[input.below(base.numbers.len())];
        match self.u8() % 8 {
            0 => self.number(1),
            1 => self.number(2),
            2 => self.number(4),
            3 => self.number(8),
            4 => old.wrapping_add(self.u8() as i8 as u64),
            5 => named(self),
            6 => old ^ 1 << (self.u8() % 64),
            _ => named(self).wrapping_add(self.u8() as i8 as u64),
        }
    }
}

/// The number of `width` bytes at `at`; 0 where there are none.
pub fn get(bytes: &[u8], at: usize, width: usize) -> u64 {
    let field = bytes.get(at..at + width).unwrap_or(&[]);
    field.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Writes the lower `width` bytes of a number at `at`, if there is room.
pub fn put(bytes: &mut [u8], at: usize, width: usize, value: u64) {
    if let Some(field) = bytes.get_mut(at..at + width) {
        field.copy_from_slice(&value.to_be_bytes()[8 - width..]);
    }
}
