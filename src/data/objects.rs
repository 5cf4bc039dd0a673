//! The rows of a file as JSON objects, whatever its format: JSONL, a JSON list, or CSV, plain or gzipped;
//! with the feature `parquet` also Parquet.
//!
//! The format is known from the file's first bytes, not from its name.

use std::borrow::Cow;
use std::io::Read;

use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use super::jsonl::{GZIP_MAGIC, ReadLimits, binary_format, kind, read_lines};
use crate::error::{Error, Result};

/// Bytes by which the format is known.
const HEAD: u64 = 64 << 10;

/// Columns that a CSV file with data for Aweigh may have; one of them must be in its header.
const COLUMNS: [&str; 14] = [
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "label",
    "messages",
    "text",
    "question",
    "answer",
    "instruction",
    "output",
    "response",
    "conversations",
    "query",
];

/// The format of a file's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// An object on each line.
    Jsonl,
    /// One list of objects.
    List,
    /// A header and records, with this separator.
    Csv(u8),
}

/// Calls `each` with the line (from 1) and the object of every row: of JSONL, every line that is not blank;
/// of a JSON list, every object, with the line on which it begins (of several on one line, each after the
/// first has the next); of CSV, every record, as an object of its cells by the header's names; of Parquet,
/// every row with its number.
///
/// A gzip file is recognised by its first two bytes; several gzip members are read as one file. JSONL is read
/// one line at a time.
///
/// # Errors
/// Broken compression, a file or line over the limits, invalid UTF-8, JSON or CSV, a row that is not an
/// object, each with `origin:line`; a binary format; and whatever `each` returns.
pub fn for_each_object(
    bytes: &[u8],
    origin: &str,
    limits: ReadLimits,
    mut each: impl FnMut(usize, Map<String, Value>) -> Result<()>,
) -> Result<()> {
    #[cfg(feature = "parquet")]
    if bytes.starts_with(super::parquet::MAGIC) {
        return super::parquet::read_parquet(bytes, origin, limits, &mut each);
    }
    if let Some((found, fix)) = binary_format(bytes) {
        return Err(Error::input(origin, "JSONL, JSON, CSV or Parquet", found, fix));
    }
    let packed = bytes.starts_with(&GZIP_MAGIC);
    let mut head = Vec::new();
    // What cannot be unpacked is an error of the reader below, which names the line.
    let _ = match packed {
        true => MultiGzDecoder::new(bytes).take(HEAD).read_to_end(&mut head),
        false => bytes.take(HEAD).read_to_end(&mut head),
    };
    match format(&head) {
        Format::Jsonl if packed => {
            let unpacked = std::io::BufReader::with_capacity(1 << 16, MultiGzDecoder::new(bytes));
            read_lines(unpacked, origin, limits, each)
        }
        Format::Jsonl => read_lines(bytes, origin, limits, each),
        Format::List => read_list(&text(bytes, packed, origin, limits)?, origin, &mut each),
        Format::Csv(separator) => {
            read_csv(&text(bytes, packed, origin, limits)?, separator, origin, &mut each)
        }
    }
}

/// The format of a file that begins with `head`.
fn format(head: &[u8]) -> Format {
    let text = String::from_utf8_lossy(head);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let header = text.lines().next().unwrap_or_default();
    if text.starts_with('[') {
        // Lines that are lists are JSONL of the wrong kind: its error names the line.
        let is_whole = serde_json::from_str::<Value>(header).is_ok();
        return if is_whole && text.lines().nth(1).is_some_and(|next| next.starts_with('[')) {
            Format::Jsonl
        } else {
            Format::List
        };
    }
    if header.starts_with(['{', '}']) {
        return Format::Jsonl;
    }
    let columns = |separator: char| header.split(separator).filter(|name| known(name).is_some()).count();
    let best = [',', '\t', ';'].into_iter().max_by_key(|&separator| columns(separator)).unwrap_or(',');
    if columns(best) > 0 { Format::Csv(best as u8) } else { Format::Jsonl }
}

