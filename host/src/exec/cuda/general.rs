//! Primitives for which the CPU plan has no kernel (`Call::Reference`): on the device each has one, right and not fast. With
//! these, every primitive that a plan can hold runs there.

use kernels::cuda::{self, Cuda, Element, Products};
use plugin_api::Op;

use super::CudaExecutor;
use super::primitives::{Prepared, along_axis, moved};
use crate::exec::ExecError;
use crate::exec::cpu::rows;
use crate::exec::cpu::{Elem, Operand, View};

/// Dimensions of an operand beside the rows; a static of full rank has a leading 1 in the place of the rows.
fn row_dims(operand: &Operand, rank: usize) -> &[usize] {
    match operand {
        Operand::Static(_, d) if d.len() > rank => &d[1..],
        Operand::Static(_, d) | Operand::View(_, d) => d,
    }
}

/// Why the device cannot compute a call that the CPU plan leaves to the reference executor.
pub(super) fn unsupported(op: &Op, inputs: &[Operand]) -> Option<String> {
    match op {
        Op::Broadcast { .. } | Op::Concat { .. } | Op::ScatterAdd { .. } => None,
        Op::TopK { .. } | Op::Argsort { .. } | Op::Take { axis: 0 } | Op::Matmul => None,
        Op::Sum { .. } | Op::Cumsum { .. } => None,
        // Of nothing: every step would fail.
        Op::ReduceMax { .. } | Op::ReduceMin { .. } | Op::Argmax { .. } => {
            Some(format!("`{op}` is of an axis without elements, {:?}", row_dims(&inputs[0], usize::MAX)))
        }
        op => Some(format!("the CUDA executor has no kernel for `{op}`")),
    }
}

/// Makes such a call ready.
pub(super) fn prepare(cuda: &Cuda, op: &Op, inputs: &[Operand], dims: &[usize]) -> Result<Prepared, ExecError> {
    Ok(match op {
        Op::TopK { .. } | Op::Argsort { .. } => {
            let own = row_dims(&inputs[0], dims.len());
            let (n, k) = (own.last().copied().unwrap_or(0), dims.last().copied().unwrap_or(0));
            let outer = own.iter().take(own.len().saturating_sub(1)).product();
            Prepared::Sort { descending: *op != Op::Argsort { descending: false }, shape: [outer, n, k] }
        }
        Op::Take { .. } => match &inputs[0] {
            Operand::Static(_, table) => Prepared::Take { inner: table.iter().skip(1).product() },
            Operand::View(..) => {
                return Err(ExecError::Failed(format!("the plan takes from a value of the step: {op}")));
            }
        },
        Op::Matmul => Prepared::Matmul(products(cuda, inputs, dims)?),
        op => match rows::Kernel::new(op, inputs, dims)? {
            rows::Kernel::Lanes { op, outer, n, inner, out_n } => along_axis(op, [outer, n, inner], out_n),
            rows::Kernel::Move(pieces) => moved(cuda, &pieces, inputs.len())?,
        },
    })
}

/// Where the matrices of every product of a row begin, under numpy's broadcasting of what comes before them.
fn products(cuda: &Cuda, inputs: &[Operand], dims: &[usize]) -> Result<Products, ExecError> {
    // One product for all rows is one vector times a matrix for each.
    let (a, b): (Vec<usize>, &[usize]) = match dims.len() {
        1 => (vec![1, row_dims(&inputs[0], 1).last().copied().unwrap_or(0)], row_dims(&inputs[1], 2)),
        rank => (row_dims(&inputs[0], rank).to_vec(), row_dims(&inputs[1], rank)),
    };
    let out: &[usize] = if dims.len() == 1 { &[1, dims[0]] } else { dims };
    let (lead, sizes) = out.split_at(out.len() - 2);
    let starts = |own: &[usize]| -> Vec<usize> {
        let (own_lead, matrix) = own.split_at(own.len() - 2);
        let each: usize = matrix.iter().product();
        let start = |index: usize| {
            let (mut rest, mut stride, mut at) = (index, each, 0);
            for (i, &size) in lead.iter().enumerate().rev() {
                let here = rest % size;
                rest /= size;
                if let Some(&d) = (i + own_lead.len()).checked_sub(lead.len()).and_then(|j| own_lead.get(j)) {
                    at += if d == 1 { 0 } else { here * stride };
                    stride *= d;
                }
            }
            at
        };
        (0..lead.iter().product()).map(start).collect()
    };
    let k = a[a.len() - 1];
    let starts: Vec<[usize; 2]> = starts(&a).into_iter().zip(starts(b)).map(|(a, b)| [a, b]).collect();
    Ok(Products::new(cuda, [sizes[0], k, sizes[1]], &starts)?)
}

impl CudaExecutor {
    pub(super) fn general(&self, index: usize, inputs: &[Operand], out: &View) -> Result<(), ExecError> {
        let cuda = &self.cuda;
        match &self.prepared[index] {
            Prepared::Sort { descending, shape } => {
                let to = self.typed(out, Elem::I64)?;
                match self.elem(&inputs[0]) {
                    Elem::F32 => {
                        Ok(cuda::sort::<f32>(cuda, *descending, *shape, self.operand(&inputs[0], Elem::F32)?, to)?)
                    }
                    _ => Ok(cuda::sort::<i64>(cuda, *descending, *shape, self.operand(&inputs[0], Elem::I64)?, to)?),
                }
            }
            Prepared::Take { inner } => match out.elem {
                Elem::F32 => self.take::<f32>(*inner, inputs, out),
                Elem::I64 => self.take::<i64>(*inner, inputs, out),
                Elem::Bool => self.take::<u8>(*inner, inputs, out),
            },
            Prepared::Matmul(products) => {
                let (a, b) = (self.operand(&inputs[0], Elem::F32)?, self.operand(&inputs[1], Elem::F32)?);
                Ok(cuda::matmul(cuda, products, a, b, self.typed(out, Elem::F32)?)?)
            }
            _ => self.along(index, inputs, out),
        }
    }

    fn take<E: Element>(&self, inner: usize, inputs: &[Operand], out: &View) -> Result<(), ExecError> {
        let [Operand::Static(table, _), index] = inputs else {
            return Err(ExecError::Failed("the plan takes from a value of the step".into()));
        };
        let table = self.fixed(*table).elements::<E>(out.elem)?;
        // A table of empty rows, or no index at all: there is nothing to write.
        if out.cols == 0 {
            return Ok(());
        }
        let (index, to) = (self.operand(index, Elem::I64)?, self.typed(out, out.elem)?);
        Ok(cuda::take(&self.cuda, table, inner, index, to, &self.faults)?)
    }
}
