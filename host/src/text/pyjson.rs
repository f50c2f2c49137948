//! `tojson` as chat templates expect it: Python's `json.dumps(value, ensure_ascii=False)`, not HTML-safe JSON.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Deeper values are refused instead of exhausting the stack.
const MAX_DEPTH: usize = 200;

/// How to write.
struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

/// The filter `tojson(value, ensure_ascii=false, indent=none, separators=none, *, sort_keys=false)` of transformers.
pub(super) fn tojson(
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    separators: Option<Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let argument = |name: &str, positional: Option<Value>| -> Result<Value, Error> {
        let named = kwargs.get::<Option<Value>>(name)?;
        Ok(named.or(positional).unwrap_or(Value::from(())))
    };
    let indent = match argument("indent", indent)? {
        v if v.is_none() => None,
        v if v.kind() == ValueKind::String => Some(v.to_string()),
        v => {
            let width = usize::try_from(v).ok().filter(|width| *width <= 64);
            let width = width.ok_or_else(|| invalid("tojson: indent must be a string or a number from 0 to 64"))?;
            Some(" ".repeat(width))
        }
    };
    let (item, key) = parse_separators(&argument("separators", separators)?, indent.is_some())?;
    let style = Style {
        ensure_ascii: argument("ensure_ascii", ensure_ascii)?.is_true(),
        indent,
        item,
        key,
        sort_keys: argument("sort_keys", None)?.is_true(),
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(out)
}

fn parse_separators(value: &Value, indented: bool) -> Result<(String, String), Error> {
    if value.is_none() {
        // With an indent the line break takes the place of the space.
        return Ok((if indented { "," } else { ", " }.into(), ": ".into()));
    }
    let parts: Vec<Value> = value.try_iter()?.collect();
    match parts.as_slice() {
        [item, key] if item.as_str().is_some() && key.as_str().is_some() => Ok((item.to_string(), key.to_string())),
        _ => Err(invalid("tojson: separators must be two strings")),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

impl Style {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid(format!("tojson: nested deeper than {MAX_DEPTH}")));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container(out, ['[', ']'], depth, &items, |style, out, item| style.write(out, item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut pairs = Vec::new();
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    pairs.push((self.key(&key)?, item));
                }
                if self.sort_keys {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.container(out, ['{', '}'], depth, &pairs, |style, out, (key, item)| {
                    style.string(out, key);
                    out.push_str(&style.key);
                    style.write(out, item, depth + 1)
                })?;
            }
            ValueKind::Undefined => return Err(invalid("tojson: the value is undefined")),
            kind => {
                return Err(invalid(format!("tojson: a value of type {kind} has no JSON form")));
            }
        }
        Ok(())
    }

    fn container<T>(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        depth: usize,
        items: &[T],
        write: impl Fn(&Self, &mut String, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item);
            }
            self.line(out, depth + 1);
            write(self, out, item)?;
        }
        if !items.is_empty() {
            self.line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    /// Python turns these keys into strings and refuses all others.
    fn key(&self, key: &Value) -> Result<String, Error> {
        Ok(match key.kind() {
            ValueKind::String => key.to_string(),
            ValueKind::None => "null".into(),
            ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
            ValueKind::Number => number(key),
            kind => return Err(invalid(format!("tojson: keys must be strings, not {kind}"))),
        })
    }

    fn string(&self, out: &mut String, text: &str) {
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
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => match float_repr(float).as_str() {
            "inf" => "Infinity".into(),
            "-inf" => "-Infinity".into(),
            "nan" => "NaN".into(),
            repr => repr.into(),
        },
        _ => value.to_string(),
    }
}

/// Python's `repr` of a float: the shortest digits, an exponent below 1e-4 and from 1e16 on.
pub(super) fn float_repr(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x < 0.0 { "-inf" } else { "inf" }.into();
    }
    let scientific = format!("{x:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{x}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_writes_them() {
        for (x, repr) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1.5e-5, "1.5e-05"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (-1.25e300, "-1.25e+300"),
            (5e-324, "5e-324"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(float_repr(x), repr);
        }
    }

    #[test]
    fn errors() {
        let mut env = minijinja::Environment::new();
        env.add_filter("tojson", tojson);
        for (template, part) in [
            ("{{ nothing|tojson }}", "undefined"),
            ("{{ [1]|tojson(indent=-1) }}", "indent"),
            ("{{ [1]|tojson(indent=1000000) }}", "indent"),
            ("{{ [1]|tojson(separators=(1, 2)) }}", "separators"),
            ("{{ [1]|tojson(colour=1) }}", "colour"),
            ("{{ range|tojson }}", "no JSON form"),
        ] {
            let error = env.render_str(template, ()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
