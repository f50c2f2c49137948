//! Which fields a request may have. Three kinds: those of the raw type (read from the type itself, so there is no
//! second list to forget), those of the OpenAI and vLLM APIs that we know but do not support (refused by name
//! unless they are given with the value that changes nothing), and unknown ones (refused, with the nearest known
//! name). It never looks at what supported fields contain.

use serde::de::{self, Deserialize, DeserializeOwned, Visitor};
use serde_json::{Map, Value};

use crate::server::error::ApiError;

/// A raw request type: what it is, and which fields of its API it knows but does not support.
pub(crate) trait RawRequest: DeserializeOwned {
    /// Known but unsupported fields.
    const UNSUPPORTED: &'static [Unsupported];
}

/// A known field that is refused unless it is null or satisfies `harmless`.
#[derive(Clone, Copy)]
pub(crate) struct Unsupported {
    /// The field's name.
    pub(crate) name: &'static str,
    /// Whether this value asks for nothing that we do not do.
    pub(crate) harmless: fn(&Value) -> bool,
    /// What to do instead; may be empty.
    pub(crate) hint: &'static str,
}

impl Unsupported {
    /// Refused whatever its value (but null).
    pub(crate) const fn always(name: &'static str) -> Self {
        Self { name, harmless: |_| false, hint: "" }
    }

    /// Accepted where `harmless` holds.
    pub(crate) const fn unless(name: &'static str, harmless: fn(&Value) -> bool) -> Self {
        Self { name, harmless, hint: "" }
    }

    /// Refused, with advice.
    pub(crate) const fn hint(name: &'static str, harmless: fn(&Value) -> bool, hint: &'static str) -> Self {
        Self { name, harmless, hint }
    }
}

/// Refuses every field of `object` that `T` does not have.
pub(crate) fn check<T: RawRequest>(object: &Map<String, Value>) -> Result<(), ApiError> {
    let known = names_of::<T>();
    for (name, value) in object {
        if known.contains(&name.as_str()) {
            continue;
        }
        match T::UNSUPPORTED.iter().find(|field| field.name == name) {
            Some(field) if value.is_null() || (field.harmless)(value) => {}
            Some(field) => {
                let shown = shorten(value);
                let mut message = format!("{name} is not supported by this server (given: {shown}); leave it out");
                if !field.hint.is_empty() {
                    message = format!("{message}, or {}", field.hint);
                }
                return Err(ApiError::field(name, message));
            }
            None => {
                let candidates = known.iter().copied().chain(T::UNSUPPORTED.iter().map(|field| field.name));
                let advice = match nearest(name, candidates) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("known fields: {}", known.join(", ")),
                };
                return Err(ApiError::field(name, format!("{name} is an unknown field; {advice}")));
            }
        }
    }
    Ok(())
}

/// A value as an error message shows it.
pub(crate) fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The candidate closest to `name`, if any is close enough to be a likely misspelling.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A very long name is no misspelling, and the distance costs its length times the candidate's.
    if name.len() > 64 {
        return None;
    }
    let allowed = (name.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(d, _)| *d <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance, case folded.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let cost = if ca == *cb { diagonal } else { 1 + diagonal.min(row[j]).min(row[j + 1]) };
            diagonal = row[j + 1];
            row[j + 1] = cost;
        }
    }
    row[b.len()]
}

/// The field names that `T`'s derived `Deserialize` reads.
pub(crate) fn names_of<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut fields: &'static [&'static str] = &[];
    // The derive asks its deserialiser for a struct and says which fields; that is all we want to hear.
    let _ = T::deserialize(FieldNames(&mut fields));
    fields
}

struct FieldNames<'a>(&'a mut &'static [&'static str]);

impl<'de> de::Deserializer<'de> for FieldNames<'_> {
    type Error = de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("only structs have field names"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        Err(de::Error::custom("names taken"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_misspellings_only() {
        let known = ["temperature", "max_tokens", "top_p"];
        assert_eq!(nearest("temprature", known.into_iter()), Some("temperature"));
        assert_eq!(nearest("maxTokens", known.into_iter()), Some("max_tokens"));
        assert_eq!(nearest("frobnicate", known.into_iter()), None);
        assert_eq!(nearest("", known.into_iter()), None);
    }
}
