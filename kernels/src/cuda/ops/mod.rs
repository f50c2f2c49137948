//! Kernels as functions over views of device memory. A function checks that what the kernel reads and writes lies inside of
//! the views' memory, chooses a grid that depends on shapes alone, and launches; it returns before the kernel has run.
//!
//! What a kernel finds wrong with values (an id outside of a table, a division by zero) it leaves in [`Faults`].

mod attention;
mod batch;
mod elementwise;
mod lanes;
mod linear;
mod recurrent;
mod rows;
mod sample;

use std::marker::PhantomData;

use super::CudaError;
use super::device::{Args, Cuda, Launch, Memory};
use super::error::{check_eq, check_len, int, option};
use super::source::Module;
use crate::cpu::WeightDtype;

pub use attention::{AttentionParams, KvCache, PART, attention, parts_bytes, query_rows, write_kv};
pub use batch::{Batch, BatchSeq};
pub use elementwise::{Columns, ElementOp, Operand, cast, compare, logic, map, select, zip};
pub use lanes::{
    Fold, LaneShape, Moves, Products, Scatter, fold, gather, matmul, move_columns, scatter, sort, take, top_k,
};
pub use linear::{End, ExpertPart, ExpertWeights, Grouped, Segment, grouped_linear, linear};
pub use recurrent::{DeviceConv, DeviceScan, causal_conv1d, linear_attention};
pub use rows::{activate, add, argmax, copy, embed, gated, layer_norm, rms_norm, rope, select_rows, softmax};
pub use sample::{Draw, Drawn, MAX_VOCAB, sample};

/// A type of elements in device memory.
pub trait Element: Copy + 'static {
    /// Bytes of one.
    const SIZE: usize = size_of::<Self>();
}

impl Element for f32 {}
impl Element for i64 {}
impl Element for i32 {}
impl Element for u64 {}
impl Element for u8 {}

/// A matrix in device memory: `rows` rows of `cols` elements, `stride` elements apart, from element `offset` on. Whoever
/// makes views of memory says what type its elements are; outputs may be inputs only where a function says so.
#[derive(Debug)]
pub struct View<'a, E> {
    memory: &'a Memory,
    offset: usize,
    /// Number of rows; may be 0.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// From one row to the next, in elements. 0: the same row again and again, for operands that are only read.
    pub stride: usize,
    element: PhantomData<E>,
}

impl<E> Clone for View<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for View<'_, E> {}

impl<'a, E: Element> View<'a, E> {
    /// Rows with gaps.
    pub fn strided(memory: &'a Memory, offset: usize, rows: usize, cols: usize, stride: usize) -> Self {
        View { memory, offset, rows, cols, stride, element: PhantomData }
    }

    /// Rows without gaps, from the beginning of the memory.
    pub fn dense(memory: &'a Memory, rows: usize, cols: usize) -> Self {
        View::strided(memory, 0, rows, cols, cols)
    }

    /// One row that is read for every row.
    pub fn repeated(memory: &'a Memory, cols: usize) -> Self {
        View::strided(memory, 0, 1, cols, 0)
    }

    /// `rows * cols` elements as rows of another length.
    pub fn reshaped(self, rows: usize, cols: usize) -> Result<Self, CudaError> {
        check_eq("x", "stride", self.cols, self.stride)?;
        check_eq("x", "elements", self.rows * self.cols, rows * cols)?;
        Ok(View { rows, cols, stride: cols, ..self })
    }

    fn check(&self, argument: &'static str) -> Result<(), CudaError> {
        let last = match self.rows.checked_sub(1) {
            None => 0,
            Some(before) => before.saturating_mul(self.stride).saturating_add(self.cols),
        };
        check_len(argument, self.offset.saturating_add(last), self.memory.bytes() / E::SIZE)
    }

    fn check_shape(&self, argument: &'static str, rows: usize, cols: usize) -> Result<(), CudaError> {
        check_eq(argument, "number of columns", cols, self.cols)?;
        // What is the same in every row has as many as are asked for.
        if self.stride > 0 || self.rows != 1 {
            check_eq(argument, "number of rows", rows, self.rows)?;
        }
        self.check(argument)
    }

    /// As `check_shape`, for what is written.
    fn check_out(&self, argument: &'static str, rows: usize, cols: usize) -> Result<(), CudaError> {
        check_eq(argument, "number of rows", rows, self.rows)?;
        if self.rows > 1 && self.stride < self.cols {
            return Err(option(argument, self.stride, "rows that are written must not overlap"));
        }
        self.check_shape(argument, rows, cols)
    }

    fn address(&self) -> u64 {
        self.memory.address() + (self.offset * E::SIZE) as u64
    }
}

