//! What others have named, as it is shown: it must not speak to a terminal, nor begin a line of its own in a log.

/// The text with control characters escaped, and bytes that are none of UTF-8 as `\xNN`.
pub(crate) fn escaped(name: &[u8]) -> String {
    let mut out = String::new();
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
        }
        for b in chunk.invalid() {
            out.push_str(&format!("\\x{b:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn nothing_speaks_to_the_terminal() {
        assert_eq!(escaped("Übung.txt".as_bytes()), "Übung.txt");
        assert_eq!(escaped(b"a\x1b[31m\n\xff\x7f"), "a\\u{1b}[31m\\n\\xff\\u{7f}");
    }
}
