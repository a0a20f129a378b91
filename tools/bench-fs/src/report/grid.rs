//! Columns of text, and figures as text.

/// Lines of cells; columns are as wide as their widest cell. Text is aligned left, figures right.
pub struct Grid {
    lines: Vec<Vec<String>>,
}

impl Grid {
    pub fn new(header: &[&str]) -> Self {
        Grid { lines: vec![header.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    pub fn add(&mut self, cells: Vec<String>) {
        self.lines.push(cells);
    }

    /// The text, with a title above; empty if there are no lines.
    pub fn render(&self, title: &str) -> String {
        if self.lines.len() <= 1 {
            return String::new();
        }
        let mut widths: Vec<usize> = Vec::new();
        for cells in &self.lines {
            widths.resize(widths.len().max(cells.len()), 0);
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = format!("{title}\n");
        for cells in &self.lines {
            let mut line = String::new();
            for (n, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                line += &match n {
                    0 => format!("  {cell:<width$}"),
                    _ if is_text(&self.lines, n) => format!("  {cell:<width$}"),
                    _ => format!("  {cell:>width$}"),
                };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text.push('\n');
        text
    }
}

/// Whether a column holds text, judged by its first cell below the header.
fn is_text(lines: &[Vec<String>], column: usize) -> bool {
    let first = lines.get(1).and_then(|cells| cells.get(column)).map_or("", String::as_str);
    first.contains(' ') && !first.ends_with('%') || first.starts_with(char::is_alphabetic)
}

/// Three significant digits; "–" if there is no figure.
pub fn number(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(value) => {
            let digits = 2 - value.abs().log10().floor() as i32;
            format!("{value:.*}", usize::try_from(digits).unwrap_or(0).min(4))
        }
    }
}

pub fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "–".to_owned(), |share| format!("{:.0} %", share * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        assert_eq!(number(Some(1234.5)), "1234");
        assert_eq!(number(Some(12.345)), "12.3");
        assert_eq!(number(Some(0.012_345)), "0.0123");
        assert_eq!(number(None), "–");
    }
}
