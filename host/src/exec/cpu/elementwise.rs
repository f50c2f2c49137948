//! Elementwise primitives over rows of buffers, without allocation: what rotary tables and the like need.
//! The functions are the reference executor's own, so results agree bit for bit.

use std::collections::HashMap;
use std::sync::Arc;

use kernels::cpu::{self, Binary, Cpu, ZipOperand, ZipRuns};
use plugin_api::{DType, Op};

use super::arena::{Arena, Data};
use super::plan::{Elem, Operand, View};
use super::statics::StaticData;
use crate::exec::ExecError;
use crate::graph::elementwise as f;

/// An elementwise call made ready: its function, and which column of every operand a column reads.
pub(in crate::exec) struct Kernel {
    function: Function,
    columns: Vec<Columns>,
    /// Arithmetic on floats has a kernel of its own.
    zip: Option<(Binary, ZipRuns)>,
}

enum Function {
    Float1(fn(f32) -> f32),
    Float2(fn(f32, f32) -> f32),
    Int1(fn(i64) -> i64),
    Int2(fn(i64, i64) -> Result<i64, String>),
    CompareFloat(fn(f32, f32) -> bool),
    CompareInt(fn(i64, i64) -> bool),
    CompareBool(fn(bool, bool) -> bool),
    SelectFloat,
    SelectInt,
    SelectBool,
    IntToFloat,
    FloatToInt,
    BoolToFloat,
    BoolToInt,
    FloatToBool,
    IntToBool,
    Not,
    And,
    Or,
}

/// For every column of the output, the operand's column.
pub(in crate::exec) enum Columns {
    Same,
    Broadcast(Arc<[u32]>),
}

/// Whether [`Kernel`] computes the op for these element types; others go to the reference executor.
pub(in crate::exec) fn is_native(op: &Op, input: Elem, output: Elem) -> bool {
    function(op, input, output).is_some()
}

fn function(op: &Op, input: Elem, output: Elem) -> Option<Function> {
    Some(match (op, input, output) {
        (Op::Select, _, Elem::F32) => Function::SelectFloat,
        (Op::Select, _, Elem::I64) => Function::SelectInt,
        (Op::Select, _, Elem::Bool) => Function::SelectBool,
        (Op::Cast { dtype: DType::Bool }, Elem::F32, Elem::Bool) => Function::FloatToBool,
        (Op::Cast { dtype: DType::Bool }, Elem::I64, Elem::Bool) => Function::IntToBool,
        (Op::Cast { dtype }, Elem::I64, Elem::F32) if dtype.is_float() => Function::IntToFloat,
        (Op::Cast { dtype: DType::I64 }, Elem::F32, Elem::I64) => Function::FloatToInt,
        (Op::Cast { dtype }, Elem::Bool, Elem::F32) if dtype.is_float() => Function::BoolToFloat,
        (Op::Cast { dtype: DType::I64 }, Elem::Bool, Elem::I64) => Function::BoolToInt,
        (Op::Not, ..) => Function::Not,
        (Op::And, ..) => Function::And,
        (Op::Or, ..) => Function::Or,
        (_, Elem::F32, Elem::F32) => match (f::float_unary(op), f::float_binary(op)) {
            (Some(g), _) => Function::Float1(g),
            (_, g) => Function::Float2(g?),
        },
        (_, Elem::I64, Elem::I64) => match (f::int_unary(op), f::int_binary(op)) {
            (Some(g), _) => Function::Int1(g),
            (_, g) => Function::Int2(g?),
        },
        (_, Elem::F32, Elem::Bool) => Function::CompareFloat(f::comparison(op)?),
        (_, Elem::I64, Elem::Bool) => Function::CompareInt(f::comparison(op)?),
        (_, Elem::Bool, Elem::Bool) => Function::CompareBool(f::comparison(op)?),
        _ => return None,
    })
}

impl Kernel {
    /// For output rows of these dimensions.
    pub(in crate::exec) fn new(
        op: &Op,
        inputs: &[Operand],
        out: &View,
        dims: &[usize],
        statics: &[StaticData],
        maps: &mut Maps,
    ) -> Result<Kernel, ExecError> {
        let unknown = || ExecError::Failed(format!("the plan has no kernel for {op}"));
        // The first operand of a select is the condition: its values decide the type.
        let input = match inputs.first().ok_or_else(unknown)? {
            Operand::View(v, _) => v.elem,
            Operand::Static(id, _) => statics[*id].elem(),
        };
        let function = function(op, input, out.elem).ok_or_else(unknown)?;
        let columns: Vec<Columns> = inputs.iter().map(|o| maps.columns(o, dims)).collect::<Result<_, _>>()?;
        let binary = match (op, out.elem) {
            (Op::Add, Elem::F32) => Some(Binary::Add),
            (Op::Sub, Elem::F32) => Some(Binary::Sub),
            (Op::Mul, Elem::F32) => Some(Binary::Mul),
            (Op::Div, Elem::F32) => Some(Binary::Div),
            _ => None,
        };
        let zip = binary.map(|op| {
            let at = |k: usize, c: usize| match &columns[k] {
                Columns::Same => c as u32,
                Columns::Broadcast(map) => map[c],
            };
            (op, ZipRuns::new((0..out.cols).map(|c| [at(0, c), at(1, c)])))
        });
        Ok(Kernel { function, columns, zip })
    }

