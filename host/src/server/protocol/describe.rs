//! JSON schemas of request types, made from the types themselves: [`described!`] declares a struct and its schema at
//! once, so that `/openapi.json` cannot say what the handlers do not read. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// A type that JSON can be read into.
pub(crate) trait Describe {
    /// A field of this type must be given.
    const REQUIRED: bool = true;

    /// What JSON it reads.
    fn schema() -> Value;
}

/// Declares a struct of a request with its schema.
macro_rules! described {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        $vis struct $name {
            $($(#[$field_meta])* $field_vis $field: $type,)*
        }

        impl $crate::server::protocol::describe::Describe for $name {
            fn schema() -> serde_json::Value {
                $crate::server::protocol::describe::object([$((
                    stringify!($field),
                    <$type as $crate::server::protocol::describe::Describe>::schema(),
                    <$type as $crate::server::protocol::describe::Describe>::REQUIRED,
                ),)*])
            }
        }
    };
}

pub(crate) use described;

/// The schema of an object with these fields: name, schema, and whether it must be there. Others are refused.
pub(crate) fn object<const N: usize>(fields: [(&str, Value, bool); N]) -> Value {
    let required: Vec<&str> = fields.iter().filter(|(_, _, required)| *required).map(|(name, ..)| *name).collect();
    let properties: Map<String, Value> =
        fields.into_iter().map(|(name, schema, _)| (name.to_owned(), schema)).collect();
    let mut schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

impl<T: Describe> Describe for Option<T> {
    const REQUIRED: bool = false;

    fn schema() -> Value {
        let mut schema = T::schema();
        match schema.get("type").cloned() {
            Some(Value::String(kind)) => {
                schema["type"] = json!([kind, "null"]);
                schema
            }
            _ => json!({"anyOf": [schema, {"type": "null"}]}),
        }
    }
}

impl<T: Describe> Describe for Vec<T> {
    fn schema() -> Value {
        json!({"type": "array", "items": T::schema()})
    }
}

impl<T: Describe> Describe for BTreeMap<String, T> {
    fn schema() -> Value {
        json!({"type": "object", "additionalProperties": T::schema()})
    }
}

impl Describe for Map<String, Value> {
    fn schema() -> Value {
        json!({"type": "object"})
    }
}

impl Describe for Value {
    fn schema() -> Value {
        json!({})
    }
}

impl Describe for String {
    fn schema() -> Value {
        json!({"type": "string"})
    }
}

impl Describe for bool {
    fn schema() -> Value {
        json!({"type": "boolean"})
    }
}

impl Describe for f64 {
    fn schema() -> Value {
        json!({"type": "number"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    described! {
        struct Example {
            needed: Vec<String>,
            number: Option<f64>,
            any: Option<Value>,
        }
    }

    #[test]
    fn a_struct_is_an_object_of_its_fields() {
        let example = Example { needed: Vec::new(), number: None, any: None };
        assert!(example.needed.is_empty() && example.number.is_none() && example.any.is_none());
        let expected = json!({
            "type": "object",
            "properties": {
                "needed": {"type": "array", "items": {"type": "string"}},
                "number": {"type": ["number", "null"]},
                "any": {"anyOf": [{}, {"type": "null"}]},
            },
            "additionalProperties": false,
            "required": ["needed"],
        });
        assert_eq!(Example::schema(), expected);
    }
}
