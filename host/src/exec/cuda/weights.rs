//! Values that do not depend on the step, in the device's memory: weights as they are mapped, and what the CPU executor
//! computes at load.

use std::sync::Arc;

use kernels::cpu::{Cpu, WeightRef};
use kernels::cuda::{Cuda, CudaError, Element, Memory, Vector, Weight, WeightType};
use plugin_api::Graph;

use crate::exec::cpu::precision::Precision;
use crate::exec::cpu::statics::{self, StaticData};
use crate::exec::cpu::{Elem, Static, StaticForm};
use crate::exec::{Dtype, ExecError};
use crate::hub::Weights;

/// Bytes that are copied at a time.
const PIECE: usize = 16 << 20;

/// One static value.
pub(super) struct DeviceStatic {
    pub(super) memory: Arc<Memory>,
    pub(super) elem: Elem,
    /// How a matrix is stored.
    dtype: WeightType,
    /// Of its elements.
    pub(super) len: usize,
}

impl DeviceStatic {
    /// As a weight matrix.
    pub(super) fn matrix(&self) -> Weight<'_> {
        Weight::new(&self.memory, self.dtype)
    }

    /// The type of its elements, as a matrix.
    pub(super) fn dtype(&self) -> WeightType {
        self.dtype
    }

    /// As elements of this type.
    pub(super) fn elements<E: Element>(&self, elem: Elem) -> Result<Vector<'_, E>, ExecError> {
        if self.elem != elem || self.dtype != WeightType::F32 {
            return Err(ExecError::Failed("the plan reads a static value as another type".into()));
        }
        Ok(Vector::first(&self.memory, self.len)?)
    }

    /// As plain floats.
    pub(super) fn values(&self) -> Result<Vector<'_, f32>, ExecError> {
        self.elements(Elem::F32)
    }
}

/// Computes or copies every static of a plan.
pub(super) fn load(
    cuda: &Cuda,
    graph: &Graph,
    wanted: &[Static],
    weights: &Weights,
    dtype: Dtype,
) -> Result<Vec<DeviceStatic>, ExecError> {
    // One thread: nothing is quantised here.
    let cpu = Cpu::new(1).map_err(|e| ExecError::Failed(e.to_string()))?;
    let all = statics::load(graph, wanted, &Precision::new(weights, dtype, None), &cpu)?;
    wanted.iter().zip(all).map(|(s, data)| Ok(upload(cuda, s.form, &data)?)).collect()
}

fn upload(cuda: &Cuda, form: StaticForm, data: &StaticData) -> Result<DeviceStatic, CudaError> {
    let made = |memory: Memory, elem: Elem, dtype: WeightType, len: usize| DeviceStatic {
        memory: Arc::new(memory),
        elem,
        dtype,
        len,
    };
    Ok(match data {
        StaticData::I64(v) => made(cuda.upload(bytemuck::cast_slice(v))?, Elem::I64, WeightType::F32, v.len()),
        StaticData::Bool(v) => {
            let bytes: Vec<u8> = v.iter().map(|&x| x.into()).collect();
            made(cuda.upload(&bytes)?, Elem::Bool, WeightType::F32, v.len())
        }
        StaticData::F32(v) if form == StaticForm::Values => {
            made(cuda.upload(bytemuck::cast_slice(v))?, Elem::F32, WeightType::F32, v.len())
        }
        floats => {
            let matrix = floats.matrix().map_err(|e| CudaError::Value(e.to_string()))?;
            let (bytes, dtype): (&[u8], _) = match matrix {
                WeightRef::F32(w) => (bytemuck::cast_slice(w), WeightType::F32),
                WeightRef::Bf16(w) => (bytemuck::cast_slice(w), WeightType::Bf16),
                WeightRef::F16(w) => (bytemuck::cast_slice(w), WeightType::F16),
                WeightRef::Quantised(_) => {
                    let why = "the CUDA executor has no kernels for quantised weights; use --device cpu";
                    return Err(CudaError::Value(why.into()));
                }
            };
            let memory = cuda.allocate(bytes.len())?;
            // In pieces: pages of a mapped file are read when they are copied.
            for (i, piece) in bytes.chunks(PIECE).enumerate() {
                memory.write(i * PIECE, piece)?;
            }
            made(memory, Elem::F32, dtype, matrix.len())
        }
    })
}
