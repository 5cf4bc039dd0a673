//! Numbers and tables for display.

pub use aweigh::gpu::bytes;

/// Units of byte counts.
const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];

/// A table of `rows` under `headers`. Columns with only numbers are right-aligned.
pub fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
    let unit = |text: &'_ str| {
        UNITS.iter().find_map(|unit| text.strip_suffix(unit)?.strip_suffix(' ').map(str::len))
    };
    let numeric = |text: &str| {
        let number = unit(text).map_or(text.trim_end_matches('%'), |end| &text[..end]);
        ["", "-"].contains(&text) || number.parse::<f64>().is_ok()
    };
    let mut lines = vec![String::new(); rows.len() + 1];
    for (column, header) in headers.iter().enumerate() {
        let mut cells = vec![(*header).to_owned()];
        cells.extend(rows.iter().map(|row| cell(row, column)));
        let width = cells.iter().map(|text| text.chars().count()).max().unwrap_or(0);
        let right = !rows.is_empty() && cells[1..].iter().all(|text| numeric(text));
        for (line, text) in lines.iter_mut().zip(&cells) {
            let gap = if column == 0 { "" } else { "  " };
            *line += &if right { format!("{gap}{text:>width$}") } else { format!("{gap}{text:<width$}") };
        }
    }
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}

/// A number with thousands separators: `134,515,008`.
pub fn count(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_words_left_and_numbers_right() {
        let rows = vec![vec!["one".into(), "1.5".into(), "a".into()], vec!["three".into(), "-10".into()]];
        assert_eq!(table(&["name", "n", "x"], &rows), "name     n  x\none    1.5  a\nthree  -10");
        let rows = vec![vec!["one".into(), "1.5 MiB".into()], vec!["two".into(), "-".into()]];
        assert_eq!(table(&["name", "size"], &rows), "name     size\none   1.5 MiB\ntwo         -");
        assert_eq!(table(&["name"], &[]), "name");
    }

    #[test]
    fn thousands_are_apart() {
        assert_eq!(
            [count(0), count(999), count(1000), count(134_515_008)],
            ["0", "999", "1,000", "134,515,008"]
        );
    }

    #[test]
    fn bytes_are_readable() {
        assert_eq!([bytes(7), bytes(1536), bytes(3 << 30)], ["7 bytes", "1.5 KiB", "3.0 GiB"]);
    }
}