    /// Computes all rows of `out`.
    pub(super) fn run(
        &self,
        cpu: &Cpu,
        inputs: &[Operand],
        out: &View,
        arena: &mut Arena,
        statics: &[StaticData],
    ) -> Result<(), ExecError> {
        if let Some((op, runs)) = &self.zip {
            return arena.with_f32(out, |arena, out| {
                let operand = |k: usize| zip_operand(&inputs[k], arena, statics);
                Ok(cpu::zip(cpu, *op, operand(0)?, operand(1)?, runs, out)?)
            });
        }
        arena.with_out(out, |arena, data| {
            let rows = arena.rows(out);
            let read = Read { inputs, columns: &self.columns, arena, statics };
            for r in 0..rows {
                let at = out.offset + r * out.stride;
                self.row(&read, r, data, at, out.cols)?;
            }
            Ok(())
        })
    }

    fn row(&self, read: &Read<'_>, r: usize, out: &mut Data, at: usize, cols: usize) -> Result<(), ExecError> {
        let mismatch = || ExecError::Failed("an elementwise call has operands of the wrong type".into());
        match (out, &self.function) {
            (Data::F32(out), function) => {
                for (c, y) in out[at..at + cols].iter_mut().enumerate() {
                    *y = match function {
                        Function::Float1(g) => g(read.f32(0, r, c).ok_or_else(mismatch)?),
                        Function::Float2(g) => {
                            let (a, b) = (read.f32(0, r, c), read.f32(1, r, c));
                            g(a.ok_or_else(mismatch)?, b.ok_or_else(mismatch)?)
                        }
                        Function::SelectFloat => {
                            let which = if read.bool(0, r, c).ok_or_else(mismatch)? { 1 } else { 2 };
                            read.f32(which, r, c).ok_or_else(mismatch)?
                        }
                        Function::BoolToFloat => f32::from(u8::from(read.bool(0, r, c).ok_or_else(mismatch)?)),
                        Function::IntToFloat => read.i64(0, r, c).ok_or_else(mismatch)? as f32,
                        _ => return Err(mismatch()),
                    };
                }
            }
            (Data::I64(out), function) => {
                for (c, y) in out[at..at + cols].iter_mut().enumerate() {
                    *y = match function {
                        Function::Int1(g) => g(read.i64(0, r, c).ok_or_else(mismatch)?),
                        Function::Int2(g) => {
                            let (a, b) = (read.i64(0, r, c), read.i64(1, r, c));
                            g(a.ok_or_else(mismatch)?, b.ok_or_else(mismatch)?).map_err(ExecError::Failed)?
                        }
                        Function::SelectInt => {
                            let which = if read.bool(0, r, c).ok_or_else(mismatch)? { 1 } else { 2 };
                            read.i64(which, r, c).ok_or_else(mismatch)?
                        }
                        Function::BoolToInt => read.bool(0, r, c).ok_or_else(mismatch)?.into(),
                        Function::FloatToInt => read.f32(0, r, c).ok_or_else(mismatch)? as i64,
                        _ => return Err(mismatch()),
                    };
                }
            }
            (Data::Bool(out), function) => {
                for (c, y) in out[at..at + cols].iter_mut().enumerate() {
                    let bools = |k| read.bool(k, r, c).ok_or_else(mismatch);
                    *y = match function {
                        Function::CompareFloat(g) => {
                            let (a, b) = (read.f32(0, r, c), read.f32(1, r, c));
                            g(a.ok_or_else(mismatch)?, b.ok_or_else(mismatch)?)
                        }
                        Function::CompareInt(g) => {
                            let (a, b) = (read.i64(0, r, c), read.i64(1, r, c));
                            g(a.ok_or_else(mismatch)?, b.ok_or_else(mismatch)?)
                        }
                        Function::CompareBool(g) => g(bools(0)?, bools(1)?),
                        Function::SelectBool => bools(if bools(0)? { 1 } else { 2 })?,
                        Function::FloatToBool => read.f32(0, r, c).ok_or_else(mismatch)? != 0.0,
                        Function::IntToBool => read.i64(0, r, c).ok_or_else(mismatch)? != 0,
                        Function::Not => !bools(0)?,
                        Function::And => bools(0)? && bools(1)?,
                        Function::Or => bools(0)? || bools(1)?,
                        _ => return Err(mismatch()),
                    };
                }
            }
        }
        Ok(())
    }
}

