//! TensorBoard's event file: TFRecords of protobuf messages, with only the fields that scalars need.
//!
//! A record is its length (u64), the length's masked CRC-32C, the message, and the message's masked CRC-32C
//! (tensorflow/core/lib/io/record_writer.h). An Event has `wall_time` (1, double), `step` (2, int64),
//! `file_version` (3, string) and `summary` (5); a Summary has values (1) of `tag` (1) and `simple_value` (2,
//! float) (tensorflow/core/util/event.proto, framework/summary.proto).

use std::path::Path;

use web_time::{SystemTime, UNIX_EPOCH};

use aweigh::error::{Error, Result};
use aweigh::files::{EVENTS, Lines, disk, entries};
use aweigh::train::Metrics;

/// An open event file, to which events are appended.
#[derive(Debug)]
pub struct Events(Lines);

impl Events {
    /// Creates an event file in `folder`.
    fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(format!("{EVENTS}{}.aweigh", now() as u64));
        let mut events = Self(Lines::create(path)?);
        let mut first = Vec::new();
        double(&mut first, 1, now());
        bytes(&mut first, 3, b"brain.Event:2");
        events.record(&first)?;
        Ok(events)
    }

    /// Continues the event file in `folder` and drops events after `step`. Without a step, or if there is no
    /// file, starts a new one.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be read or written.
    pub fn resume(folder: &Path, step: Option<usize>) -> Result<Self> {
        let mut names = entries(folder, "--output-dir")?;
        names.retain(|name| name.starts_with(EVENTS));
        let Some(path) = names.iter().max().map(|name| folder.join(name)) else {
            return Self::create(folder);
        };
        let Some(step) = step else {
            disk::remove_file(&path).map_err(|e| Error::io(&path, "remove", e))?;
            return Self::create(folder);
        };
        let old = disk::read(&path).map_err(|e| Error::io(&path, "read", e))?;
        let mut kept = Vec::new();
        let mut rest = &old[..];
        while let Some((record, after)) = next_record(rest) {
            // The step's field follows the wall time (9 bytes); the file's first event has no step.
            let message = &record[12..record.len() - 4];
            let of_step = message.get(9) == Some(&(2 << 3));
            if !of_step || read_varint(&message[10..]) <= step as u64 {
                kept.extend(record);
            }
            rest = after;
        }
        if kept.is_empty() { Self::create(folder) } else { Ok(Self(Lines::behind(path, &kept)?)) }
    }

    /// Writes the metrics of a step. Each one's tag is `prefix` and its name without "eval_".
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be written.
    pub fn push(&mut self, prefix: &str, metrics: &Metrics) -> Result<()> {
        let step = metrics.get("global_step").unwrap_or(0.0) as u64;
        let mut summary = Vec::new();
        for (name, value) in metrics.0.iter().filter(|(name, _)| name != "global_step") {
            let mut one = Vec::new();
            let name = name.strip_prefix("eval_").unwrap_or(name);
            bytes(&mut one, 1, format!("{prefix}{name}").as_bytes());
            one.push(2 << 3 | 5);
            one.extend((*value as f32).to_le_bytes());
            bytes(&mut summary, 1, &one);
        }
        let mut event = Vec::new();
        double(&mut event, 1, now());
        event.push(2 << 3);
        varint(&mut event, step);
        bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, message: &[u8]) -> Result<()> {
        let length = (message.len() as u64).to_le_bytes();
        let record = [&length[..], &masked(&length), message, &masked(message)].concat();
        self.0.push_bytes(&record)
    }
}

/// The first record of `bytes`, and the bytes after it; `None` if the record is incomplete.
fn next_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let end = usize::try_from(length).ok()?.checked_add(16)?;
    Some((bytes.get(..end)?, &bytes[end..]))
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn read_varint(bytes: &[u8]) -> u64 {
    let mut value = 0;
    for (i, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

fn double(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend(value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

/// CRC-32C (Castagnoli), masked as in TFRecords: rotated right by 15 bits, plus a constant.
fn masked(data: &[u8]) -> [u8; 4] {
    let mut crc = !0u32;
    for &byte in data {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (!(crc & 1)).wrapping_add(1));
        }
    }
    ((!crc).rotate_right(15).wrapping_add(0xa282_ead8)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_known_checksums() {
        // The CRC-32C of "123456789" is 0xe3069283.
        let mask = 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked(b"123456789"), mask.to_le_bytes());
    }

    #[test]
    fn a_file_begins_with_its_version_and_grows_by_records() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::resume(folder.path(), None).unwrap();
        events.push("train/", &Metrics(vec![("loss".into(), 0.5), ("global_step".into(), 300.0)])).unwrap();
        let name = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let all = std::fs::read(name).unwrap();
        let mut records = Vec::new();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked(&rest[..8]));
            assert_eq!(rest[12 + length..16 + length], masked(&rest[12..12 + length]));
            records.push(&rest[12..12 + length]);
            rest = &rest[16 + length..];
        }
        assert_eq!(records.len(), 2);
        assert!(records[0].ends_with(b"brain.Event:2"));
        // Step 300, then the one value: tag, and 0.5 as a float.
        assert_eq!(records[1][9..12], [0x10, 0xac, 0x02]);
        assert!(
            records[1].ends_with(&[b"\x0a\x0atrain/loss\x15".as_slice(), &0.5f32.to_le_bytes()].concat())
        );
    }

    #[test]
    fn a_file_goes_on_after_a_step() {
        let folder = tempfile::tempdir().unwrap();
        let figures = |step: f64| Metrics(vec![("loss".into(), step), ("global_step".into(), step)]);
        let file = || std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let mut events = Events::resume(folder.path(), None).unwrap();
        let mut lengths = Vec::new();
        for step in [1.0, 200.0, 201.0] {
            events.push("train/", &figures(step)).unwrap();
            lengths.push(std::fs::read(file()).unwrap().len());
        }
        drop(events);
        let whole = std::fs::read(file()).unwrap();
        std::fs::write(file(), &whole[..whole.len() - 3]).unwrap();
        let mut events = Events::resume(folder.path(), Some(200)).unwrap();
        assert_eq!(std::fs::read(file()).unwrap(), whole[..lengths[1]]);
        events.push("train/", &figures(201.0)).unwrap();
        assert_eq!(std::fs::read(file()).unwrap().len(), lengths[2]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
