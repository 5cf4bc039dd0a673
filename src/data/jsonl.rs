//! Lines of a JSONL file, one at a time.

use std::io::{BufRead, Read};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Size limits of a file. The defaults are far above any real data set; they stop a decompression bomb.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    /// Bytes of one line.
    pub line_bytes: u64,
    /// Bytes of the whole file, decompressed.
    pub total_bytes: u64,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self { line_bytes: 100_000_000, total_bytes: 4 << 30 }
    }
}

/// The first bytes of a gzip file.
pub(super) const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Calls `each` with the number (from 1) and the object of every line that is not blank. Only one line is
/// held in memory at a time.
pub(super) fn read_lines(
    mut reader: impl BufRead,
    origin: &str,
    limits: ReadLimits,
    mut each: impl FnMut(usize, Map<String, Value>) -> Result<()>,
) -> Result<()> {
    let mut buffer = Vec::new();
    let mut total = 0u64;
    for line in 1.. {
        let place = || format!("{origin}:{line}");
        buffer.clear();
        // Two bytes more than the limit: one for the line break, and one that shows an over-long line.
        let read = reader.by_ref().take(limits.line_bytes + 2).read_until(b'\n', &mut buffer);
        let read = read.map_err(|error| {
            Error::input(place(), "readable data", error, "copy or download the file again: it seems damaged")
        })?;
        if read == 0 {
            break;
        }
        let text = buffer.strip_suffix(b"\n").unwrap_or(&buffer);
        if text.len() as u64 > limits.line_bytes {
            return Err(Error::input(
                place(),
                format!("a line of at most {} bytes", limits.line_bytes),
                "a longer one",
                "write one JSON object per line",
            ));
        }
        total += read as u64;
        if total > limits.total_bytes {
            return Err(Error::input(
                place(),
                format!("at most {} bytes of data", limits.total_bytes),
                "more",
                "split the file, or take a sample of it",
            ));
        }
        // Editors on Windows put a byte order mark at the start of a file. In files
        // that were joined, a later line may have one.
        let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
        if !text.iter().all(u8::is_ascii_whitespace) {
            each(line, parse_object(text, &place())?)?;
        }
    }
    Ok(())
}

fn parse_object(bytes: &[u8], place: &str) -> Result<Map<String, Value>> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        Error::input(
            place,
            "UTF-8 text",
            format!("an invalid byte at column {}", error.valid_up_to() + 1),
            "save the file as UTF-8",
        )
    })?;
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(Error::input(
            place,
            "a JSON object",
            kind(&other),
            "write one {\"prompt\": ..., ...} object per line (JSONL)",
        )),
        Err(error) => {
            if let Some((found, fix)) = other_format(text, &error) {
                return Err(Error::input(place, "one JSON object on the line", found, fix));
            }
            // serde_json counts lines within the text that it was given: the line is always 1 here.
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            Err(Error::input(
                place,
                "one JSON object",
                format!("invalid JSON at column {}: {message}", error.column()),
                "fix this line's JSON",
            ))
        }
    }
}

/// The probable format of a line that is not JSON, and how to convert it to JSONL; None if unknown. `error`
/// is serde_json's error for the line.
fn other_format(text: &str, error: &serde_json::Error) -> Option<(&'static str, &'static str)> {
    let line = text.trim();
    let is_object = |text: &str| serde_json::from_str::<Map<String, Value>>(text).is_ok();
    if line == "{" || error.is_eof() && line.starts_with('{') && line.ends_with(',') {
        let fix = "write JSONL, each row's object on one line, as `jq -c . FILE` does";
        return Some(("the beginning of an object over several lines", fix));
    }
    if line.strip_suffix(',').is_some_and(is_object) {
        return Some((
            "an object followed by a comma",
            "remove the commas at the ends of lines: this is JSONL, not a list",
        ));
    }
    if line.strip_suffix(';').is_some_and(is_object) {
        return Some(("an object followed by a semicolon", "remove the semicolons at the ends of lines"));
    }
    // serde_json reports the column of the byte after a minus sign, if there is one.
    let stands =
        |at: usize| (at + 1..=at + 2).contains(&error.column()) && text[..at].trim_end().ends_with(':');
    let names = ["NaN", "Infinity", "-Infinity"];
    if names.into_iter().any(|name| text.match_indices(name).any(|(at, _)| stands(at))) {
        return Some((
            "a NaN or an infinity, which JSON does not allow",
            "write null in its place, or leave the key out",
        ));
    }
    if line.contains('\r') && line.split('\r').all(is_object) {
        return Some((
            "lines that end in carriage returns only",
            "end lines with line feeds, as `tr '\\r' '\\n'` does",
        ));
    }
    None
}

