//! The header of a safetensors file: parsed and checked completely before any byte of a tensor is used.
//!
//! The safetensors crate checks offsets too, but it names no tensor in most errors and keeps the last of two tensors
//! with one name; here every fault names the tensor. Nothing is read beyond the header.

use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// Larger headers are refused, as in the reference implementation.
pub(super) const MAX_HEADER: u64 = 100_000_000;

macro_rules! dtypes {
    ($($variant:ident $name:literal $size:literal $doc:literal;)*) => {
        /// Element type of a tensor, as stored.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[allow(missing_docs)]
        pub enum Dtype { $(#[doc = $doc] $variant,)* }

        impl Dtype {
            /// Bytes of one element.
            pub fn size(self) -> usize {
                match self { $(Self::$variant => $size,)* }
            }

            /// The name in safetensors files, such as `BF16`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The type of that name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }

            const NAMES: &'static [&'static str] = &[$($name,)*];
        }
    };
}

dtypes! {
    F64 "F64" 8 "64-bit float.";
    F32 "F32" 4 "32-bit float.";
    F16 "F16" 2 "IEEE half.";
    BF16 "BF16" 2 "bfloat16.";
    F8E4M3 "F8_E4M3" 1 "8-bit float, 4 exponent bits.";
    F8E5M2 "F8_E5M2" 1 "8-bit float, 5 exponent bits.";
    F8E8M0 "F8_E8M0" 1 "8-bit power of two: scales of microscaling formats.";
    I64 "I64" 8 "64-bit integer.";
    I32 "I32" 4 "32-bit integer.";
    I16 "I16" 2 "16-bit integer.";
    I8 "I8" 1 "8-bit integer.";
    U64 "U64" 8 "64-bit unsigned integer.";
    U32 "U32" 4 "32-bit unsigned integer.";
    U16 "U16" 2 "16-bit unsigned integer.";
    U8 "U8" 1 "Byte.";
    BOOL "BOOL" 1 "One byte, 0 or 1.";
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One tensor of a checked header; `begin..end` are offsets in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorInfo {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) begin: usize,
    pub(super) end: usize,
}

/// A fault of a header; `tensor` is the tensor at fault, if it is one tensor's.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) tensor: Option<String>,
    pub(super) message: String,
}

fn whole(message: impl Into<String>) -> Fault {
    Fault {
        tensor: None,
        message: message.into(),
    }
}

fn of(tensor: &str, message: impl Into<String>) -> Fault {
    Fault {
        tensor: Some(tensor.into()),
        message: message.into(),
    }
}

/// Checks the file's header and returns its tensors in storage order.
pub(super) fn parse(file: &[u8]) -> Result<Vec<TensorInfo>, Fault> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(whole(format!(
            "{} bytes are no safetensors file: its header length alone takes 8",
            file.len()
        )));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(whole(format!(
            "the header is said to have {length} bytes, the limit is {MAX_HEADER}: this is no safetensors file"
        )));
    }
    // The limit makes the conversion exact.
    let Some(header) = rest.get(..length as usize) else {
        return Err(whole(format!(
            "the file is cut off: its header has {length} bytes, only {} follow; fetch it again",
            rest.len()
        )));
    };
    let start = 8 + header.len();
    let mut tensors = Vec::new();
    for (name, value) in entries(header)? {
        if name == "__metadata__" {
            check_metadata(&value)?;
        } else {
            tensors.push(tensor(name, &value)?);
        }
    }
    tensors.sort_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
    check_layout(&tensors, file.len() - start)?;
    for tensor in &mut tensors {
        tensor.begin += start;
        tensor.end += start;
    }
    Ok(tensors)
}

/// The header's entries in order; two of one name are a fault.
fn entries(header: &[u8]) -> Result<Vec<(String, Value)>, Fault> {
    struct Entries;
    impl<'de> Visitor<'de> for Entries {
        type Value = (Vec<(String, Value)>, Option<String>);

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of tensors")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut seen = std::collections::HashSet::new();
            let (mut entries, mut twice) = (Vec::new(), None);
            while let Some((name, value)) = map.next_entry::<String, Value>()? {
                if !seen.insert(name.clone()) {
                    twice.get_or_insert(name.clone());
                }
                entries.push((name, value));
            }
            Ok((entries, twice))
        }
    }
    let mut json = serde_json::Deserializer::from_slice(header);
    let parsed = json
        .deserialize_map(Entries)
        .and_then(|entries| json.end().map(|()| entries));
    let (entries, twice) =
        parsed.map_err(|e| whole(format!("the header is not valid JSON: {e}")))?;
    match twice {
        Some(name) => Err(of(&name, "appears twice in the header")),
        None => Ok(entries),
    }
}