/// The whole text of a file.
fn text<'a>(bytes: &'a [u8], packed: bool, origin: &str, limits: ReadLimits) -> Result<Cow<'a, str>> {
    let whole = match packed {
        false => Cow::Borrowed(bytes),
        true => {
            let mut unpacked = Vec::new();
            let read = MultiGzDecoder::new(bytes).take(limits.total_bytes + 1).read_to_end(&mut unpacked);
            read.map_err(|error| {
                Error::input(
                    origin,
                    "readable data",
                    error,
                    "copy or download the file again: it seems damaged",
                )
            })?;
            Cow::Owned(unpacked)
        }
    };
    if whole.len() as u64 > limits.total_bytes {
        let expected = format!("at most {} bytes of data", limits.total_bytes);
        return Err(Error::input(origin, expected, "more", "split the file, or take a sample of it"));
    }
    let invalid = |error: std::str::Utf8Error| {
        let line = 1 + whole[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        Error::input(format!("{origin}:{line}"), "UTF-8 text", "an invalid byte", "save the file as UTF-8")
    };
    let strip = |text: &str| text.trim_start_matches('\u{feff}').len();
    let skipped = whole.len() - std::str::from_utf8(&whole).map(strip).map_err(invalid)?;
    Ok(match whole {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(&bytes[skipped..]),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes[skipped..]).into_owned()),
    })
}

type Each<'a> = &'a mut dyn FnMut(usize, Map<String, Value>) -> Result<()>;

/// The objects of one JSON list.
fn read_list(text: &str, origin: &str, each: Each) -> Result<()> {
    let spaces = |from: usize| from + text[from..].len() - text[from..].trim_start().len();
    let (mut line, mut counted, mut last) = (1, 0, 0);
    let mut at = spaces(0) + 1;
    let mut first = true;
    loop {
        at = spaces(at);
        line += text[counted..at].matches('\n').count();
        counted = at;
        let place = format!("{origin}:{line}");
        let next = text[at..].chars().next();
        match next {
            Some(']') if text[at + 1..].trim().is_empty() => return Ok(()),
            Some(',') if !first => at = spaces(at + 1),
            Some(_) if first => {}
            _ => {
                let found = next.map_or("the end of the file".into(), |c| format!("{c:?}"));
                let fix = "write one list of objects, separated by commas; the file may be cut off";
                return Err(Error::input(place, "a comma or the end of the list", found, fix));
            }
        }
        line += text[counted..at].matches('\n').count();
        counted = at;
        // Rows are told apart by their lines: of several on one line, each after the first gets the next.
        let own = line.max(last + 1);
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        match values.next() {
            Some(Ok(Value::Object(map))) => each(own, map)?,
            Some(Ok(other)) => {
                let fix = "write one list of objects, one for each row";
                return Err(Error::input(format!("{origin}:{own}"), "a JSON object", kind(&other), fix));
            }
            Some(Err(error)) => {
                let place = format!("{origin}:{}", line + error.line() - 1);
                let message = error.to_string();
                let message = message.split(" at line ").next().unwrap_or_default().to_owned();
                let before =
                    if error.line() == 1 { at - text[..at].rfind('\n').map_or(0, |n| n + 1) } else { 0 };
                let found = format!("invalid JSON at column {}: {message}", before + error.column());
                return Err(Error::input(place, "a JSON object", found, "fix the JSON there"));
            }
            None => {
                let fix = "the file may be cut off: copy or download it again";
                let expected = "a JSON object or the end of the list";
                return Err(Error::input(place, expected, "the end of the file", fix));
            }
        }
        at += values.byte_offset();
        (first, last) = (false, own);
    }
}

