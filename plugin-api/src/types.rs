//! Element types and shapes of values.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::dim::{Dim, DimError};
use crate::spec::MAX_RANK;

/// Element type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// The model's own float type, chosen at load (`--dtype`): the type of weights and activations.
    Float,
    /// At least single precision, whatever the model's type is: statistics, angles, masks.
    F32,
    /// 64-bit signed integer: token ids, positions, indices.
    I64,
    /// Truth value.
    Bool,
}

impl DType {
    /// Whether arithmetic like `exp` is defined on it.
    pub fn is_float(self) -> bool {
        matches!(self, DType::Float | DType::F32)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::Float => "float",
            DType::F32 => "f32",
            DType::I64 => "i64",
            DType::Bool => "bool",
        })
    }
}

/// Dimensions of a value, outermost first; row-major.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shape(pub Vec<Dim>);

impl Shape {
    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Number of elements.
    pub fn numel(&self) -> Result<Dim, DimError> {
        self.0.iter().try_fold(Dim::from(1i64), |n, d| n.mul(d))
    }

    /// The sizes if all are constants.
    pub fn as_consts(&self) -> Option<Vec<usize>> {
        self.0.iter().map(|d| d.as_const().and_then(|n| usize::try_from(n).ok())).collect()
    }

    /// The sizes at `T = t`, `R = r`.
    pub fn eval(&self, t: usize, r: usize) -> Result<Vec<usize>, DimError> {
        self.0.iter().map(|d| d.eval(t, r)).collect()
    }
}

impl<D: Into<Dim>> FromIterator<D> for Shape {
    fn from_iter<I: IntoIterator<Item = D>>(dims: I) -> Shape {
        Shape(dims.into_iter().map(Into::into).collect())
    }
}

impl<D: Into<Dim>, const N: usize> From<[D; N]> for Shape {
    fn from(dims: [D; N]) -> Shape {
        dims.into_iter().collect()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Type of a value: element type and shape. Printed as `float[T,64]`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Dimensions.
    pub shape: Shape,
}

impl Type {
    /// A type from its parts.
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> Type {
        Type { dtype, shape: shape.into() }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Type {
    type Err = String;

    fn from_str(text: &str) -> Result<Type, String> {
        let bad = || format!("`{text}` is not a type such as `float[T,64]`");
        let (dtype, dims) = text.strip_suffix(']').and_then(|t| t.split_once('[')).ok_or_else(bad)?;
        let dtype = match dtype {
            "float" => DType::Float,
            "f32" => DType::F32,
            "i64" => DType::I64,
            "bool" => DType::Bool,
            other => return Err(format!("unknown element type `{other}`")),
        };
        // Counted before anything is allocated for them.
        if dims.split(',').nth(MAX_RANK).is_some() {
            return Err(format!("a type of more than {MAX_RANK} dimensions"));
        }
        let dims: Result<Vec<Dim>, _> =
            if dims.is_empty() { Ok(vec![]) } else { dims.split(',').map(str::parse).collect() };
        Ok(Type { dtype, shape: Shape(dims.map_err(|e| e.to_string())?) })
    }
}
