//! Kernels of `elementwise.cu`: one op on elements, each operand broadcast to the output's columns.

use super::*;

/// Which column of an operand each column of the output reads.
#[derive(Debug)]
pub struct Columns {
    memory: Memory,
    len: usize,
    /// One more than the largest.
    limit: usize,
}

impl Columns {
    /// These.
    pub fn new(cuda: &Cuda, columns: &[u32]) -> Result<Columns, CudaError> {
        let limit = columns.iter().map(|&c| c as usize + 1).max().unwrap_or(0);
        int("columns", limit)?;
        let bytes: Vec<u8> = columns.iter().flat_map(|c| c.to_ne_bytes()).collect();
        Ok(Columns { memory: cuda.upload(&bytes)?, len: columns.len(), limit })
    }
}

/// An operand: a view, and which of its columns are read; `None`: each its own.
#[derive(Debug)]
pub struct Operand<'a, E> {
    /// The values; `View::repeated` for what is the same in every row.
    pub view: View<'a, E>,
    /// As many as the output has columns.
    pub columns: Option<&'a Columns>,
}

impl<E> Clone for Operand<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Operand<'_, E> {}

impl<E: Element> Operand<'_, E> {
    fn push<O: Element>(&self, args: Args, name: &'static str, out: &View<'_, O>) -> Result<Args, CudaError> {
        let columns = match self.columns {
            None => {
                self.view.check_shape(name, out.rows, out.cols)?;
                0
            }
            Some(columns) => {
                self.view.check_shape(name, out.rows, self.view.cols)?;
                check_eq(name, "number of broadcast columns", out.cols, columns.len)?;
                check_len(name, columns.limit, self.view.cols)?;
                columns.memory.address()
            }
        };
        Ok(push(args, &self.view).address(columns))
    }
}

/// An elementwise op, by the number that kernels know it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // they are those of plugin_api::Op
pub enum ElementOp {
    Neg = 0,
    Abs = 1,
    Sign = 2,
    Exp = 3,
    Log = 4,
    Sqrt = 5,
    Rsqrt = 6,
    Sin = 7,
    Cos = 8,
    Tanh = 9,
    Sigmoid = 10,
    Erf = 11,
    Floor = 12,
    Ceil = 13,
    Round = 14,
    Add = 20,
    Sub = 21,
    Mul = 22,
    Div = 23,
    Pow = 24,
    Max = 25,
    Min = 26,
    Rem = 27,
    Eq = 40,
    Ne = 41,
    Lt = 42,
    Le = 43,
    Gt = 44,
    Ge = 45,
    Not = 60,
    And = 61,
    Or = 62,
}

