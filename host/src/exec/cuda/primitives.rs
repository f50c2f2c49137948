//! Elementwise primitives, primitives along an axis, and linear layers by expert: what has to be made ready before the first
//! step (which columns are read, tables of addresses), and the launches.

use std::collections::HashMap;
use std::sync::Arc;

use kernels::cuda::{
    self, Columns, Cuda, Element, ElementOp, ExpertPart, ExpertWeights, Fold, LaneShape, Memory, Moves,
    Operand as DeviceOperand, Products, Scatter,
};
use plugin_api::{DType, Op};

use super::calls::unprepared;
use super::general;
use super::weights::DeviceStatic;
use super::{CudaExecutor, DeviceView};
use crate::exec::ExecError;
use crate::exec::cpu::elementwise::{self, Maps};
use crate::exec::cpu::rows::{self, Lane};
use crate::exec::cpu::{Call, Elem, Operand, Plan, View};

/// A call made ready.
pub(super) enum Prepared {
    /// There is nothing to be made ready.
    None,
    /// By operand: which columns are read, if not its own.
    Elementwise(Vec<Option<Arc<Columns>>>),
    /// Along an axis; as many elements on the axis of the result, or of the index.
    Along { lane: Lane, shape: LaneShape, out_n: usize },
    /// Places of lanes in order, and how many: `outer`, `n`, `k`.
    Sort { descending: bool, shape: [usize; 3] },
    /// Rows of a table, as many elements each.
    Take { inner: usize },
    /// Products of matrices within rows.
    Matmul(Products),
    /// Columns moved; and room for the addresses of the operands.
    Move(Moves, Memory),
    /// Weights by expert.
    Experts(ExpertWeights),
}

/// Makes all calls of a plan ready.
pub(super) fn prepare_all(cuda: &Cuda, plan: &Plan, statics: &[DeviceStatic]) -> Result<Vec<Prepared>, ExecError> {
    let mut maps = Maps::default();
    // The same pattern is one array on the device.
    let mut known: HashMap<*const u32, Arc<Columns>> = HashMap::new();
    let mut prepared = vec![];
    for call in &plan.calls {
        prepared.push(match call {
            Call::Elementwise { inputs, dims, .. } => {
                let mut one = |operand: &Operand| -> Result<Option<Arc<Columns>>, ExecError> {
                    let elementwise::Columns::Broadcast(map) = maps.columns(operand, dims)? else { return Ok(None) };
                    // `maps` keeps it, so the address stays its own.
                    if let Some(columns) = known.get(&map.as_ptr()) {
                        return Ok(Some(Arc::clone(columns)));
                    }
                    let columns = Arc::new(Columns::new(cuda, &map)?);
                    known.insert(map.as_ptr(), Arc::clone(&columns));
                    Ok(Some(columns))
                };
                Prepared::Elementwise(inputs.iter().map(&mut one).collect::<Result<_, _>>()?)
            }
            Call::Rows { op, inputs, dims, .. } => match rows::Kernel::new(op, inputs, dims)? {
                rows::Kernel::Lanes { op, outer, n, inner, out_n } => along_axis(op, [outer, n, inner], out_n),
                rows::Kernel::Move(pieces) => moved(cuda, &pieces, inputs.len())?,
            },
            Call::Reference { op, inputs, dims, .. } => general::prepare(cuda, op, inputs, dims)?,
            Call::GroupedLinear { x, ids, per_choice, experts, .. } => {
                let k = if *per_choice { x.cols / ids.cols.max(1) } else { x.cols };
                let part = |p: &crate::exec::cpu::ExpertPart| {
                    let weight = &statics[p.weight];
                    ExpertPart { memory: Arc::clone(&weight.memory), dtype: weight.dtype(), first: p.row * k }
                };
                let parts: Vec<ExpertPart> = experts.parts.iter().map(part).collect();
                Prepared::Experts(ExpertWeights::new(cuda, experts.count, k, &experts.widths, &parts)?)
            }
            _ => Prepared::None,
        });
    }
    Ok(prepared)
}

pub(super) fn along_axis(lane: Lane, [outer, n, inner]: [usize; 3], out_n: usize) -> Prepared {
    Prepared::Along { lane, shape: LaneShape { outer, n, inner }, out_n }
}

pub(super) fn moved(cuda: &Cuda, pieces: &[rows::Piece], operands: usize) -> Result<Prepared, ExecError> {
    let column = |p: &rows::Piece, i: u32| (p.operand, p.at + if p.moves { i } else { 0 });
    let columns: Vec<(u32, u32)> = pieces.iter().flat_map(|p| (0..p.len).map(move |i| column(p, i))).collect();
    Ok(Prepared::Move(Moves::new(cuda, &columns)?, cuda.allocate(16 * operands)?))
}

