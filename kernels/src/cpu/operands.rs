//! What kernels read and write: strided f32 rows, and weights in the checkpoint's dtype. Only views and their checks.

use half::{bf16, f16};

use super::KernelError;
use super::error::check_eq;
use super::gemm::QuantisedRef;

/// A read-only matrix of f32: `rows` rows of `cols` elements, `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// At least `(rows - 1) * stride + cols` elements.
    pub data: &'a [f32],
    /// Number of rows; may be 0.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Distance from one row to the next, in elements; at least `cols`.
    pub stride: usize,
}

/// As [`Rows`], to be written.
#[derive(Debug)]
pub struct RowsMut<'a> {
    /// At least `(rows - 1) * stride + cols` elements.
    pub data: &'a mut [f32],
    /// Number of rows; may be 0.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Distance from one row to the next, in elements; at least `cols`.
    pub stride: usize,
}

fn check_rows(argument: &'static str, len: usize, rows: usize, cols: usize, stride: usize) -> Result<(), KernelError> {
    if stride < cols {
        return Err(KernelError::Stride { argument, stride, cols });
    }
    let needed = match rows.checked_sub(1) {
        None => 0,
        Some(before) => before.checked_mul(stride).and_then(|n| n.checked_add(cols)).unwrap_or(usize::MAX),
    };
    if len < needed {
        return Err(KernelError::TooShort { argument, needed, got: len });
    }
    Ok(())
}

impl<'a> Rows<'a> {
    /// Rows without gaps.
    pub fn dense(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self { data, rows, cols, stride: cols }
    }

    /// Rows `stride` elements apart: for a part of wider rows, pass the slice that starts at its first element.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        Self { data, rows, cols, stride }
    }

    pub(crate) fn check(&self, argument: &'static str) -> Result<(), KernelError> {
        check_rows(argument, self.data.len(), self.rows, self.cols, self.stride)
    }

    pub(crate) fn check_shape(&self, argument: &'static str, rows: usize, cols: usize) -> Result<(), KernelError> {
        check_eq(argument, "number of rows", rows, self.rows)?;
        check_eq(argument, "number of columns", cols, self.cols)?;
        self.check(argument)
    }

    /// Row `index`. The shape was checked.
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> &'a [f32] {
        &self.data[index * self.stride..][..self.cols]
    }
}

impl<'a> RowsMut<'a> {
    /// Rows without gaps.
    pub fn dense(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self { data, rows, cols, stride: cols }
    }

    /// Rows `stride` elements apart: for a part of wider rows, pass the slice that starts at its first element.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        Self { data, rows, cols, stride }
    }

    /// The same view, read-only.
    pub fn as_rows(&self) -> Rows<'_> {
        Rows { data: self.data, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    pub(crate) fn check(&self, argument: &'static str) -> Result<(), KernelError> {
        check_rows(argument, self.data.len(), self.rows, self.cols, self.stride)
    }

    pub(crate) fn check_shape(&self, argument: &'static str, rows: usize, cols: usize) -> Result<(), KernelError> {
        self.as_rows().check_shape(argument, rows, cols)
    }

    /// For several threads that each write their own part.
    pub(crate) fn share(&mut self) -> SharedRows {
        SharedRows { data: self.data.as_mut_ptr(), rows: self.rows, cols: self.cols, stride: self.stride }
    }
}

/// Rows that several threads write, each its own part. The slice behind it is borrowed for as long as the pool runs:
/// it is made from a `&mut` argument of the entry, which returns only after the pool is done.
#[derive(Clone, Copy)]
pub(crate) struct SharedRows {
    data: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
}

// SAFETY: it is only a pointer; `row` and `part` ask the caller for disjointness.
unsafe impl Send for SharedRows {}
// SAFETY: as above.
unsafe impl Sync for SharedRows {}

impl SharedRows {
    /// Columns `from..from + len` of a row.
    ///
    /// # Safety
    /// The shape was checked when it was shared, the borrow it was made from is still alive, and no other reference to
    /// these elements exists while the result does.
    #[inline(always)]
    pub(crate) unsafe fn part<'r>(&self, row: usize, from: usize, len: usize) -> &'r mut [f32] {
        assert!(row < self.rows && from + len <= self.cols);
        // SAFETY: in range by the assertion and the check of the shape; unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.stride + from), len) }
    }

    /// A whole row.
    ///
    /// # Safety
    /// As for [`SharedRows::part`].
    #[inline(always)]
    pub(crate) unsafe fn row<'r>(&self, row: usize) -> &'r mut [f32] {
        // SAFETY: passed on.
        unsafe { self.part(row, 0, self.cols) }
    }
}

/// The element type of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightDtype {
    /// IEEE single.
    F32,
    /// Brain float: the upper half of an f32.
    Bf16,
    /// IEEE half.
    F16,
    /// Quantised to bytes; X is rounded in the same groups along k.
    Int8 {
        /// Elements of a group.
        group: usize,
    },
    /// Quantised to nibbles.
    Int4 {
        /// Elements of a group.
        group: usize,
    },
}

impl WeightDtype {
    /// Whether elements share scales.
    pub fn is_quantised(self) -> bool {
        matches!(self, WeightDtype::Int8 { .. } | WeightDtype::Int4 { .. })
    }

    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            WeightDtype::F32 => "f32",
            WeightDtype::Bf16 => "bf16",
            WeightDtype::F16 => "f16",
            WeightDtype::Int8 { .. } => "int8",
            WeightDtype::Int4 { .. } => "int4",
        }
    }
}

