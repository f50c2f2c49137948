//! The buffers of a plan, allocated once for the token budget, and views into them.

use kernels::cpu::{Rows, RowsMut};

use super::plan::{Buffer, Elem, RowKind, View};
use super::zeroed::Zeroed;
use crate::exec::ExecError;

/// Most bytes of all buffers: ten times what the largest models of today take with a usual token budget.
const MAX_BYTES: usize = 32 << 30;

/// Buffers by index.
pub(super) struct Arena {
    buffers: Vec<Data>,
    /// Rows of this step: tokens, and selected ones.
    tokens: usize,
    selected: usize,
    max_tokens: usize,
    max_selected: usize,
}

/// One buffer.
pub(super) enum Data {
    F32(Zeroed<f32>),
    I64(Zeroed<i64>),
    Bool(Vec<bool>),
}

impl Arena {
    pub(super) fn new(buffers: &[Buffer], max_tokens: usize, max_selected: usize) -> Result<Arena, ExecError> {
        let elements =
            |b: &Buffer| b.per_token.saturating_mul(max_tokens).max(b.per_selected.saturating_mul(max_selected));
        let bytes = buffers.iter().fold(0usize, |sum, b| sum.saturating_add(elements(b).saturating_mul(b.elem.size())));
        let refused = |reason: &str| {
            ExecError::Failed(format!(
                "the values of a step of {max_tokens} tokens take {bytes} bytes: {reason}; lower --max-num-batched-tokens"
            ))
        };
        if bytes > MAX_BYTES {
            return Err(refused(&format!("the limit is {MAX_BYTES}")));
        }
        let allocate = |b: &Buffer| {
            let n = elements(b);
            Ok::<_, String>(match b.elem {
                Elem::F32 => Data::F32(Zeroed::new(n)?),
                Elem::I64 => Data::I64(Zeroed::new(n)?),
                Elem::Bool => {
                    let mut bools = Vec::new();
                    bools.try_reserve_exact(n).map_err(|e| e.to_string())?;
                    bools.resize(n, false);
                    Data::Bool(bools)
                }
            })
        };
        let buffers = buffers.iter().map(allocate).collect::<Result<_, _>>().map_err(|e| refused(&e))?;
        Ok(Arena { buffers, tokens: 0, selected: 0, max_tokens, max_selected })
    }

    /// Sets the sizes of the step.
    pub(super) fn begin(&mut self, tokens: usize, selected: usize) -> Result<(), ExecError> {
        if tokens > self.max_tokens || selected > self.max_selected {
            return Err(ExecError::BadStep(format!(
                "{tokens} tokens and {selected} rows of logits; the limits are {} and {}",
                self.max_tokens, self.max_selected
            )));
        }
        (self.tokens, self.selected) = (tokens, selected);
        Ok(())
    }

    /// Rows that a view has in this step.
    pub(super) fn rows(&self, view: &View) -> usize {
        match view.rows {
            RowKind::Tokens => self.tokens,
            RowKind::Selected => self.selected,
        }
    }

    /// A float view as a kernel operand.
    pub(super) fn f32(&self, view: &View) -> Result<Rows<'_>, ExecError> {
        let Data::F32(data) = &self.buffers[view.buffer] else { return Err(wrong_type(view)) };
        Ok(rows_of(data, view, self.rows(view)))
    }

    /// The integers of a view of one column.
    pub(super) fn i64(&self, view: &View) -> Result<&[i64], ExecError> {
        match &self.buffers[view.buffer] {
            Data::I64(data) if view.is_whole() && view.cols == 1 => Ok(&data[..self.rows(view)]),
            _ => Err(wrong_type(view)),
        }
    }

    /// The integers of a view without gaps.
    pub(super) fn i64_all(&self, view: &View) -> Result<&[i64], ExecError> {
        match &self.buffers[view.buffer] {
            Data::I64(data) if view.is_whole() => Ok(&data[..self.rows(view) * view.cols]),
            _ => Err(wrong_type(view)),
        }
    }

    /// Like [`Arena::i64`], to write the step's inputs.
    pub(super) fn i64_mut(&mut self, view: &View) -> Result<&mut [i64], ExecError> {
        let rows = self.rows(view);
        match &mut self.buffers[view.buffer] {
            Data::I64(data) if view.is_whole() && view.cols == 1 => Ok(&mut data[..rows]),
            _ => Err(wrong_type(view)),
        }
    }

    /// All elements of a buffer.
    pub(super) fn data(&self, view: &View) -> &Data {
        &self.buffers[view.buffer]
    }

    /// Runs `f` with the buffer of `out` taken out, so that it can be written while others are read.
    pub(super) fn with_out<O>(&mut self, out: &View, f: impl FnOnce(&Arena, &mut Data) -> O) -> O {
        let mut data = std::mem::replace(&mut self.buffers[out.buffer], Data::Bool(Vec::new()));
        let result = f(self, &mut data);
        self.buffers[out.buffer] = data;
        result
    }

    /// [`Arena::with_out`] for float views.
    pub(super) fn with_f32<O>(
        &mut self,
        out: &View,
        f: impl FnOnce(&Arena, RowsMut<'_>) -> Result<O, ExecError>,
    ) -> Result<O, ExecError> {
        self.with_out(out, |arena, data| match data {
            Data::F32(data) => {
                let rows = arena.rows(out);
                f(arena, RowsMut::strided(&mut data[out.offset..], rows, out.cols, out.stride))
            }
            _ => Err(wrong_type(out)),
        })
    }
}

fn rows_of<'a>(data: &'a [f32], view: &View, rows: usize) -> Rows<'a> {
    Rows::strided(&data[view.offset..], rows, view.cols, view.stride)
}

fn wrong_type(view: &View) -> ExecError {
    ExecError::Failed(format!("the plan reads {view} as another type"))
}