/// Elements that are compared and chosen among: `f32`, `i64`, and truth values as `u8`.
pub trait Ordered: Element {
    /// Names of `compare` and `select`.
    const COMPARED: [&'static str; 2];
}

impl Ordered for f32 {
    const COMPARED: [&'static str; 2] = ["compare_f32", "select_f32"];
}

impl Ordered for i64 {
    const COMPARED: [&'static str; 2] = ["compare_i64", "select_i64"];
}

impl Ordered for u8 {
    const COMPARED: [&'static str; 2] = ["compare_bool", "select_bool"];
}

/// Elements of arithmetic: `f32` and `i64`.
pub trait Number: Element {
    /// Names of `map` and `zip`.
    const KERNELS: [&'static str; 2];
    /// Whether it is an integer.
    const INTEGER: bool;
}

impl Number for f32 {
    const KERNELS: [&'static str; 2] = ["map_f32", "zip_f32"];
    const INTEGER: bool = false;
}

impl Number for i64 {
    const KERNELS: [&'static str; 2] = ["map_i64", "zip_i64"];
    const INTEGER: bool = true;
}

fn known(op: ElementOp, from: ElementOp, to: ElementOp, integer: bool) -> Result<i32, CudaError> {
    use ElementOp as Op;
    let floats_only = matches!(op, Op::Pow) || (op as i32 > Op::Sign as i32 && op as i32 <= Op::Round as i32);
    if (op as i32) < from as i32 || op as i32 > to as i32 || (integer && floats_only) {
        return Err(option("op", format!("{op:?}"), "is not an op of these elements"));
    }
    Ok(op as i32)
}

fn run<O: Element>(cuda: &Cuda, kernel: &'static str, args: Args, out: &View<'_, O>) -> Result<(), CudaError> {
    out.check_out("out", out.rows, out.cols)?;
    // SAFETY: the callers have pushed checked operands, `out`, and what else the kernel takes.
    unsafe { cuda.launch(by_element(Module::Elementwise, kernel, out.rows, out.cols, args)) }
}

/// `out = op(a)`, for ops of one operand.
pub fn map<E: Number>(cuda: &Cuda, op: ElementOp, a: Operand<'_, E>, out: View<'_, E>) -> Result<(), CudaError> {
    let op = known(op, ElementOp::Neg, ElementOp::Round, E::INTEGER)?;
    let args = push(a.push(Args::default().int(op), "a", &out)?, &out).int(int("out.cols", out.cols)?);
    run(cuda, E::KERNELS[0], args, &out)
}

/// `out = op(a, b)`, for arithmetic. The division of an integer by 0 is a fault.
pub fn zip<E: Number>(
    cuda: &Cuda,
    op: ElementOp,
    a: Operand<'_, E>,
    b: Operand<'_, E>,
    out: View<'_, E>,
    faults: &Faults,
) -> Result<(), CudaError> {
    let op = known(op, ElementOp::Add, ElementOp::Rem, E::INTEGER)?;
    let args = b.push(a.push(Args::default().int(op), "a", &out)?, "b", &out)?;
    let args = push(args, &out).int(int("out.cols", out.cols)?);
    run(cuda, E::KERNELS[1], if E::INTEGER { args.address(faults.address()) } else { args }, &out)
}

/// `out = op(a, b)`, for comparisons.
pub fn compare<E: Ordered>(
    cuda: &Cuda,
    op: ElementOp,
    a: Operand<'_, E>,
    b: Operand<'_, E>,
    out: View<'_, u8>,
) -> Result<(), CudaError> {
    let op = known(op, ElementOp::Eq, ElementOp::Ge, false)?;
    let args = b.push(a.push(Args::default().int(op), "a", &out)?, "b", &out)?;
    run(cuda, E::COMPARED[0], push(args, &out).int(int("out.cols", out.cols)?), &out)
}

/// `out = op(a, b)` of truth values; `Not` takes `a` twice.
pub fn logic(
    cuda: &Cuda,
    op: ElementOp,
    a: Operand<'_, u8>,
    b: Operand<'_, u8>,
    out: View<'_, u8>,
) -> Result<(), CudaError> {
    let op = known(op, ElementOp::Not, ElementOp::Or, false)?;
    let args = b.push(a.push(Args::default().int(op), "a", &out)?, "b", &out)?;
    run(cuda, "logic", push(args, &out).int(int("out.cols", out.cols)?), &out)
}

/// `out = which ? a : b`
pub fn select<E: Ordered>(
    cuda: &Cuda,
    which: Operand<'_, u8>,
    a: Operand<'_, E>,
    b: Operand<'_, E>,
    out: View<'_, E>,
) -> Result<(), CudaError> {
    let args = b.push(a.push(which.push(Args::default(), "which", &out)?, "a", &out)?, "b", &out)?;
    run(cuda, E::COMPARED[1], push(args, &out).int(int("out.cols", out.cols)?), &out)
}

/// Pairs of types between which [`cast`] goes.
pub trait CastTo<O>: Element {
    /// The kernel.
    const KERNEL: &'static str;
}

impl CastTo<f32> for i64 {
    const KERNEL: &'static str = "cast_i64_f32";
}
impl CastTo<i64> for f32 {
    const KERNEL: &'static str = "cast_f32_i64";
}
impl CastTo<f32> for u8 {
    const KERNEL: &'static str = "cast_bool_f32";
}
impl CastTo<i64> for u8 {
    const KERNEL: &'static str = "cast_bool_i64";
}
impl CastTo<u8> for f32 {
    const KERNEL: &'static str = "cast_f32_bool";
}
impl CastTo<u8> for i64 {
    const KERNEL: &'static str = "cast_i64_bool";
}

/// `out = a` as another type; what is not 0 is true, floats are rounded towards zero.
pub fn cast<E: CastTo<O>, O: Element>(cuda: &Cuda, a: Operand<'_, E>, out: View<'_, O>) -> Result<(), CudaError> {
    let args = push(a.push(Args::default(), "a", &out)?, &out).int(int("out.cols", out.cols)?);
    run(cuda, E::KERNEL, args, &out)
}