fn element_op(op: &Op) -> Option<ElementOp> {
    use ElementOp as E;
    Some(match op {
        Op::Neg => E::Neg,
        Op::Abs => E::Abs,
        Op::Sign => E::Sign,
        Op::Exp => E::Exp,
        Op::Log => E::Log,
        Op::Sqrt => E::Sqrt,
        Op::Rsqrt => E::Rsqrt,
        Op::Sin => E::Sin,
        Op::Cos => E::Cos,
        Op::Tanh => E::Tanh,
        Op::Sigmoid => E::Sigmoid,
        Op::Erf => E::Erf,
        Op::Floor => E::Floor,
        Op::Ceil => E::Ceil,
        Op::Round => E::Round,
        Op::Add => E::Add,
        Op::Sub => E::Sub,
        Op::Mul => E::Mul,
        Op::Div => E::Div,
        Op::Pow => E::Pow,
        Op::Max => E::Max,
        Op::Min => E::Min,
        Op::Rem => E::Rem,
        Op::Eq => E::Eq,
        Op::Ne => E::Ne,
        Op::Lt => E::Lt,
        Op::Le => E::Le,
        Op::Gt => E::Gt,
        Op::Ge => E::Ge,
        Op::Not => E::Not,
        Op::And => E::And,
        Op::Or => E::Or,
        _ => return None,
    })
}

impl CudaExecutor {
    pub(super) fn elem(&self, operand: &Operand) -> Elem {
        match operand {
            Operand::View(v, _) => v.elem,
            Operand::Static(id, _) => self.fixed(*id).elem,
        }
    }