/// The format of a file that is not UTF-8 text, by its first bytes, and what to do; None for other files.
pub(super) fn binary_format(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    let formats: [(&[u8], _, _); 5] = [
        (b"PAR1", "a Parquet file", "convert it to JSONL, as datasets' `to_json` does"),
        (b"ARROW1", "an Arrow file", "convert it to JSONL, as datasets' `to_json` does"),
        (b"PK\x03\x04", "a zip file (or a spreadsheet)", "unpack it, and give the JSONL file in it"),
        (b"\xff\xfe", "text in UTF-16", "save the file as UTF-8"),
        (b"\xfe\xff", "text in UTF-16", "save the file as UTF-8"),
    ];
    formats.into_iter().find(|(start, ..)| bytes.starts_with(start)).map(|(_, found, fix)| (found, fix))
}

/// A JSON value's kind in words, for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::super::objects::for_each_object;
    use super::super::testing::gzip;

    fn read(bytes: &[u8], limits: ReadLimits) -> Result<Vec<usize>> {
        let mut lines = Vec::new();
        for_each_object(bytes, "d.jsonl", limits, |line, _| {
            lines.push(line);
            Ok(())
        })?;
        Ok(lines)
    }

    #[test]
    fn plain_and_gzipped_lines_keep_their_numbers() {
        let text = "\u{feff}{}\r\n\n  \n{\"a\": 1}\n{}".as_bytes();
        assert_eq!(read(text, ReadLimits::default()).unwrap(), [1, 4, 5]);
        let two_members = [gzip(b"{}\n\n"), gzip(b"{}\n")].concat();
        assert_eq!(read(&two_members, ReadLimits::default()).unwrap(), [1, 3]);
        assert_eq!(read(b"", ReadLimits::default()).unwrap(), [] as [usize; 0]);
    }

    #[test]
    fn mistakes_name_the_line() {
        let message = |bytes: &[u8]| read(bytes, ReadLimits::default()).unwrap_err().to_string();
        let bad_json = message(b"{}\n{\"a\": }\n");
        assert!(bad_json.contains("d.jsonl:2") && bad_json.contains("column 7"), "{bad_json}");
        assert!(!bad_json.contains("line 1"), "{bad_json}");
        let bad_utf8 = message(b"{}\n\n{\"a\": \"\xff\"}");
        assert!(bad_utf8.contains("d.jsonl:3") && bad_utf8.contains("UTF-8"), "{bad_utf8}");
        for (text, found) in [
            (&b"{\n\"prompt\": \"a\"\n}"[..], "found the beginning of an object over several lines"),
            (b"{\"prompt\": \"a\",\n\"label\": true}", "found the beginning of an object over several lines"),
            (b"{\"prompt\": \"a\"},\n{}", "found an object followed by a comma"),
            (b"{\"a\":-Infinity}", "found a NaN or an infinity"),
            (b"{\"prompt\": \"a\", \"score\": NaN}", "found a NaN or an infinity"),
            (b"{\"prompt\": \"a\"}\r{\"prompt\": \"b\"}\r", "found lines that end in carriage returns only"),
            (b"PAR1\x15\x04", "Parquet file"),
            (b"\xff\xfe{\x00", "found text in UTF-16"),
        ] {
            let message = message(text);
            assert!(message.contains(found) && message.contains("what to do: "), "{message}");
        }
        for plain in [
            &b"hello, world"[..],
            b"{\"prompt\": \"a\" \"completion\": \"b\"},",
            b"{\"prompt\": \"Note: NaN\" \"a\": 1}",
            b"{\"prompt\": \"a\rb\"}",
        ] {
            let message = message(plain);
            assert!(message.contains("invalid JSON at column"), "{message}");
        }
        let mut damaged = gzip(&b"{\"abc\": 123}\n".repeat(50));
        damaged.truncate(damaged.len() - 12);
        assert!(message(&damaged).contains("damaged"));
    }

    #[test]
    fn limits_hold() {
        let limits = ReadLimits { line_bytes: 4, total_bytes: 12 };
        assert_eq!(read(b"{  }\n{  }", limits).unwrap(), [1, 2]);
        assert!(
            read(b"{   }\n", limits)
                .unwrap_err()
                .to_string()
                .contains("d.jsonl:1: expected a line of at most 4")
        );
        let bomb = gzip(&b"{}\n".repeat(5));
        assert!(
            read(&bomb, limits).unwrap_err().to_string().contains("d.jsonl:5: expected at most 12 bytes")
        );
    }
}
