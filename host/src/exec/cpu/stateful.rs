//! Runs the calls that keep a state for each sequence, and linear layers by expert and by parts of a row.

use kernels::cpu::{
    self, CausalConv, Epilogue, Groups, LinearAttentionOperands, Rows, RowsMut, Scratch, Segment, StateSpan,
};

use super::arena::Data;
use super::plan::{Call, Plan};
use super::{CpuExecutor, products};
use crate::exec::ExecError;

/// Room for what linear layers pack and sort, in a step of at most `rows` rows.
pub(super) fn room(plan: &Plan, rows: usize) -> (Scratch, Groups) {
    let (mut elements, mut choices, mut experts) = (0usize, 0usize, 0usize);
    for call in &plan.calls {
        let (each, cols) = match call {
            Call::Linear { x, .. } => (1, x.cols),
            Call::LinearParts { x, parts, .. } => (*parts, x.cols / parts.max(&1)),
            Call::GroupedLinear { x, ids, per_choice, experts: of, .. } => {
                (choices, experts) = (choices.max(ids.cols), experts.max(of.count));
                (ids.cols, if *per_choice { x.cols / ids.cols.max(1) } else { x.cols })
            }
            _ => continue,
        };
        // As many as `Scratch` rounds a row up to.
        elements = elements.max(rows.saturating_mul(each).saturating_mul(cols.next_multiple_of(64)));
    }
    (Scratch::with_capacity(1, elements), Groups::with_capacity(rows.saturating_mul(choices), experts))
}

impl CpuExecutor {
    /// Convolutions and running states.
    pub(super) fn recurrent(&mut self, call: &Call, seqs: &[StateSpan]) -> Result<(), ExecError> {
        let (cpu, statics, slots) = (&self.cpu, &self.statics, &mut self.slots);
        match call {
            Call::CausalConv { state, x, conv, out } => {
                let conv = CausalConv {
                    weight: statics[conv.weight].values()?,
                    bias: conv.bias.map(|id| statics[id].values()).transpose()?,
                    width: conv.width,
                    activation: conv.activation,
                };
                self.arena.with_f32(out, |arena, out| {
                    Ok(cpu::causal_conv1d(cpu, &conv, arena.f32(x)?, seqs, &mut slots.data[*state], out)?)
                })
            }
            Call::LinearAttention { state, q, k, v, decay, beta, shape, out } => {
                self.arena.with_f32(out, |arena, out| {
                    let operands = LinearAttentionOperands {
                        q: arena.f32(q)?,
                        k: arena.f32(k)?,
                        v: arena.f32(v)?,
                        decay: arena.f32(decay)?,
                        beta: beta.as_ref().map(|beta| arena.f32(beta)).transpose()?,
                    };
                    Ok(cpu::linear_attention(cpu, shape, &operands, seqs, &mut slots.data[*state], out)?)
                })
            }
            _ => Err(ExecError::Failed("not a recurrent call".into())),
        }
    }

    /// A linear layer on every part of a row.
    pub(super) fn linear_parts(&mut self, call: &Call) -> Result<(), ExecError> {
        let Call::LinearParts { x, parts, segment, out } = call else {
            return Err(ExecError::Failed("not a linear by parts".into()));
        };
        let (cpu, statics, scratch) = (&self.cpu, &self.statics, &mut self.scratch);
        let segment_of = Segment {
            weight: statics[segment.weight].matrix()?,
            bias: segment.bias.map(|b| statics[b].values()).transpose()?,
            n: segment.n,
            out_offset: 0,
            activation: None,
        };
        let compute = products(self.compute, Some(&segment_of));
        self.arena.with_out(out, |arena, data| {
            let (Data::F32(to), Data::F32(from)) = (data, arena.data(x)) else {
                return Err(ExecError::Failed("a linear by parts reads or writes another type".into()));
            };
            let rows = arena.rows(out) * parts;
            let (x, out) = (Rows::dense(from, rows, x.cols / parts), RowsMut::dense(to, rows, segment.n));
            Ok(cpu::linear(cpu, scratch, x, &[segment_of], compute, Epilogue::None, out)?)
        })
    }

    /// Linear layers by expert. Only the weights of experts that a row chose are looked at.
    pub(super) fn grouped_linear(&mut self, call: &Call) -> Result<(), ExecError> {
        let Call::GroupedLinear { x, ids, per_choice, experts, out } = call else {
            return Err(ExecError::Failed("not a grouped linear".into()));
        };
        let (cpu, statics, scratch, groups) = (&self.cpu, &self.statics, &mut self.scratch, &mut self.groups);
        let choices = ids.cols;
        let n: usize = experts.widths.iter().sum();
        groups.sort(self.arena.i64_all(ids)?, experts.count)?;
        let each = experts.widths.len();
        let k = if *per_choice { x.cols / choices } else { x.cols };
        let bias = experts.bias.map(|id| statics[id].values()).transpose()?;
        let mut segments = Vec::with_capacity(groups.chosen().count() * each);
        for e in groups.chosen() {
            let mut out_offset = 0;
            for (part, &width) in experts.parts[e * each..][..each].iter().zip(&experts.widths) {
                segments.push(Segment {
                    weight: statics[part.weight].matrix()?.elements(part.row * k, width * k)?,
                    bias: bias.map(|b| &b[e * n + out_offset..][..width]),
                    n: width,
                    out_offset,
                    activation: None,
                });
                out_offset += width;
            }
        }
        let compute = products(self.compute, segments.first());
        self.arena.with_out(out, |arena, data| {
            let (Data::F32(to), Data::F32(from)) = (data, arena.data(x)) else {
                return Err(ExecError::Failed("a grouped linear reads or writes another type".into()));
            };
            let rows = arena.rows(out);
            let x = Rows::dense(from, if *per_choice { rows * choices } else { rows }, k);
            let out = RowsMut::dense(to, rows * choices, n);
            Ok(cpu::grouped_linear(cpu, scratch, x, groups, &segments, compute, out)?)
        })
    }
}