    /// The values of an operand, of this type.
    pub(super) fn operand<E: Element>(&self, operand: &Operand, elem: Elem) -> Result<DeviceView<'_, E>, ExecError> {
        match operand {
            Operand::View(v, _) => self.typed(v, elem),
            Operand::Static(id, _) if self.fixed(*id).elem == elem => {
                let fixed = self.fixed(*id);
                Ok(DeviceView::repeated(&fixed.memory, fixed.len))
            }
            Operand::Static(..) => Err(ExecError::Failed("a primitive has operands of the wrong type".into())),
        }
    }

    pub(super) fn elementwise(&self, index: usize, op: &Op, inputs: &[Operand], out: &View) -> Result<(), ExecError> {
        let Prepared::Elementwise(columns) = &self.prepared[index] else { return Err(unprepared()) };
        let (cuda, faults) = (&self.cuda, &self.faults);
        let (input, output) = (self.elem(&inputs[0]), out.elem);
        let element = element_op(op);
        // Operand k, as elements of this type.
        macro_rules! at {
            ($k:expr, $elem:expr) => {
                DeviceOperand { view: self.operand(&inputs[$k], $elem)?, columns: columns[$k].as_deref() }
            };
        }
        macro_rules! to {
            ($elem:expr) => {
                self.typed(out, $elem)?
            };
        }
        use Elem::{Bool, F32, I64};
        match (op, element, input, output) {
            (Op::Select, ..) if output == F32 => {
                cuda::select::<f32>(cuda, at!(0, Bool), at!(1, F32), at!(2, F32), to!(F32))?;
            }
            (Op::Select, ..) if output == I64 => {
                cuda::select::<i64>(cuda, at!(0, Bool), at!(1, I64), at!(2, I64), to!(I64))?;
            }
            (Op::Select, ..) => cuda::select::<u8>(cuda, at!(0, Bool), at!(1, Bool), at!(2, Bool), to!(Bool))?,
            (Op::Cast { dtype: DType::Bool }, _, F32, Bool) => cuda::cast::<f32, u8>(cuda, at!(0, F32), to!(Bool))?,
            (Op::Cast { dtype: DType::Bool }, _, I64, Bool) => cuda::cast::<i64, u8>(cuda, at!(0, I64), to!(Bool))?,
            (Op::Cast { dtype }, _, I64, F32) if dtype.is_float() => {
                cuda::cast::<i64, f32>(cuda, at!(0, I64), to!(F32))?;
            }
            (Op::Cast { dtype: DType::I64 }, _, F32, I64) => cuda::cast::<f32, i64>(cuda, at!(0, F32), to!(I64))?,
            (Op::Cast { dtype }, _, Bool, F32) if dtype.is_float() => {
                cuda::cast::<u8, f32>(cuda, at!(0, Bool), to!(F32))?;
            }
            (Op::Cast { dtype: DType::I64 }, _, Bool, I64) => cuda::cast::<u8, i64>(cuda, at!(0, Bool), to!(I64))?,
            (_, Some(op @ ElementOp::Not), ..) => cuda::logic(cuda, op, at!(0, Bool), at!(0, Bool), to!(Bool))?,
            (_, Some(op @ (ElementOp::And | ElementOp::Or)), ..) => {
                cuda::logic(cuda, op, at!(0, Bool), at!(1, Bool), to!(Bool))?;
            }
            (_, Some(op), F32, F32) if inputs.len() == 1 => cuda::map::<f32>(cuda, op, at!(0, F32), to!(F32))?,
            (_, Some(op), I64, I64) if inputs.len() == 1 => cuda::map::<i64>(cuda, op, at!(0, I64), to!(I64))?,
            (_, Some(op), F32, F32) => cuda::zip::<f32>(cuda, op, at!(0, F32), at!(1, F32), to!(F32), faults)?,
            (_, Some(op), I64, I64) => cuda::zip::<i64>(cuda, op, at!(0, I64), at!(1, I64), to!(I64), faults)?,
            (_, Some(op), F32, Bool) => cuda::compare::<f32>(cuda, op, at!(0, F32), at!(1, F32), to!(Bool))?,
            (_, Some(op), I64, Bool) => cuda::compare::<i64>(cuda, op, at!(0, I64), at!(1, I64), to!(Bool))?,
            (_, Some(op), Bool, Bool) => cuda::compare::<u8>(cuda, op, at!(0, Bool), at!(1, Bool), to!(Bool))?,
            _ => return Err(ExecError::Failed(format!("the device has no kernel for `{op}` of these types"))),
        }
        Ok(())
    }

    /// What is computed along an axis, or moved.
    pub(super) fn along(&self, index: usize, inputs: &[Operand], out: &View) -> Result<(), ExecError> {
        match out.elem {
            Elem::F32 => self.along_as::<f32>(index, inputs, out),
            Elem::I64 => self.along_as::<i64>(index, inputs, out),
            Elem::Bool => self.along_as::<u8>(index, inputs, out),
        }
    }

    fn along_as<E: Element>(&self, index: usize, inputs: &[Operand], out: &View) -> Result<(), ExecError> {
        let (cuda, faults, elem) = (&self.cuda, &self.faults, out.elem);
        let (lane, shape, out_n) = match &self.prepared[index] {
            Prepared::Move(moves, table) => {
                let views: Vec<DeviceView<'_, E>> =
                    inputs.iter().map(|o| self.operand(o, elem)).collect::<Result<_, _>>()?;
                return Ok(cuda::move_columns(cuda, moves, &views, table, self.typed(out, elem)?)?);
            }
            Prepared::Along { lane, shape, out_n } => (*lane, *shape, *out_n),
            _ => return Err(unprepared()),
        };
        let fold = match lane {
            Lane::Sum => Fold::Sum,
            Lane::Max => Fold::Max,
            Lane::Min => Fold::Min,
            Lane::Cumsum => Fold::Cumsum,
            Lane::Argmax if self.elem(&inputs[0]) == Elem::I64 => Fold::Argmax,
            Lane::Argmax | Lane::TopK => {
                let k = if lane == Lane::TopK { out_n } else { 1 };
                let x = self.operand(&inputs[0], Elem::F32)?;
                return Ok(cuda::top_k(cuda, k, shape, x, self.typed(out, Elem::I64)?)?);
            }
            Lane::Gather => {
                let (x, at) = (self.operand::<E>(&inputs[0], elem)?, self.operand(&inputs[1], Elem::I64)?);
                return Ok(cuda::gather(cuda, shape, out_n, x, at, self.typed(out, elem)?, faults)?);
            }
            Lane::Scatter | Lane::ScatterAdd => {
                let (x, values) = (self.operand::<E>(&inputs[0], elem)?, self.operand(&inputs[2], elem)?);
                let (index, sum) = (self.operand(&inputs[1], Elem::I64)?, lane == Lane::ScatterAdd);
                let scatter = Scatter { x, index, values, index_n: out_n, sum };
                return Ok(cuda::scatter(cuda, shape, &scatter, self.typed(out, elem)?, faults)?);
            }
        };
        let x = &inputs[0];
        match elem {
            Elem::F32 => Ok(cuda::fold::<f32>(cuda, fold, shape, self.operand(x, elem)?, self.typed(out, elem)?)?),
            _ => Ok(cuda::fold::<i64>(cuda, fold, shape, self.operand(x, Elem::I64)?, self.typed(out, Elem::I64)?)?),
        }
    }
}
