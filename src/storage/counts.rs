//! The kinds of storage operations, and how often each was done.

/// What a storage is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// `read_at`.
    Read,
    /// `will_read`, which never fails.
    ReadAhead,
    /// `write_at`, or one `write_vectored_at`.
    Write,
    /// `write_durable_at`.
    WriteDurable,
    /// `sync`.
    Sync,
    /// `set_len`.
    SetLen,
    /// `allocate`.
    Allocate,
    /// `punch`.
    Punch,
}

impl OpKind {
    /// Every kind, in the order of the numbers that `kind as usize` gives.
    pub const ALL: [OpKind; 8] = [
        OpKind::Read,
        OpKind::ReadAhead,
        OpKind::Write,
        OpKind::WriteDurable,
        OpKind::Sync,
        OpKind::SetLen,
        OpKind::Allocate,
        OpKind::Punch,
    ];
}

/// Calls and bytes by kind of operation. Failed calls are counted too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    calls: [u64; OpKind::ALL.len()],
    bytes: [u64; OpKind::ALL.len()],
}

impl Counts {
    /// Adds calls of one kind and their bytes.
    pub fn add(&mut self, kind: OpKind, calls: u64, bytes: u64) {
        self.calls[kind as usize] += calls;
        self.bytes[kind as usize] += bytes;
    }

    /// The number of calls of this kind.
    pub fn calls(&self, kind: OpKind) -> u64 {
        self.calls[kind as usize]
    }

    /// The bytes that calls of this kind named (0 for `sync` and `set_len`).
    pub fn bytes(&self, kind: OpKind) -> u64 {
        self.bytes[kind as usize]
    }

    /// All bytes written, durably at once or not: the numerator of write amplification.
    pub fn bytes_written(&self) -> u64 {
        self.bytes(OpKind::Write) + self.bytes(OpKind::WriteDurable)
    }

    /// What was added since `earlier` was taken from the same counter.
    pub fn since(&self, earlier: &Counts) -> Counts {
        let mut difference = Counts::default();
        for kind in OpKind::ALL {
            let (calls, bytes) = (self.calls(kind), self.bytes(kind));
            let calls = calls.saturating_sub(earlier.calls(kind));
            difference.add(kind, calls, bytes.saturating_sub(earlier.bytes(kind)));
        }
        difference
    }
}
