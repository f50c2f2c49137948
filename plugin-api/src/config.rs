//! Typed reading of `config.json`: every error names the field, the value it has and what is accepted.
//!
//! Plugins read their configuration with [`Fields`], never by indexing into JSON. `null` counts as absent, as in
//! transformers. Fields that nobody asks for are ignored: config.json carries many that do not shape the graph.

use serde_json::{Map, Value};

use crate::{Activation, BuildError};

/// Largest value that [`Fields::size`] accepts.
pub const MAX_SIZE: usize = 1 << 31;
/// Most layers that a model may have.
pub const MAX_LAYERS: usize = 4096;
/// Largest size of an attention head.
pub const MAX_HEAD_DIM: usize = 1 << 16;

/// A JSON object and where it stands in `config.json`.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: String,
}

impl<'a> Fields<'a> {
    /// The fields of a whole `config.json`.
    pub fn new(config: &'a Value) -> Result<Fields<'a>, BuildError> {
        match config {
            Value::Object(object) => Ok(Fields { object, path: String::new() }),
            other => Err(BuildError::new(format!("config.json must be an object, it is {}", clip(other)))),
        }
    }

    /// The value of a field; `None` if it is absent or null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|v| !v.is_null())
    }

    /// Whether the field is written down, be it as null.
    pub fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    /// The names of all fields.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.object.keys().map(String::as_str)
    }

    /// An object within this one; `None` if it is absent or null.
    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>, BuildError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields { object, path: format!("{}{name}.", self.path) })),
            Some(_) => Err(self.wrong(name, "it must be an object")),
        }
    }

    /// A size or count of 1 to `limit`; `None` if absent.
    pub fn size_up_to(&self, name: &str, limit: usize) -> Result<Option<usize>, BuildError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=limit).contains(&n) => Ok(Some(n)),
            _ => Err(self.wrong(name, format!("it must be an integer from 1 to {limit}"))),
        }
    }

    /// A size or count of 1 to [`MAX_SIZE`]; `None` if absent.
    pub fn size(&self, name: &str) -> Result<Option<usize>, BuildError> {
        self.size_up_to(name, MAX_SIZE)
    }

    /// A count of 0 to [`MAX_SIZE`]; `None` if absent.
    pub fn count(&self, name: &str) -> Result<Option<usize>, BuildError> {
        if self.get(name).and_then(Value::as_u64) == Some(0) { Ok(Some(0)) } else { self.size(name) }
    }

    /// A finite number; `None` if absent.
    pub fn number(&self, name: &str) -> Result<Option<f64>, BuildError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() => Ok(Some(x)),
            _ => Err(self.wrong(name, "it must be a number")),
        }
    }

    /// A number above 0; `None` if absent.
    pub fn positive(&self, name: &str) -> Result<Option<f64>, BuildError> {
        match self.number(name)? {
            Some(x) if x <= 0.0 => Err(self.wrong(name, "it must be above 0")),
            x => Ok(x),
        }
    }

    /// The epsilon of a norm: 0 to 1; `None` if absent.
    pub fn epsilon(&self, name: &str) -> Result<Option<f32>, BuildError> {
        match self.number(name)? {
            Some(x) if !(0.0..=1.0).contains(&x) => Err(self.wrong(name, "it must be from 0 to 1")),
            x => Ok(x.map(|x| x as f32)),
        }
    }

    /// A truth value; `default` if absent.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, BuildError> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(_) => Err(self.wrong(name, "it must be true or false")),
        }
    }

    /// A string; `None` if absent.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, BuildError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(self.wrong(name, "it must be a string")),
        }
    }

    /// A list; `None` if absent.
    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>, BuildError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(_) => Err(self.wrong(name, "it must be a list")),
        }
    }

    /// An activation function by its name; `default` if absent.
    pub fn activation(&self, name: &str, default: Activation) -> Result<Activation, BuildError> {
        match self.text(name)? {
            None => Ok(default),
            Some(text) => Activation::from_hf(text)
                .ok_or_else(|| self.wrong(name, format!("known are {}", Activation::HF_NAMES.join(", ")))),
        }
    }

    /// The value, or an error that says the field is missing: `c.need("hidden_size", c.size("hidden_size")?)?`.
    pub fn need<T>(&self, name: &str, value: Option<T>) -> Result<T, BuildError> {
        value.ok_or_else(|| BuildError::new(format!("config.json: `{}{name}` is missing", self.path)))
    }

    /// A size that must be there; see [`Fields::size`].
    pub fn required_size(&self, name: &str) -> Result<usize, BuildError> {
        self.need(name, self.size(name)?)
    }

    /// `architectures[0]`.
    pub fn architecture(&self) -> Result<&'a str, BuildError> {
        let first = self.list("architectures")?.and_then(|names| names.first());
        first.and_then(Value::as_str).ok_or_else(|| BuildError::new("config.json: `architectures` names no class"))
    }

    /// Refuses any of these fields, with `reason`, unless it is absent, null, false or an empty object.
    pub fn refuse(&self, names: &[&str], reason: &str) -> Result<(), BuildError> {
        for name in names {
            match self.get(name) {
                None | Some(Value::Bool(false)) => {}
                Some(Value::Object(o)) if o.is_empty() => {}
                Some(_) => return Err(self.wrong(name, reason)),
            }
        }
        Ok(())
    }

    /// The error for a field whose value is not accepted; `expected` says what is.
    pub fn wrong(&self, name: &str, expected: impl Into<String>) -> BuildError {
        BuildError::Unsupported {
            field: format!("{}{name}", self.path),
            value: self.object.get(name).map_or_else(|| "absent".to_owned(), clip),
            reason: expected.into(),
        }
    }
}

/// JSON cut to a readable length.
fn clip(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