fn check_metadata(value: &Value) -> Result<(), Fault> {
    let fine = value
        .as_object()
        .is_some_and(|map| map.values().all(Value::is_string));
    if fine {
        Ok(())
    } else {
        Err(whole("\"__metadata__\" must be an object of strings"))
    }
}

/// One entry, with what can be checked about it alone.
fn tensor(name: String, value: &Value) -> Result<TensorInfo, Fault> {
    let dtype = value
        .get("dtype")
        .and_then(Value::as_str)
        .ok_or_else(|| of(&name, "\"dtype\" must be a string"))?;
    let dtype = Dtype::from_name(dtype).ok_or_else(|| {
        of(
            &name,
            format!(
                "dtype \"{dtype}\" is not supported (supported: {})",
                Dtype::NAMES.join(", ")
            ),
        )
    })?;
    let numbers = |field: &str| -> Option<Vec<usize>> {
        let list = value.get(field)?.as_array()?;
        list.iter()
            .map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok()))
            .collect()
    };
    let shape = numbers("shape")
        .ok_or_else(|| of(&name, "\"shape\" must be a list of non-negative integers"))?;
    let offsets = numbers("data_offsets");
    let Some([begin, end]) = offsets.as_deref() else {
        return Err(of(
            &name,
            "\"data_offsets\" must be two non-negative integers",
        ));
    };
    let (begin, end) = (*begin, *end);
    if end < begin {
        return Err(of(
            &name,
            format!("\"data_offsets\" run backwards: [{begin}, {end}]"),
        ));
    }
    let bytes = shape
        .iter()
        .try_fold(dtype.size(), |n, d| n.checked_mul(*d));
    let bytes = bytes.ok_or_else(|| of(&name, format!("shape {shape:?} overflows")))?;
    if bytes != end - begin {
        return Err(of(
            &name,
            format!(
                "shape {shape:?} of {dtype} needs {bytes} bytes, \"data_offsets\" [{begin}, {end}] hold {}",
                end - begin
            ),
        ));
    }
    Ok(TensorInfo {
        name,
        dtype,
        shape,
        begin,
        end,
    })
}

