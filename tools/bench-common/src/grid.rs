//! Columns of text, and figures as text.

/// Lines of cells; columns are as wide as their widest cell. The first column and others that hold text are aligned left, those
/// of figures right.
pub struct Grid {
    lines: Vec<Line>,
    text_columns: Vec<usize>,
}

enum Line {
    Cells(Vec<String>),
    /// Runs over all columns.
    Text(String),
}

impl Grid {
    /// A grid of figures: only the first column is text.
    pub fn new(header: &[&str]) -> Self {
        Grid::with_text(header, &[])
    }

    /// A grid in which more columns are text, by their numbers.
    pub fn with_text(header: &[&str], columns: &[usize]) -> Self {
        let header = header.iter().map(|cell| (*cell).to_owned()).collect();
        Grid { lines: vec![Line::Cells(header)], text_columns: [&[0], columns].concat() }
    }

    /// Adds a line of cells.
    pub fn add(&mut self, cells: Vec<String>) {
        self.lines.push(Line::Cells(cells));
    }

    /// Adds a line that runs over all columns.
    pub fn add_text(&mut self, text: String) {
        self.lines.push(Line::Text(text));
    }

    /// The text, with a title above; empty if there are no lines.
    pub fn render(&self, title: &str) -> String {
        if self.lines.len() <= 1 {
            return String::new();
        }
        let mut widths: Vec<usize> = Vec::new();
        for line in &self.lines {
            let Line::Cells(cells) = line else { continue };
            widths.resize(widths.len().max(cells.len()), 0);
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = format!("{title}\n");
        for line in &self.lines {
            match line {
                Line::Text(line) => text += line,
                Line::Cells(cells) => {
                    let mut padded = String::new();
                    for (n, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                        padded += &match self.text_columns.contains(&n) {
                            true => format!("  {cell:<width$}"),
                            false => format!("  {cell:>width$}"),
                        };
                    }
                    text += padded.trim_end();
                }
            }
            text.push('\n');
        }
        text.push('\n');
        text
    }
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

/// A rate: in thousands or millions where it is large.
pub fn rate(value: Option<f64>) -> String {
    match value {
        Some(value) if value >= 1e6 => format!("{} M", number(Some(value / 1e6))),
        Some(value) if value >= 1e4 => format!("{} k", number(Some(value / 1e3))),
        value => number(value),
    }
}

/// A time in nanoseconds.
pub fn microseconds(ns: Option<f64>) -> String {
    number(ns.map(|ns| ns / 1000.0))
}

/// A number of bytes.
pub fn mebibytes(bytes: Option<f64>) -> String {
    number(bytes.map(|bytes| bytes / f64::from(1 << 20)))
}

/// A part of one.
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
        assert_eq!(rate(Some(1_234_567.0)), "1.23 M");
    }

    #[test]
    fn text_is_aligned_left_and_figures_right() {
        let mut grid = Grid::with_text(&["", "unit", "time"], &[1]);
        assert_eq!(grid.render("empty"), "");
        for cells in [["read", "µs", "1.5"], ["rename", "MiB/s", "12.5"]] {
            grid.add(cells.map(str::to_owned).to_vec());
        }
        grid.add_text("  of all".to_owned());
        let lines = [
            "title",
            "          unit   time",
            "  read    µs      1.5",
            "  rename  MiB/s  12.5",
            "  of all",
            "",
            "",
        ];
        assert_eq!(grid.render("title"), lines.join("\n"));
    }
}
