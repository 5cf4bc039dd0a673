//! Metadata values.

use super::Damage;
use super::cursor::Cursor;

/// The most levels of arrays within arrays. Files have at most two; deep nesting could overflow the stack.
const MAX_DEPTH: usize = 4;

/// GGUF's number for the type of an array.
const ARRAY: u32 = 9;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // The names are enough.
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    /// Elements of one type.
    Array(Vec<Value>),
}

impl Value {
    /// GGUF's number of the value's type.
    pub(super) fn number(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Array(_) => ARRAY,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    /// The whole number, if it is one and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(n) => Some(n.into()),
            Self::U16(n) => Some(n.into()),
            Self::U32(n) => Some(n.into()),
            Self::U64(n) => Some(n),
            Self::I8(n) => n.try_into().ok(),
            Self::I16(n) => n.try_into().ok(),
            Self::I32(n) => n.try_into().ok(),
            Self::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// The number, whole or not; 64-bit whole numbers are rounded.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(x) => Some(x.into()),
            Self::F64(x) => Some(x),
            Self::I8(n) => Some(n.into()),
            Self::I16(n) => Some(n.into()),
            Self::I32(n) => Some(n.into()),
            Self::I64(n) => Some(n as f64),
            _ => self.as_u64().map(|n| n as f64),
        }
    }

    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    /// The boolean, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(truth) = self { Some(*truth) } else { None }
    }

    /// The elements, if it is an array.
    pub fn as_array(&self) -> Option<&[Value]> {
        if let Self::Array(elements) = self { Some(elements) } else { None }
    }

    /// GGUF's name of the value's type, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::U8(_) => "u8",
            Self::I8(_) => "i8",
            Self::U16(_) => "u16",
            Self::I16(_) => "i16",
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::U64(_) => "u64",
            Self::I64(_) => "i64",
            Self::F32(_) => "f32",
            Self::F64(_) => "f64",
            Self::Bool(_) => "bool",
            Self::String(_) => "string",
            Self::Array(_) => "array",
        }
    }

    /// The value in a few words, for messages: long strings are cut, arrays counted.
    pub fn brief(&self) -> String {
        match self {
            Self::String(text) if text.chars().count() > 60 => {
                let start: String = text.chars().take(60).collect();
                format!("{start:?}... ({} bytes)", text.len())
            }
            Self::String(text) => format!("{text:?}"),
            Self::Array(elements) => {
                let kind = elements.first().map_or("nothing", Value::type_name);
                format!("{} of {kind}", elements.len())
            }
            Self::Bool(truth) => truth.to_string(),
            Self::F32(x) => x.to_string(),
            Self::F64(x) => x.to_string(),
            Self::I8(_) | Self::I16(_) | Self::I32(_) | Self::I64(_) => {
                self.as_f64().unwrap_or_default().to_string()
            }
            _ => self.as_u64().unwrap_or_default().to_string(),
        }
    }

    /// Reads a type and a value of that type.
    pub(super) fn read(cursor: &mut Cursor) -> Result<Self, Damage> {
        let kind = cursor.u32("a metadata type")?;
        Self::read_as(cursor, kind, 0)
    }

    fn read_as(cursor: &mut Cursor, kind: u32, depth: usize) -> Result<Self, Damage> {
        let what = "a metadata value";
        Ok(match kind {
            0 => Self::U8(u8::from_le_bytes(cursor.array(what)?)),
            1 => Self::I8(i8::from_le_bytes(cursor.array(what)?)),
            2 => Self::U16(u16::from_le_bytes(cursor.array(what)?)),
            3 => Self::I16(i16::from_le_bytes(cursor.array(what)?)),
            4 => Self::U32(u32::from_le_bytes(cursor.array(what)?)),
            5 => Self::I32(i32::from_le_bytes(cursor.array(what)?)),
            6 => Self::F32(f32::from_le_bytes(cursor.array(what)?)),
            7 => match cursor.array::<1>(what)? {
                [0] => Self::Bool(false),
                [1] => Self::Bool(true),
                [other] => return Err(Damage::new("a boolean, 0 or 1", other.to_string())),
            },
            8 => Self::String(cursor.string(what)?),
            ARRAY => Self::read_array(cursor, depth)?,
            10 => Self::U64(u64::from_le_bytes(cursor.array(what)?)),
            11 => Self::I64(i64::from_le_bytes(cursor.array(what)?)),
            12 => Self::F64(f64::from_le_bytes(cursor.array(what)?)),
            other => return Err(Damage::new("a metadata type from 0 to 12", other.to_string())),
        })
    }

    fn read_array(cursor: &mut Cursor, depth: usize) -> Result<Self, Damage> {
        if depth == MAX_DEPTH {
            return Err(Damage::new(format!("arrays at most {MAX_DEPTH} deep"), "a deeper one"));
        }
        let kind = cursor.u32("an array's element type")?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            ARRAY => 12,
            other => return Err(Damage::new("an array's element type from 0 to 12", other.to_string())),
        };
        let len = cursor.u64("an array's length")?;
        let len = cursor.elements(len, least)?;
        // The elements' least size in the file bounds the memory that is allocated here.
        let mut elements = Vec::with_capacity(len);
        for _ in 0..len {
            elements.push(Self::read_as(cursor, kind, depth + 1)?);
        }
        Ok(Self::Array(elements))
    }
}