/// Tensors, sorted by offset, must cover the data exactly once.
fn check_layout(tensors: &[TensorInfo], data: usize) -> Result<(), Fault> {
    let (mut covered, mut previous) = (0, "");
    for tensor in tensors {
        if tensor.end > data {
            return Err(of(
                &tensor.name,
                format!(
                    "ends at byte {} of the data, the file has {data}: it is cut off; fetch it again",
                    tensor.end
                ),
            ));
        }
        if tensor.begin < covered {
            return Err(of(&tensor.name, format!("overlaps tensor \"{previous}\"")));
        }
        if tensor.begin > covered {
            return Err(of(
                &tensor.name,
                format!("{} unused bytes lie before it", tensor.begin - covered),
            ));
        }
        (covered, previous) = (tensor.end, &tensor.name);
    }
    if covered != data {
        return Err(whole(format!(
            "{} bytes follow the last tensor",
            data - covered
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(vec![7; data]);
        file
    }

    fn fault(file: &[u8]) -> (Option<String>, String) {
        let fault = parse(file).unwrap_err();
        (fault.tensor, fault.message)
    }

    const PAIR: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},
        "a":{"dtype":"I8","shape":[4,1],"data_offsets":[0,4]}}"#;

    #[test]
    fn good_headers() {
        let tensors = parse(&file(PAIR, 12)).unwrap();
        let start = 8 + PAIR.len();
        assert_eq!(
            tensors[0],
            TensorInfo {
                name: "a".into(),
                dtype: Dtype::I8,
                shape: vec![4, 1],
                begin: start,
                end: start + 4
            }
        );
        assert_eq!(
            (tensors[1].name.as_str(), tensors[1].end),
            ("b", start + 12)
        );
        assert!(parse(&file("{}", 0)).unwrap().is_empty());
        let scalar = parse(&file(
            r#"{"x":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}}   "#,
            2,
        ))
        .unwrap();
        assert!(scalar[0].shape.is_empty());
        let empty = r#"{"x":{"dtype":"F32","shape":[0,9],"data_offsets":[0,0]},"y":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        assert_eq!(parse(&file(empty, 1)).unwrap().len(), 2);
    }

    #[test]
    fn every_fault_of_the_file() {
        assert!(fault(b"").1.contains("0 bytes"));
        assert!(fault(b"1234567").1.contains("7 bytes"));
        assert!(
            fault(&u64::MAX.to_le_bytes())
                .1
                .contains("limit is 100000000")
        );
        assert!(
            fault(&[&100_000_001u64.to_le_bytes()[..], b"{}"].concat())
                .1
                .contains("limit is 100000000")
        );
        assert!(
            fault(&[&9u64.to_le_bytes()[..], b"{}"].concat())
                .1
                .contains("cut off")
        );
        assert!(
            fault(&file("{\"a\": nonsense}", 0))
                .1
                .contains("not valid JSON")
        );
        assert!(fault(&file("[]", 0)).1.contains("not valid JSON"));
        assert!(fault(&file("{} {}", 0)).1.contains("not valid JSON"));
        assert!(
            fault(&file("{\"\u{0}\":1}", 0))
                .1
                .contains("not valid JSON")
        );
        assert!(fault(&file("\u{fffd}", 0)).1.contains("not valid JSON"));
        assert!(
            fault(&[&2u64.to_le_bytes()[..], b"\xff\xfe"].concat())
                .1
                .contains("not valid JSON")
        );
        assert!(
            fault(&file(r#"{"__metadata__":{"n":1}}"#, 0))
                .1
                .contains("__metadata__")
        );
        assert!(fault(&file(PAIR, 13)).1.contains("1 bytes follow"));
    }

    #[test]
    fn every_fault_of_a_tensor() {
        let one = |tensor: &str, data| fault(&file(&format!(r#"{{"w":{tensor}}}"#), data));
        for (tensor, part) in [
            (
                r#"{"dtype":"F4","shape":[2],"data_offsets":[0,1]}"#,
                "dtype \"F4\" is not supported",
            ),
            (
                r#"{"dtype":7,"shape":[2],"data_offsets":[0,1]}"#,
                "\"dtype\" must be a string",
            ),
            (
                r#"{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}"#,
                "\"shape\" must be",
            ),
            (
                r#"{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}"#,
                "\"shape\" must be",
            ),
            (
                r#"{"dtype":"U8","data_offsets":[0,1]}"#,
                "\"shape\" must be",
            ),
            (r#"{"dtype":"U8","shape":[1]}"#, "\"data_offsets\" must be"),
            (
                r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}"#,
                "\"data_offsets\" must be",
            ),
            (
                r#"{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}"#,
                "\"data_offsets\" must be",
            ),
            (
                r#"{"dtype":"U8","shape":[1],"data_offsets":[1,0]}"#,
                "run backwards",
            ),
            (
                r#"{"dtype":"F32","shape":[2],"data_offsets":[0,7]}"#,
                "needs 8 bytes",
            ),
            (
                r#"{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,1]}"#,
                "overflows",
            ),
            (
                r#"{"dtype":"U8","shape":[9],"data_offsets":[0,9]}"#,
                "cut off",
            ),
            (
                r#"{"dtype":"U8","shape":[1],"data_offsets":[2,3]}"#,
                "2 unused bytes",
            ),
            ("null", "\"dtype\" must be"),
        ] {
            let (name, message) = one(tensor, 3);
            assert_eq!(name.as_deref(), Some("w"), "{tensor}");
            assert!(message.contains(part), "{tensor}: {message}");
        }
        let two = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;
        let (name, message) = fault(&file(two, 3));
        assert_eq!(
            (name.as_deref(), message.as_str()),
            (Some("b"), "overlaps tensor \"a\"")
        );
        let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        let (name, message) = fault(&file(twice, 2));
        assert_eq!(
            (name.as_deref(), message.as_str()),
            (Some("a"), "appears twice in the header")
        );
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = parse(&[&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat());
        }
    }
}
