//! Reading the log: from the checkpoint to the first record that is not whole.

use super::format::{Header, Kind, RECORD_HEADER_SIZE, RECORD_SIZE_MAX};
use super::{BUFFER_MAX, Place};
use crate::error::{Error, Result};
use crate::page::Lsn;
use crate::page::format::get_u64;
use crate::storage::Storage;

/// What a scan found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The end of the last whole record.
    pub end: Lsn,
    /// The log is known to have been durable up to here: the greatest mark.
    pub floor: Lsn,
    /// How many transactions were found.
    pub records: u64,
    /// Bytes behind the end that belong to records that are not whole, or come after one that is not.
    pub discarded: u64,
}

/// Bytes that one read of the log fetches.
const WINDOW: usize = 256 << 10;

/// Bytes behind the log's end that are hashed in vain before the log is called damaged. A crash leaves a few headers without
/// their records there; a forger who has the image could write one at every place, each claiming all the rest.
const WASTED_MAX: usize = 64 * RECORD_SIZE_MAX;

/// What each header without its record counts for among them, however little it claims. A crash leaves one for every sector that it
/// lost, at the most, and their records do not overlap: less than half of what may be wasted.
const WASTED_EACH: usize = 2 * SECTOR;
const SECTOR: usize = 512;
/// Bytes behind the log's end in which records are looked for: what was in flight at a crash is bounded by the log buffer.
const BEYOND_MAX: u64 = 2 * BUFFER_MAX + RECORD_SIZE_MAX as u64;

const _: () = assert!(2 * (BEYOND_MAX as usize / SECTOR * WASTED_EACH + BEYOND_MAX as usize) < WASTED_MAX);

/// A window onto the circular log.
struct Window<'a> {
    storage: &'a dyn Storage,
    place: Place,
    /// No byte at or behind this position may be read: the log has been around once.
    limit: u64,
    start: u64,
    bytes: Vec<u8>,
    /// Bytes that one read fetches, if there are so many.
    ahead: usize,
}

impl Window<'_> {
    /// `len` bytes at `at`, or `None` where the log has no more.
    fn get(&mut self, at: u64, len: usize) -> Result<Option<&[u8]>> {
        if at + len as u64 > self.limit {
            return Ok(None);
        }
        if at < self.start || at + len as u64 > self.start + self.bytes.len() as u64 {
            let want = (len.max(self.ahead) as u64).min(self.limit - at) as usize;
            self.bytes.resize(want, 0);
            self.start = at;
            let read = self.place.read(self.storage, Lsn(at), &mut self.bytes);
            if read.is_err() && want > len {
                // The host may be unable to read what follows: from here on only what is asked for counts.
                self.ahead = 0;
                self.bytes.resize(len, 0);
                self.place.read(self.storage, Lsn(at), &mut self.bytes)?;
            } else {
                read?;
            }
        }
        let from = (at - self.start) as usize;
        Ok(Some(&self.bytes[from..from + len]))
    }

    /// At least a record's header at `at`, and what else is held behind it, up to `limit`. More is read only if less is held. `None`
    /// where there is no room for a header.
    fn held(&mut self, at: u64, limit: u64) -> Result<Option<&[u8]>> {
        let room = limit.saturating_sub(at);
        if room < RECORD_HEADER_SIZE as u64 {
            return Ok(None);
        }
        let end = self.start + self.bytes.len() as u64;
        let enough = at >= self.start && at + RECORD_HEADER_SIZE as u64 <= end;
        let len = if enough { end - at } else { WINDOW as u64 };
        self.get(at, len.min(room) as usize)
    }

    /// The whole record at `at`: its kind and length; its bytes are then in the window.
    fn record(&mut self, at: u64, incarnation: u32) -> Result<Option<(Kind, usize)>> {
        let Some(header) = self.header(at)? else { return Ok(None) };
        if !header.is_plausible(Lsn(at), incarnation) {
            return Ok(None);
        }
        let image = self.place.image;
        let Some(bytes) = self.get(at, header.len)? else { return Ok(None) };
        Ok(header.verify(bytes, &bytes[RECORD_HEADER_SIZE..], image).map(|kind| (kind, header.len)))
    }

    fn header(&mut self, at: u64) -> Result<Option<Header>> {
        let image = self.place.image;
        let bytes = self.get(at, RECORD_HEADER_SIZE)?;
        Ok(bytes.and_then(|b| b.first_chunk()).and_then(|b| Header::decode(b, image)))
    }
}

