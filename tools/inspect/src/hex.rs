//! Bytes beside what they mean.

use crate::Report;

/// Bytes of a row.
const ROW: usize = 16;
/// Rows of one field that are printed, at the most.
const ROWS_MAX: usize = 4;

/// A structure whose fields are taken off one after the other. What lies behind its end reads as missing.
pub struct Annotated<'r> {
    report: &'r mut Report,
    /// Offset of the structure in the image.
    base: u64,
    bytes: Vec<u8>,
    at: usize,
}

impl<'r> Annotated<'r> {
    /// A structure that lies at `base` in the image.
    pub fn new(report: &'r mut Report, base: u64, bytes: &[u8]) -> Self {
        Annotated { report, base, bytes: bytes.to_vec(), at: 0 }
    }

    /// Where the next field begins in the structure.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Adds a line that says what is wrong.
    pub fn problem(&mut self, problem: impl Into<String>) {
        self.report.problem(problem);
    }

    /// Prints the next `len` bytes with their meaning.
    pub fn field(&mut self, len: usize, meaning: impl AsRef<str>) {
        let end = self.at.saturating_add(len).min(self.bytes.len());
        let field = &self.bytes[self.at..end];
        let mut meaning = meaning.as_ref().to_owned();
        if field.len() < len {
            meaning.push_str(&format!(" (cut off: {} of {len} bytes)", field.len()));
        }
        // Rows of zeros at the end are only hinted at.
        let content = field.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1);
        let kept = content.next_multiple_of(ROW).max(ROW).min(field.len());
        let rows: Vec<&[u8]> = field[..kept].chunks(ROW).collect();
        for (i, row) in rows.iter().take(ROWS_MAX).enumerate() {
            let mut hex: Vec<String> = row.iter().map(|b| format!("{b:02x}")).collect();
            if kept < field.len() && i + 1 == rows.len() {
                hex[ROW - 1] = "..".into();
            }
            let hex = hex.join(" ");
            let text = if i == 0 { meaning.as_str() } else { "" };
            let offset = self.base + (self.at + i * ROW) as u64;
            self.report.line(format!("{offset:08x}  {hex:47}  {text}"));
        }
        if rows.len() > ROWS_MAX {
            let more = field.len() - ROWS_MAX * ROW;
            self.report.line(format!("          .. {more} bytes more"));
        } else if rows.is_empty() && len > 0 {
            self.report.line(format!("{:08x}  {:47}  {meaning}", self.base + self.at as u64, ""));
        }
        self.at = end;
    }

    /// Goes on at `at`, and prints what is passed over as `meaning`. Does nothing if that lies behind.
    pub fn skip_to(&mut self, at: usize, meaning: &str) {
        if at > self.at {
            let len = at - self.at;
            self.field(len, format!("{meaning}, {len} bytes"));
        }
    }
}

/// A big-endian number of up to 8 bytes at an offset; missing bytes count as absent.
pub fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let end = at.saturating_add(len).min(bytes.len());
    bytes.get(at..end).unwrap_or(&[]).iter().take(8).fold(0, |n, b| n << 8 | *b as u64)
}

/// Bytes of a key or value as text: quoted if printable, in hexadecimal if not, and cut short if long.
pub fn text(bytes: &[u8]) -> String {
    const LEN_MAX: usize = 40;
    let shown = &bytes[..bytes.len().min(LEN_MAX)];
    let more = if shown.len() < bytes.len() { format!("… ({} bytes)", bytes.len()) } else { String::new() };
    if shown.iter().all(|b| (0x20..0x7f).contains(b)) {
        return format!("\"{}\"{more}", String::from_utf8_lossy(shown));
    }
    let hex: String = shown.iter().map(|b| format!("{b:02x}")).collect();
    format!("0x{hex}{more}")
}