/// The records of a CSV file.
fn read_csv(text: &str, separator: u8, origin: &str, each: Each) -> Result<()> {
    let mut reader = csv::ReaderBuilder::new().delimiter(separator).from_reader(text.as_bytes());
    let quotes =
        "put texts with commas, quotes or line breaks in double quotes, and double the quotes in them";
    let wrong = |line: usize, error: csv::Error| {
        let found = match error.kind() {
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                format!("{len} cells where the header has {expected_len}")
            }
            _ => error.to_string(),
        };
        Error::input(format!("{origin}:{line}"), "a record of a CSV file", found, quotes)
    };
    let header = reader.headers().map_err(|error| wrong(1, error))?;
    let names: Vec<String> =
        header.iter().map(|name| known(name).unwrap_or(name.trim()).to_owned()).collect();
    let twice = names.iter().enumerate().find(|(i, name)| !name.is_empty() && names[..*i].contains(name));
    if let Some((_, name)) = twice {
        let found = format!("{name:?} twice");
        let fix = "rename one of the columns";
        return Err(Error::input(format!("{origin}:1"), "names that differ", found, fix));
    }
    let (mut line, mut counted) = (1, 0);
    let mut record = csv::StringRecord::new();
    loop {
        // csv's own line numbers are those of the record before, where lines end in \r\n.
        let from = reader.position().byte() as usize;
        let start = from + text[from..].len() - text[from..].trim_start_matches(['\r', '\n']).len();
        line += text[counted..start].matches('\n').count();
        counted = start;
        if !reader.read_record(&mut record).map_err(|error| wrong(line, error))? {
            return Ok(());
        }
        // A quote that is never closed takes all that follows into one cell.
        let own = text[start..].trim_end();
        let is_last = reader.position().byte() as usize >= text.len();
        if is_last && own.contains('\n') && own.matches('"').count() % 2 == 1 {
            let place = format!("{origin}:{line}");
            return Err(Error::input(place, "quotes that are closed", "one that is not", quotes));
        }
        let mut map = Map::new();
        for (name, cell) in names.iter().zip(&record).filter(|(name, _)| !name.is_empty()) {
            map.insert(name.clone(), value(name, cell, &format!("{origin}:{line}"))?);
        }
        each(line, map)?;
    }
}

/// The column of [`COLUMNS`] that `name` means, in any case.
fn known(name: &str) -> Option<&'static str> {
    let name = name.trim().trim_matches('"').trim();
    COLUMNS.into_iter().find(|column| column.eq_ignore_ascii_case(name))
}