/// Elements in device memory, one after the other.
#[derive(Debug)]
pub struct Vector<'a, E> {
    memory: &'a Memory,
    len: usize,
    element: PhantomData<E>,
}

impl<E> Clone for Vector<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Vector<'_, E> {}

impl<'a, E: Element> Vector<'a, E> {
    /// All of this memory.
    pub fn new(memory: &'a Memory) -> Self {
        Vector { memory, len: memory.bytes() / E::SIZE, element: PhantomData }
    }

    /// Its first elements.
    pub fn first(memory: &'a Memory, len: usize) -> Result<Self, CudaError> {
        check_len("memory", len, memory.bytes() / E::SIZE)?;
        Ok(Vector { memory, len, element: PhantomData })
    }
}

/// The address of what may be missing; then 0. It has `len` elements.
fn optional(argument: &'static str, x: Option<Vector<'_, f32>>, len: usize) -> Result<u64, CudaError> {
    match x {
        None => Ok(0),
        Some(x) => {
            check_eq(argument, "length", len, x.len)?;
            Ok(x.memory.address())
        }
    }
}

/// The types of weights that there are kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    /// IEEE single.
    F32,
    /// Brain float.
    Bf16,
    /// IEEE half.
    F16,
}

impl WeightType {
    /// The same type on the CPU; quantised weights have no kernels here.
    pub fn of(dtype: WeightDtype) -> Option<WeightType> {
        match dtype {
            WeightDtype::F32 => Some(WeightType::F32),
            WeightDtype::Bf16 => Some(WeightType::Bf16),
            WeightDtype::F16 => Some(WeightType::F16),
            WeightDtype::Int8 { .. } | WeightDtype::Int4 { .. } => None,
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            WeightType::F32 => 4,
            WeightType::Bf16 | WeightType::F16 => 2,
        }
    }
}

/// A weight in device memory, in the type in which it is stored.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'a> {
    memory: &'a Memory,
    dtype: WeightType,
    offset: usize,
    len: usize,
}

impl<'a> Weight<'a> {
    /// All of this memory.
    pub fn new(memory: &'a Memory, dtype: WeightType) -> Self {
        Weight { memory, dtype, offset: 0, len: memory.bytes() / dtype.size() }
    }

    /// Elements `from .. from + len`.
    pub fn elements(self, from: usize, len: usize) -> Result<Self, CudaError> {
        check_len("weight", from.saturating_add(len), self.len)?;
        Ok(Weight { offset: self.offset + from, len, ..self })
    }

    fn address(&self) -> u64 {
        self.memory.address() + (self.offset * self.dtype.size()) as u64
    }
}

/// What kernels found wrong with the values of a step.
#[derive(Debug)]
pub struct Faults(Memory);

impl Faults {
    /// Nothing yet.
    pub fn new(cuda: &Cuda) -> Result<Faults, CudaError> {
        let memory = cuda.allocate(16)?;
        memory.clear()?;
        Ok(Faults(memory))
    }

    /// The first fault since the last call, as an error. Waits for the device.
    pub fn take(&self) -> Result<(), CudaError> {
        let mut bytes = [0u8; 16];
        self.0.read(0, &mut bytes)?;
        let (code, value) = bytes.split_at(8);
        let number = |b: &[u8]| b.try_into().map(i64::from_ne_bytes).unwrap_or(0);
        let value = number(value);
        let what = match number(code) {
            0 => return Ok(()),
            1 => format!("embedding of index {value}, which the table does not have"),
            2 => format!("the integer {value} is divided by 0"),
            3 => format!("index {value} is out of range of its axis"),
            4 => format!("expert {value} is chosen, which there is not"),
            other => format!("a kernel reports fault {other} ({value})"),
        };
        self.0.clear()?;
        Err(CudaError::Value(what))
    }

    fn address(&self) -> u64 {
        self.0.address()
    }
}

/// Threads of a block that counts `n` things, in whole warps.
fn threads_for(n: usize) -> usize {
    n.clamp(1, 128).next_multiple_of(32)
}

/// A launch with a thread for each element of a `rows` x `cols` output.
fn by_element(module: Module, kernel: &'static str, rows: usize, cols: usize, args: Args) -> Launch {
    let threads = threads_for(cols);
    Launch { module, kernel, grid: [rows, cols.div_ceil(threads), 1], threads, shared: 0, args }
}

/// The view's address and stride, as kernels take them.
fn push<E: Element>(args: Args, x: &View<'_, E>) -> Args {
    args.address(x.address()).long(x.stride as i64)
}

/// The name of a kernel for elements of this size.
fn by_size<E: Element>(names: [&'static str; 3]) -> &'static str {
    match E::SIZE {
        1 => names[0],
        4 => names[1],
        _ => names[2],
    }
}