/// A weight as stored: row-major, without gaps. The kernel that takes it says which shape it must have.
#[derive(Debug, Clone, Copy)]
pub enum WeightRef<'a> {
    /// IEEE single.
    F32(&'a [f32]),
    /// Brain float.
    Bf16(&'a [bf16]),
    /// IEEE half.
    F16(&'a [f16]),
    /// Small integers with scales.
    Quantised(QuantisedRef<'a>),
}

impl<'a> WeightRef<'a> {
    /// Views the bytes of a tensor (little-endian, as in safetensors; a memory map, say) as elements, without a copy.
    pub fn from_bytes(dtype: WeightDtype, bytes: &'a [u8]) -> Result<Self, KernelError> {
        let size = match dtype {
            WeightDtype::F32 => 4,
            WeightDtype::Bf16 | WeightDtype::F16 => 2,
            WeightDtype::Int8 { .. } | WeightDtype::Int4 { .. } => {
                let why = "quantised weights are made with Quantised";
                return Err(KernelError::Dtype { argument: "dtype", got: dtype.name(), why });
            }
        };
        if !bytes.len().is_multiple_of(size) {
            let expected = bytes.len() / size * size;
            return Err(KernelError::Shape { argument: "bytes", what: "length", expected, got: bytes.len() });
        }
        if cfg!(target_endian = "big") {
            let why = "weights are little-endian, this processor is not";
            return Err(KernelError::Dtype { argument: "bytes", got: dtype.name(), why });
        }
        let misaligned = KernelError::Misaligned { argument: "bytes", align: size };
        // SAFETY: each type is plain old data, of which every bit pattern is a value.
        unsafe {
            match dtype {
                WeightDtype::F32 => whole(bytes.align_to::<f32>()).map(WeightRef::F32),
                WeightDtype::Bf16 => whole(bytes.align_to::<bf16>()).map(WeightRef::Bf16),
                // F16: what is quantised was refused above.
                _ => whole(bytes.align_to::<f16>()).map(WeightRef::F16),
            }
        }
        .ok_or(misaligned)
    }

    /// Elements `from .. from + len`: some rows of a matrix, say.
    pub fn elements(&self, from: usize, len: usize) -> Result<Self, KernelError> {
        let end = from.saturating_add(len);
        super::error::check_len("weight", end, self.len())?;
        Ok(match self {
            WeightRef::F32(w) => WeightRef::F32(&w[from..end]),
            WeightRef::Bf16(w) => WeightRef::Bf16(&w[from..end]),
            WeightRef::F16(w) => WeightRef::F16(&w[from..end]),
            WeightRef::Quantised(w) => WeightRef::Quantised(w.elements(from, len)?),
        })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            WeightRef::F32(w) => w.len(),
            WeightRef::Bf16(w) => w.len(),
            WeightRef::F16(w) => w.len(),
            WeightRef::Quantised(w) => w.n() * w.k(),
        }
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(&self) -> WeightDtype {
        match self {
            WeightRef::F32(_) => WeightDtype::F32,
            WeightRef::Bf16(_) => WeightDtype::Bf16,
            WeightRef::F16(_) => WeightDtype::F16,
            WeightRef::Quantised(w) => w.dtype(),
        }
    }
}

fn whole<'a, T>(parts: (&'a [u8], &'a [T], &'a [u8])) -> Option<&'a [T]> {
    let (before, inside, after) = parts;
    (before.is_empty() && after.is_empty()).then_some(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_from_bytes_check_alignment_and_length() {
        let words = [0x3f80_0000_u32; 4];
        // SAFETY: u32 is plain old data.
        let (_, bytes, _) = unsafe { words.align_to::<u8>() };
        assert!(matches!(WeightRef::from_bytes(WeightDtype::F32, bytes), Ok(WeightRef::F32(w)) if w == [1.0; 4]));
        assert!(
            matches!(WeightRef::from_bytes(WeightDtype::Bf16, &bytes[2..]), Ok(WeightRef::Bf16(w)) if w.len() == 7)
        );
        let odd = WeightRef::from_bytes(WeightDtype::F16, &bytes[1..3]).unwrap_err();
        assert_eq!(odd, KernelError::Misaligned { argument: "bytes", align: 2 });
        let short = WeightRef::from_bytes(WeightDtype::F32, &bytes[..7]).unwrap_err();
        assert!(matches!(short, KernelError::Shape { argument: "bytes", got: 7, .. }));
        assert!(WeightRef::from_bytes(WeightDtype::F16, &[]).unwrap().is_empty());
    }

    #[test]
    fn rows_are_checked() {
        let data = [0.0; 10];
        assert!(Rows::strided(&data, 2, 4, 6).check("x").is_ok());
        assert!(Rows::strided(&data, 0, 4, 6).check("x").is_ok());
        assert_eq!(
            Rows::strided(&data, 2, 5, 6).check("x"),
            Err(KernelError::TooShort { argument: "x", needed: 11, got: 10 })
        );
        assert_eq!(
            Rows::strided(&data, 2, 4, 3).check("x"),
            Err(KernelError::Stride { argument: "x", stride: 3, cols: 4 })
        );
        assert!(Rows::strided(&data, usize::MAX, 4, 6).check("x").is_err());
    }
}
