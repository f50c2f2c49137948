//! One call of the plan as launches of kernels.

use kernels::cpu::{Activation, Compute};
use kernels::cuda::{self, AttentionParams, DeviceConv, DeviceScan, Element, End, Grouped, KvCache, Vector};

use super::primitives::Prepared;
use super::weights::DeviceStatic;
use super::{CudaExecutor, DeviceView};
use crate::exec::cpu::{self, Call, Elem, Epilogue, Norm, StaticId, View, kv_shape};
use crate::exec::{Dtype, ExecError, KvCacheDtype};

impl CudaExecutor {
    fn values(&self, id: Option<StaticId>) -> Result<Option<Vector<'_, f32>>, ExecError> {
        id.map(|id| self.statics[id].values()).transpose()
    }

    fn f32(&self, view: &View) -> Result<DeviceView<'_, f32>, ExecError> {
        self.typed(view, Elem::F32)
    }

    /// The view, if its elements are these.
    pub(super) fn typed<E: Element>(&self, view: &View, elem: Elem) -> Result<DeviceView<'_, E>, ExecError> {
        if view.elem != elem {
            return Err(ExecError::Failed(format!("the plan reads {view} as another type")));
        }
        Ok(self.view(view))
    }

    /// All integers of a view without gaps.
    fn integers(&self, view: &View) -> Result<Vector<'_, i64>, ExecError> {
        if view.elem != Elem::I64 || !view.is_whole() {
            return Err(ExecError::Failed(format!("the plan reads {view} as integers without gaps")));
        }
        Ok(Vector::first(&self.buffers[view.buffer], self.rows_of(view) * view.cols)?)
    }

    /// How matrix products are formed.
    fn products(&self) -> Compute {
        if self.options.dtype == Dtype::Bfloat16 { Compute::Bf16 } else { Compute::F32 }
    }

    pub(super) fn call(&self, index: usize) -> Result<(), ExecError> {
        let cuda = &self.cuda;
        match &self.plan.calls[index] {
            Call::Embed { table, ids, out } => {
                let table = self.statics[*table].matrix();
                Ok(cuda::embed(cuda, table, self.integers(ids)?, self.f32(out)?, &self.faults)?)
            }
            Call::Norm { norm, width, x, out } => self.norm(norm, *width, x, out),
            Call::Softmax { width, x, out } => Ok(cuda::softmax(cuda, self.f32(x)?, *width, self.f32(out)?)?),
            Call::Linear { x, segments, epilogue, out } => {
                let end = match epilogue {
                    Epilogue::None => End::None,
                    Epilogue::Accumulate => End::Accumulate,
                    Epilogue::Add(y) => End::Add(self.f32(y)?),
                };
                let segments: Vec<_> = segments.iter().map(|s| self.segment(s)).collect::<Result<_, _>>()?;
                Ok(cuda::linear(cuda, self.f32(x)?, &segments, self.products(), end, self.f32(out)?)?)
            }
            Call::LinearParts { x, parts, segment, out } => {
                let rows = self.rows_of(out) * parts;
                let from = self.f32(x)?.reshaped(rows, x.cols / parts.max(&1))?;
                let to = self.f32(out)?.reshaped(rows, segment.n)?;
                Ok(cuda::linear(cuda, from, &[self.segment(segment)?], self.products(), End::None, to)?)
            }
            Call::Rope { x, head_dim, cos, sin, style, out } => {
                let (cos, sin) = (self.f32(cos)?, self.f32(sin)?);
                Ok(cuda::rope(cuda, self.f32(x)?, *head_dim, *style, cos, sin, self.f32(out)?)?)
            }
            Call::WriteKv { state, k, v } => {
                Ok(cuda::write_kv(cuda, self.f32(k)?, self.f32(v)?, &self.batch, self.layer(*state))?)
            }
            Call::Attention { state, q, attention, out } => self.attention(*state, q, attention, out),
            Call::GroupedLinear { x, ids, per_choice, experts, out } => {
                let Prepared::Experts(weights) = &self.prepared[index] else { return Err(unprepared()) };
                let rows = self.rows_of(out);
                let (choices, n) = (ids.cols, experts.widths.iter().sum());
                let x = match per_choice {
                    true => self.f32(x)?.reshaped(rows * choices, x.cols / choices.max(1))?,
                    false => self.f32(x)?,
                };
                let to = self.f32(out)?.reshaped(rows * choices, n)?;
                let (ids, bias, compute) = (self.integers(ids)?, self.values(experts.bias)?, self.products());
                let grouped = Grouped { ids, weights, bias, compute };
                Ok(cuda::grouped_linear(cuda, x, &grouped, to, &self.faults)?)
            }
            Call::CausalConv { state, x, conv, out } => {
                let (weight, bias) = (self.statics[conv.weight].values()?, self.values(conv.bias)?);
                let (x, out, held) = (self.f32(x)?, self.f32(out)?, &self.states[*state]);
                let conv = DeviceConv { weight, bias, width: conv.width, activation: conv.activation };
                Ok(cuda::causal_conv1d(cuda, &conv, x, &self.batch, held, out)?)
            }
            Call::LinearAttention { state, q, k, v, decay, beta, shape, out } => {
                let beta = beta.as_ref().map(|beta| self.f32(beta)).transpose()?;
                let (q, k, v, decay) = (self.f32(q)?, self.f32(k)?, self.f32(v)?, self.f32(decay)?);
                let operands = DeviceScan { q, k, v, decay, beta };
                let held = &self.states[*state];
                Ok(cuda::linear_attention(cuda, shape, &operands, &self.batch, held, self.f32(out)?)?)
            }
            Call::Activate { kind, x, out } => Ok(cuda::activate(cuda, *kind, self.f32(x)?, self.f32(out)?)?),
            Call::Gated { kind, gate, up, out } => {
                Ok(cuda::gated(cuda, *kind, self.f32(gate)?, self.f32(up)?, self.f32(out)?)?)
            }
            Call::Add { a, b, out } => Ok(cuda::add(cuda, self.f32(a)?, self.f32(b)?, self.f32(out)?)?),
            Call::Copy { x, out } => match x.elem {
                Elem::F32 => Ok(cuda::copy(cuda, self.f32(x)?, self.f32(out)?)?),
                Elem::I64 => Ok(cuda::copy::<i64>(cuda, self.typed(x, Elem::I64)?, self.typed(out, Elem::I64)?)?),
                Elem::Bool => Ok(cuda::copy::<u8>(cuda, self.typed(x, Elem::Bool)?, self.typed(out, Elem::Bool)?)?),
            },
            Call::SelectRows { x, out } => match x.elem {
                Elem::F32 => Ok(cuda::select_rows(cuda, self.f32(x)?, &self.batch, self.f32(out)?)?),
                Elem::I64 => {
                    let (x, out) = (self.typed::<i64>(x, Elem::I64)?, self.typed(out, Elem::I64)?);
                    Ok(cuda::select_rows(cuda, x, &self.batch, out)?)
                }
                Elem::Bool => {
                    let (x, out) = (self.typed::<u8>(x, Elem::Bool)?, self.typed(out, Elem::Bool)?);
                    Ok(cuda::select_rows(cuda, x, &self.batch, out)?)
                }
            },
            Call::Elementwise { op, inputs, out, .. } => self.elementwise(index, op, inputs, out),
            Call::Rows { inputs, out, .. } => self.along(index, inputs, out),
            Call::Reference { inputs, out, .. } => self.general(index, inputs, out),
        }
    }

    fn segment(&self, s: &cpu::Segment) -> Result<cuda::Segment<'_>, ExecError> {
        Ok(cuda::Segment {
            weight: self.statics[s.weight].matrix(),
            bias: self.values(s.bias)?,
            n: s.n,
            column: s.column,
            activation: s.activation.unwrap_or(Activation::Identity),
        })
    }

    fn layer(&self, state: usize) -> KvCache<'_> {
        let (k, v) = &self.cache[state];
        let bf16 = self.options.kv_cache_dtype != KvCacheDtype::Float32;
        KvCache { shape: kv_shape(&self.plan.states[state]), k, v, bf16 }
    }

    fn attention(&self, state: usize, q: &View, a: &cpu::Attention, out: &View) -> Result<(), ExecError> {
        let params = AttentionParams {
            heads: a.heads,
            scale: a.scale,
            window: a.window,
            chunk: a.chunk,
            softcap: a.softcap,
            sinks: self.values(a.sinks)?,
            alibi_slopes: self.values(a.alibi)?,
        };
        let (q, out) = (self.f32(q)?, self.f32(out)?);
        Ok(cuda::attention(&self.cuda, &params, q, &self.batch, self.layer(state), &self.parts, out)?)
    }

    fn norm(&self, norm: &Norm, width: usize, x: &View, out: &View) -> Result<(), ExecError> {
        let (x, out) = (self.f32(x)?, self.f32(out)?);
        match *norm {
            Norm::Rms { weight, unit_offset, eps } => {
                let offset = if unit_offset { 1.0 } else { 0.0 };
                Ok(cuda::rms_norm(&self.cuda, x, width, self.values(weight)?, offset, eps, out)?)
            }
            Norm::Layer { weight, bias, eps } => {
                Ok(cuda::layer_norm(&self.cuda, x, width, self.values(weight)?, self.values(bias)?, eps, out)?)
            }
        }
    }

    /// The static of an operand.
    pub(super) fn fixed(&self, id: StaticId) -> &DeviceStatic {
        &self.statics[id]
    }
}

/// A defect: `primitives::prepare_all` leaves nothing out.
pub(super) fn unprepared() -> ExecError {
    ExecError::Failed("a call was not prepared".into())
}
