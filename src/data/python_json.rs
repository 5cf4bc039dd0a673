//! Python's `json.dumps` for the templates' `tojson` filter, byte for byte.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// The options of `json.dumps` that transformers passes on.
#[derive(Clone, Debug)]
pub struct Style {
    /// Escape everything outside printable ASCII as `\uXXXX`. transformers' default is false.
    pub ensure_ascii: bool,
    /// Spaces per level, or None to write everything on one line.
    pub indent: Option<usize>,
    /// The separators between items, and between a key and its value. None: Python's defaults.
    pub separators: Option<(String, String)>,
    /// Sort the keys of maps.
    pub sort_keys: bool,
}

/// The `tojson` filter of transformers: `tojson(ensure_ascii=False, indent=None, separators=None,
/// sort_keys=False)`.
pub fn tojson(value: &Value, ensure_ascii: Option<bool>, kwargs: Kwargs) -> Result<String, Error> {
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let style = Style {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.or(ensure_ascii).unwrap_or(false),
        indent: kwargs.get("indent")?,
        separators: separators.and_then(|s| Some((s.first()?.clone(), s.get(1)?.clone()))),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    dumps(value, &style)
}

/// `json.dumps(value)` in the given style. Fails for values that JSON cannot represent (undefined values,
/// functions).
pub fn dumps(value: &Value, style: &Style) -> Result<String, Error> {
    let mut out = String::new();
    write_value(&mut out, value, style, 0)?;
    Ok(out)
}

/// Nesting past this depth is refused: a template could otherwise overflow the stack.
const MAX_DEPTH: usize = 200;

fn write_value(out: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the value is nested too deeply"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)?),
        ValueKind::String => write_string(out, value.as_str().unwrap_or_default(), style.ensure_ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            write_items(out, ('[', ']'), items.len(), style, depth, |out, index| {
                write_value(out, &items[index], style, depth + 1)
            })?;
        }
        ValueKind::Map => {
            let mut pairs = Vec::new();
            for key in value.try_iter()? {
                pairs.push((key_text(&key)?, value.get_item(&key)?));
            }
            if style.sort_keys {
                pairs.sort_by(|a, b| a.0.cmp(&b.0));
            }
            let colon = style.separators.as_ref().map_or(": ", |s| s.1.as_str());
            write_items(out, ('{', '}'), pairs.len(), style, depth, |out, index| {
                write_string(out, &pairs[index].0, style.ensure_ascii);
                out.push_str(colon);
                write_value(out, &pairs[index].1, style, depth + 1)
            })?;
        }
        kind => {
            return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: JSON has no {kind} value")));
        }
    }
    Ok(())
}

/// The brackets, separators and line breaks around `count` items, each written by `item`.
fn write_items(
    out: &mut String,
    brackets: (char, char),
    count: usize,
    style: &Style,
    depth: usize,
    mut item: impl FnMut(&mut String, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let break_line = |out: &mut String, depth: usize| {
        if let Some(indent) = style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    // With an indent, Python's default item separator loses its space.
    let default = if style.indent.is_some() { "," } else { ", " };
    let comma = style.separators.as_ref().map_or(default, |s| s.0.as_str());
    out.push(brackets.0);
    for index in 0..count {
        if index > 0 {
            out.push_str(comma);
        }
        break_line(out, depth + 1);
        item(out, index)?;
    }
    if count > 0 {
        break_line(out, depth);
    }
    out.push(brackets.1);
    Ok(())
}

/// A map's key as JSON text: Python turns numbers, booleans and None into strings.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => number(key),
        kind => Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: a {kind} cannot be a key"))),
    }
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let float = f64::try_from(value.clone())?;
    Ok(if float.is_nan() {
        "NaN".into()
    } else if float.is_infinite() {
        if float > 0.0 { "Infinity" } else { "-Infinity" }.into()
    } else {
        float_repr(float)
    })
}

/// Python's `repr` of a finite float: the shortest digits that read back the same, with an exponent below
/// 1e-4 and from 1e16 on.
fn float_repr(float: f64) -> String {
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = float.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn write_string(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}"); // writing to a String cannot fail
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn style() -> Style {
        Style { ensure_ascii: false, indent: None, separators: None, sort_keys: false }
    }

    #[test]
    fn strings_numbers_and_maps_equal_pythons() {
        // Python: json.dumps({"b": "é\"\\\n\x01\x7f😀", "a": [1, 1.0, 1e20, 1e-5, 0.1, True, None, [], {}]},
        // ...)
        let value = Value::from_pairs([
            (Value::from("b"), Value::from("é\"\\\n\u{1}\u{7f}😀")),
            (
                Value::from("a"),
                Value::from(vec![
                    Value::from(1),
                    Value::from(1.0),
                    Value::from(1e20),
                    Value::from(1e-5),
                    Value::from(0.1),
                    Value::from(true),
                    Value::from(()),
                    Value::from(Vec::<Value>::new()),
                    Value::from_pairs(Vec::<(Value, Value)>::new()),
                ]),
            ),
        ]);
        assert_eq!(
            dumps(&value, &style()).unwrap(),
            "{\"b\": \"é\\\"\\\\\\n\\u0001\u{7f}😀\", \"a\": [1, 1.0, 1e+20, 1e-05, 0.1, true, null, [], {}]}"
        );
        let ascii = Style {
            ensure_ascii: true,
            sort_keys: true,
            separators: Some((",".into(), ":".into())),
            ..style()
        };
        assert_eq!(
            dumps(&value, &ascii).unwrap(),
            "{\"a\":[1,1.0,1e+20,1e-05,0.1,true,null,[],{}],\
             \"b\":\"\\u00e9\\\"\\\\\\n\\u0001\\u007f\\ud83d\\ude00\"}"
        );
        let nested =
            Value::from_pairs([("a", Value::from(vec![1, 2])), ("b", Value::from(Vec::<i32>::new()))]);
        let indented = Style { indent: Some(2), ..style() };
        assert_eq!(dumps(&nested, &indented).unwrap(), "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": []\n}");
    }

    #[test]
    fn undefined_is_an_error() {
        assert!(dumps(&Value::UNDEFINED, &style()).is_err());
    }
}