/// A cell's value: JSON where it holds messages, a boolean in the column `label`, otherwise text. An empty
/// cell is an empty text in a column of prompts or answers, and otherwise null.
fn value(name: &str, cell: &str, place: &str) -> Result<Value> {
    if cell.is_empty() {
        let is_text = COLUMNS.contains(&name) && name != "label";
        return Ok(if is_text { "".into() } else { Value::Null });
    }
    let start = cell.trim_start();
    let is_turn = |value: &Value| value.get("role").or(value.get("from")).is_some();
    if start.starts_with(['[', '{'])
        && let Ok(value) = serde_json::from_str::<Value>(cell)
        && (is_turn(&value) || value.as_array().is_some_and(|all| !all.is_empty() && all.iter().all(is_turn)))
    {
        return Ok(value);
    }
    // How pandas writes a list of messages.
    if start.starts_with("[{'") {
        let (expected, found) = ("text, or a list as JSON", "a list as Python writes it");
        let fix = "write the rows as JSONL, as datasets' `to_json` does";
        return Err(Error::input(format!("{place}: {name}"), expected, found, fix));
    }
    Ok(match (name, cell.trim().to_ascii_lowercase().as_str()) {
        ("label", "true") => true.into(),
        ("label", "false") => false.into(),
        _ => cell.into(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::gzip;
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<(usize, Value)>> {
        let mut rows = Vec::new();
        for_each_object(bytes, "d", ReadLimits::default(), |line, map| {
            rows.push((line, map.into()));
            Ok(())
        })?;
        Ok(rows)
    }

    #[test]
    fn lists_and_tables_are_read_as_lines_are() {
        let a = json!({ "prompt": "a, \"b\"\nc", "label": true });
        let b = json!({ "prompt": "d" });
        let list = format!("\u{feff} [\n  {a},\n\n  {b}\n]\n");
        let one_line = format!("[{a}, {b}]");
        let table = "prompt,label\r\n\"a, \"\"b\"\"\nc\",True\r\nd,\r\n";
        let tabs = "\u{feff}\"prompt\"\tlabel\n\"a, \"\"b\"\"\nc\"\ttrue\nd\t\n";
        let semicolons = "label;prompt\nTRUE;\"a, \"\"b\"\"\nc\"\n;d\n";
        for (text, lines) in [
            (list.as_str(), [2, 4]),
            (&one_line, [1, 2]),
            (table, [2, 4]),
            (tabs, [2, 4]),
            (semicolons, [2, 4]),
        ] {
            let expected = vec![(lines[0], a.clone()), (lines[1], b.clone())];
            let sorted = |rows: Vec<(usize, Value)>| {
                rows.into_iter()
                    .map(|(line, row)| (line, row["prompt"].clone(), row["label"].clone()))
                    .collect::<Vec<_>>()
            };
            assert_eq!(sorted(read(text.as_bytes()).unwrap()), sorted(expected.clone()), "{text}");
            assert_eq!(sorted(read(&gzip(text.as_bytes())).unwrap()), sorted(expected), "{text}");
        }
        // Cells may hold lists.
        let messages = json!([{ "role": "user", "content": "hi" }]);
        let cell = messages.to_string().replace('"', "\"\"");
        let rows = read(format!("messages,id\n\"{cell}\",7\n").as_bytes()).unwrap();
        assert_eq!(rows, [(2, json!({ "messages": messages, "id": "7" }))]);
        // Others are text, as they stand; a header is known in any case, and may have one column.
        let rows = read(b"Prompt,Completion,id,Label\n\"{\"\"a\"\": 1}\",,,TRUE\n5\" wide,[1],,\n").unwrap();
        let first = json!({ "prompt": "{\"a\": 1}", "completion": "", "id": null, "label": true });
        assert_eq!(rows[0], (2, first));
        assert_eq!((&rows[1].1["prompt"], &rows[1].1["completion"]), (&json!("5\" wide"), &json!("[1]")));
        let rows = read(b"prompt\nHi\nHello, you\n").unwrap();
        assert_eq!(rows, [(2, json!({ "prompt": "Hi" })), (3, json!({ "prompt": "Hello, you" }))]);
        assert_eq!(read(b"[]").unwrap(), []);
        assert_eq!(read(b"prompt,completion\n\n").unwrap(), []);
    }

    #[test]
    fn mistakes_name_the_line() {
        for (text, place, found) in [
            (&b"[{},\n{}"[..], "d:2", "the end of the file"),
            (b"[{},\n{} {}]", "d:2", "found '{'"),
            (b"[{},\n\n3]", "d:3", "found a number"),
            (b"[{},\n{\"a\": }]", "d:2", "invalid JSON at column 7"),
            (b"[{}] x", "d:1", "found ']'"),
            (b"[{},\n{\"a\": \"\xff\"}]", "d:2", "an invalid byte"),
            (b"prompt,completion\na,b\nc\n", "d:3", "1 cells where the header has 2"),
            (b"prompt,completion\r\na,b\r\nc\r\n", "d:3", "1 cells where the header has 2"),
            (b"prompt,completion\na,\"b\nc,d\ne,f\n", "d:2", "found one that is not"),
            (b"[{}, {\"a\": }]", "d:1", "invalid JSON at column 12"),
            (b"prompt,prompt\na,b\n", "d:1", "\"prompt\" twice"),
            (b"prompt,label\n\"[{'role': 'user'}]\",a\n", "d:2: prompt", "a list as Python writes it"),
            (b"PAR1....", "d:", "Parquet file"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains(place) && message.contains(found), "{message}");
            assert!(message.contains("what to do: "), "{message}");
        }
    }
}
