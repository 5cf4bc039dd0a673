//! Parquet files as rows of JSON objects: lists become lists and structs objects, as Hugging Face's datasets
//! show them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Map, Value};

use super::jsonl::ReadLimits;
use crate::error::{Error, Result};

/// The first bytes of a Parquet file.
pub(super) const MAGIC: &[u8] = b"PAR1";

/// Calls `each` with the number (from 1) and the object of every row.
///
/// # Errors
/// A damaged file or one over the limits, a compression that is not supported, and whatever `each` returns.
pub(super) fn read_parquet(
    bytes: &[u8],
    origin: &str,
    limits: ReadLimits,
    each: &mut dyn FnMut(usize, Map<String, Value>) -> Result<()>,
) -> Result<()> {
    let damaged = |found: &dyn std::fmt::Display| {
        let fix = "copy or download the file again, or convert it to JSONL, as datasets' `to_json` does";
        Error::input(origin, "a readable Parquet file", found, fix)
    };
    let failed = |error: ParquetError| match error {
        ParquetError::General(text) if text.contains("feature") => {
            let fix = "write it with another compression (snappy, gzip or none), or as JSONL";
            Error::input(origin, "a Parquet file in a known compression", text, fix)
        }
        error => damaged(&error),
    };
    let open = || {
        let reader = SerializedFileReader::new(Bytes::copy_from_slice(bytes)).map_err(failed)?;
        let sizes = reader.metadata().row_groups().iter().map(|group| group.total_byte_size().max(0) as u64);
        let size = sizes.fold(0, u64::saturating_add);
        if size > limits.total_bytes {
            let expected = format!("at most {} bytes of data", limits.total_bytes);
            let fix = "split the file, or take a sample of it";
            return Err(Error::input(origin, expected, size, fix));
        }
        Ok(reader)
    };
    let reader = guarded(&damaged, open)?;
    let mut rows = guarded(&damaged, || reader.get_row_iter(None).map_err(failed))?;
    let mut total = 0;
    for number in 1.. {
        let mut next = || rows.next().transpose().map_err(failed);
        let row = guarded(&damaged, || next().map(|row| row.map(|row| row.to_json_value())))?;
        match row {
            Some(Value::Object(map)) => {
                // A dictionary makes a small file of large rows.
                let own: u64 = map.values().map(size).sum();
                total += own;
                if own > limits.line_bytes || total > limits.total_bytes {
                    let expected = format!(
                        "at most {} bytes in a row and {} in all",
                        limits.line_bytes, limits.total_bytes
                    );
                    let fix = "split the file, or take a sample of it";
                    return Err(Error::input(format!("{origin}:{number}"), expected, "more", fix));
                }
                each(number, map.into_iter().map(|(name, value)| (name, without_nulls(value))).collect())?;
            }
            Some(_) | None => return Ok(()),
        }
    }
    Ok(())
}

/// The result of `read`. The reader is made for files that are whole: some damage makes it panic.
fn guarded<T>(
    damaged: &dyn Fn(&dyn std::fmt::Display) -> Error,
    read: impl FnOnce() -> Result<T>,
) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(damaged(&"a damaged one")))
}

/// The bytes of a value's texts, and some for each other value.
fn size(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(list) => 8 + list.iter().map(size).sum::<u64>(),
        Value::Object(map) => map.iter().map(|(name, value)| name.len() as u64 + size(value)).sum(),
        _ => 8,
    }
}

/// `value` without the fields of its objects that are null. In Parquet every struct has all fields: null is
/// what JSON leaves out.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let there = map.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(there.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        Value::Array(list) => list.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::parse_rows;
    use parquet::data_type::{BoolType, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    /// Two rows in TRL's unpaired form: texts and a verdict.
    fn file() -> Vec<u8> {
        let schema = "message rows { required binary prompt (UTF8); optional binary completion (UTF8);
            required boolean label; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut bytes = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut bytes, schema, Default::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let texts = |texts: [&str; 2]| texts.map(|text| text.into());
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts(["a", "b"]), None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts(["x", "y"]), Some(&[1, 1]), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<BoolType>().write_batch(&[false, true], None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        bytes
    }

    #[test]
    fn rows_are_read() {
        let rows = parse_rows(&file(), "rows.parquet", None).unwrap().rows;
        let told: Vec<_> = rows.iter().map(|row| (row.line, row.prompt.last_text(), row.label)).collect();
        assert_eq!(told, [(1, "a", Some(false)), (2, "b", Some(true))]);
        assert_eq!(rows[0].negative().unwrap().text(), "x");
    }

    #[test]
    fn large_rows_are_refused() {
        let read = |line_bytes, total_bytes| {
            let limits = ReadLimits { line_bytes, total_bytes };
            read_parquet(&file(), "rows.parquet", limits, &mut |_, _| Ok(())).map_err(|e| e.to_string())
        };
        assert_eq!(read(10, 1000), Ok(()));
        assert!(read(9, 1000).unwrap_err().starts_with("rows.parquet:1: expected at most 9 bytes in a row"));
        assert!(read(10, 19).is_err());
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let whole = file();
        for end in 4..whole.len() {
            let error = parse_rows(&whole[..end], "rows.parquet", None).unwrap_err().to_string();
            assert!(error.starts_with("rows.parquet: expected a readable Parquet file"), "{end}: {error}");
        }
    }

    #[test]
    fn nulls_inside_structs_are_absent() {
        let value = serde_json::json!([{ "role": "user", "name": null, "parts": [{ "x": null }, null] }]);
        assert_eq!(without_nulls(value), serde_json::json!([{ "role": "user", "parts": [{}, null] }]));
    }
}