/// The floats of an operand, from its first row on.
fn zip_operand<'a>(o: &Operand, arena: &'a Arena, statics: &'a [StaticData]) -> Result<ZipOperand<'a>, ExecError> {
    match o {
        Operand::View(v, _) => {
            let rows = arena.f32(v)?;
            Ok(ZipOperand { data: rows.data, stride: rows.stride })
        }
        Operand::Static(id, _) => Ok(ZipOperand { data: statics[*id].values()?, stride: 0 }),
    }
}

/// Element access to the operands of a call.
struct Read<'a> {
    inputs: &'a [Operand],
    columns: &'a [Columns],
    arena: &'a Arena,
    statics: &'a [StaticData],
}

impl Read<'_> {
    fn index(&self, k: usize, r: usize, c: usize) -> usize {
        let c = match &self.columns[k] {
            Columns::Same => c,
            Columns::Broadcast(map) => map[c] as usize,
        };
        match &self.inputs[k] {
            Operand::View(v, _) => v.offset + r * v.stride + c,
            Operand::Static(..) => c,
        }
    }

    fn f32(&self, k: usize, r: usize, c: usize) -> Option<f32> {
        let i = self.index(k, r, c);
        match &self.inputs[k] {
            Operand::View(v, _) => {
                if let Data::F32(d) = self.arena.data(v) {
                    d.get(i).copied()
                } else {
                    None
                }
            }
            Operand::Static(id, _) => {
                if let StaticData::F32(d) = &self.statics[*id] {
                    d.get(i).copied()
                } else {
                    None
                }
            }
        }
    }

    fn i64(&self, k: usize, r: usize, c: usize) -> Option<i64> {
        let i = self.index(k, r, c);
        match &self.inputs[k] {
            Operand::View(v, _) => {
                if let Data::I64(d) = self.arena.data(v) {
                    d.get(i).copied()
                } else {
                    None
                }
            }
            Operand::Static(id, _) => {
                if let StaticData::I64(d) = &self.statics[*id] {
                    d.get(i).copied()
                } else {
                    None
                }
            }
        }
    }

    fn bool(&self, k: usize, r: usize, c: usize) -> Option<bool> {
        let i = self.index(k, r, c);
        match &self.inputs[k] {
            Operand::View(v, _) => {
                if let Data::Bool(d) = self.arena.data(v) {
                    d.get(i).copied()
                } else {
                    None
                }
            }
            Operand::Static(id, _) => {
                if let StaticData::Bool(d) = &self.statics[*id] {
                    d.get(i).copied()
                } else {
                    None
                }
            }
        }
    }
}

/// Which columns broadcast operands are read from, each pattern once for a plan.
#[derive(Default)]
pub(in crate::exec) struct Maps {
    /// By the operand's dimensions, then the output's.
    known: HashMap<[Vec<usize>; 2], Arc<[u32]>>,
    entries: usize,
}

impl Maps {
    /// Most columns of all patterns.
    const MAX_ENTRIES: usize = 1 << 26;

    /// Which column of the operand every output column reads, under numpy's broadcasting.
    pub(in crate::exec) fn columns(&mut self, operand: &Operand, dims: &[usize]) -> Result<Columns, ExecError> {
        // Dimensions beside the rows. A static of full rank has a leading 1 in the place of the rows.
        let own = match operand {
            Operand::View(_, d) => d.as_slice(),
            Operand::Static(_, d) if d.len() > dims.len() => &d[1..],
            Operand::Static(_, d) => d.as_slice(),
        };
        if own == dims {
            return Ok(Columns::Same);
        }
        let key = [own.to_vec(), dims.to_vec()];
        if let Some(map) = self.known.get(&key) {
            return Ok(Columns::Broadcast(Arc::clone(map)));
        }
        self.entries = self.entries.saturating_add(dims.iter().product());
        if self.entries > Self::MAX_ENTRIES {
            return Err(ExecError::Failed(format!(
                "elementwise ops broadcast {own:?} to {dims:?} for each token, and others: {} columns of different \
                 patterns, the limit is {}",
                self.entries,
                Self::MAX_ENTRIES
            )));
        }
        let map = column_map(own, dims);
        self.known.insert(key, Arc::clone(&map));
        Ok(Columns::Broadcast(map))
    }
}

fn column_map(own: &[usize], dims: &[usize]) -> Arc<[u32]> {
    let column = |c: usize| {
        let (mut rest, mut stride, mut index) = (c, 1usize, 0usize);
        for (i, &size) in dims.iter().enumerate().rev() {
            let at = rest % size;
            rest /= size;
            if let Some(&d) = (i + own.len()).checked_sub(dims.len()).and_then(|j| own.get(j)) {
                index += if d == 1 { 0 } else { at * stride };
                stride *= d;
            }
        }
        index as u32 // below MAX_ENTRIES
    };
    (0..dims.iter().product()).map(column).collect()
}