/// Scans the records of one incarnation from `from` on and calls `each` with every transaction's LSN, end LSN and body.
///
/// `floor` is what superblocks and doublewrite headers say of how far the log was durable; marks in the log may
/// raise it. A record below the floor that is not whole is damage, and an error; above the floor it is the log's end.
pub fn scan(
    storage: &dyn Storage,
    place: Place,
    from: Lsn,
    incarnation: u32,
    floor: Lsn,
    mut each: impl FnMut(Lsn, Lsn, &[u8]) -> Result<()>,
) -> Result<Scan> {
    let limit = from.0 + place.size;
    let mut window = Window { storage, place, limit, start: 0, bytes: Vec::new(), ahead: WINDOW };
    let mut found = Scan { end: from, floor, records: 0, discarded: 0 };
    while let Some((kind, len)) = window.record(found.end.0, incarnation)? {
        let at = found.end;
        found.end = Lsn(at.0 + len as u64);
        let Some(bytes) = window.get(at.0, len)? else { break };
        let body = &bytes[RECORD_HEADER_SIZE..];
        match kind {
            Kind::Mark => found.floor = found.floor.max(Lsn(get_u64(body, 0))),
            Kind::Transaction => {
                found.records += 1;
                each(at, found.end, body)?;
            }
        }
    }
    look_beyond(&mut window, incarnation, &mut found)?;
    if found.end < found.floor {
        return Err(Error::corrupt(
            format_args!("log at {}", found.end),
            format_args!("a record that was durable (up to {}) is damaged", found.floor),
        ));
    }
    Ok(found)
}

/// Looks for whole records behind the first that is not: their marks tell damage from the log's end.
fn look_beyond(window: &mut Window<'_>, incarnation: u32, found: &mut Scan) -> Result<()> {
    let (mut at, mut wasted) = (found.end.0, 0);
    let limit = (at + BEYOND_MAX).min(window.limit);
    if let Some(header) = window.header(at)?
        && header.is_plausible(found.end, incarnation)
    {
        found.discarded = header.len as u64;
    }
    at += 1;
    while let Some(bytes) = window.held(at, limit)? {
        match find_lsn(bytes, at) {
            // A header at the very end of the window is found in the next one.
            None => at += (bytes.len() - RECORD_HEADER_SIZE + 1) as u64,
            Some(candidate) => {
                at = candidate;
                if let Some((kind, len)) = window.record(at, incarnation)? {
                    if kind == Kind::Mark
                        && let Some(body) = window.get(at + RECORD_HEADER_SIZE as u64, 8)?
                    {
                        found.floor = found.floor.max(Lsn(get_u64(body, 0)));
                    }
                    at += len as u64;
                    found.discarded = at - found.end.0;
                } else {
                    // Headers of an older incarnation cost no more than any other bytes.
                    let header = window.header(at)?.filter(|h| h.is_plausible(Lsn(at), incarnation));
                    wasted += header.map_or(0, |h| h.len + WASTED_EACH);
                    if wasted > WASTED_MAX {
                        return Err(Error::corrupt(
                            format_args!("log at {}", found.end),
                            "headers without records",
                        ));
                    }
                    at += 1;
                }
            }
        }
    }
    Ok(())
}

/// The first position whose header would name that same position as its LSN.
fn find_lsn(bytes: &[u8], start: u64) -> Option<u64> {
    const STEP: usize = 64;
    const LSN_LOW: usize = 15;
    let positions = (bytes.len() + 1).checked_sub(RECORD_HEADER_SIZE)?;
    let mut i = 0;
    while i < positions {
        let at = start + i as u64;
        // Within a step only the LSN's lowest byte changes. The two lowest are compared first, without branches, so that
        // the compiler can compare many at once.
        let n = (STEP - at as usize % STEP).min(positions - i);
        let (low, high) = (&bytes[i + LSN_LOW..][..n], &bytes[i + LSN_LOW - 1..][..n]);
        let mut found = false;
        for (j, (low, high)) in low.iter().zip(high).enumerate() {
            found |= (*low == (at as u8).wrapping_add(j as u8)) & (*high == (at >> 8) as u8);
        }
        if found {
            let mut exact = (i..i + n).filter(|&k| get_u64(bytes, k + 8) == start + k as u64);
            if let Some(k) = exact.next() {
                return Some(start + k as u64);
            }
        }
        i += n;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Rng;

    /// A header is found wherever it stands: otherwise damage would pass for the log's end.
    #[test]
    fn a_header_behind_the_end_is_found_at_every_position() {
        let mut rng = Rng::new(5);
        for _ in 0..2000 {
            let start = (rng.next_u64() >> rng.below(40)).min(u64::MAX - 1000);
            let mut bytes = vec![0; rng.index(400)];
            rng.fill(&mut bytes);
            for _ in 0..rng.below(3) {
                if let Some(room) = bytes.len().checked_sub(RECORD_HEADER_SIZE) {
                    let at = rng.index(room + 1);
                    let lsn = start + at as u64;
                    bytes[at + 8..at + 16].copy_from_slice(&lsn.to_be_bytes());
                }
            }
            let positions = (bytes.len() + 1).saturating_sub(RECORD_HEADER_SIZE) as u64;
            let naive =
                (start..start + positions).find(|at| get_u64(&bytes, (at - start) as usize + 8) == *at);
            assert_eq!(find_lsn(&bytes, start), naive);
        }
    }
}
