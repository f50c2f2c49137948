//! Convolution along the sequence, each channel by itself. The state is the last `width - 1` rows of x.

use super::super::error::check_eq;
use super::super::operands::SharedRows;
use super::super::simd::{self, Activation, Kernel, Simd};
use super::super::{Cpu, KernelError, Rows, RowsMut, split};
use super::{Shared, StateSpan, check_spans};

/// The widest convolution that there is a kernel for.
pub const MAX_WIDTH: usize = 16;

/// Fewer elements than this are not worth a hand-over to other threads.
const PARALLEL: usize = 1 << 14;

/// `y[t, c] = activation(bias[c] + sum over w of weight[c, w] * x[t - width + 1 + w, c])`
#[derive(Debug, Clone, Copy)]
pub struct CausalConv<'a> {
    /// `[channels, width]`
    pub weight: &'a [f32],
    /// `[channels]`
    pub bias: Option<&'a [f32]>,
    /// Rows that an output sees, itself included; at most [`MAX_WIDTH`].
    pub width: usize,
    /// Applied to the sum.
    pub activation: Option<Activation>,
}

impl CausalConv<'_> {
    /// Elements of a sequence's state.
    pub fn state_elements(width: usize, channels: usize) -> usize {
        width.saturating_sub(1).saturating_mul(channels)
    }
}

/// The convolution of all rows of `seqs`; `x` and `out` are `[T, channels]`, `state` is `[slots, width - 1, channels]`.
/// Rows of no sequence are left as they are.
pub fn causal_conv1d(
    cpu: &Cpu,
    conv: &CausalConv<'_>,
    x: Rows<'_>,
    seqs: &[StateSpan],
    state: &mut [f32],
    mut out: RowsMut<'_>,
) -> Result<(), KernelError> {
    if conv.width == 0 || conv.width > MAX_WIDTH {
        let why = "must be 1 to 16";
        return Err(KernelError::Option { argument: "conv.width", got: conv.width.to_string(), why });
    }
    let channels = x.cols;
    x.check("x")?;
    out.check_shape("out", x.rows, channels)?;
    check_eq("conv.weight", "length (channels * width)", channels.saturating_mul(conv.width), conv.weight.len())?;
    conv.bias.map_or(Ok(()), |b| check_eq("conv.bias", "length", channels, b.len()))?;
    check_spans(seqs, x.rows, state.len(), CausalConv::state_elements(conv.width, channels))?;
    let work = Work { conv, x, seqs, state: Shared(state.as_mut_ptr()), out: out.share() };
    let isa = cpu.isa();
    let rows: usize = seqs.iter().map(|s| s.rows).sum();
    let part = |part, parts| simd::dispatch(isa, Share { work: &work, part, parts });
    if rows.saturating_mul(channels) < PARALLEL {
        part(0, 1)
    } else {
        cpu.pool().run(&part)
    }
    Ok(())
}

struct Work<'a> {
    conv: &'a CausalConv<'a>,
    x: Rows<'a>,
    seqs: &'a [StateSpan],
    state: Shared,
    out: SharedRows,
}

/// One thread's channels, in vectors.
struct Share<'w> {
    work: &'w Work<'w>,
    part: usize,
    parts: usize,
}

impl Kernel for Share<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.work.x.cols;
        for vector in split(channels.div_ceil(S::L), self.part, self.parts) {
            let first = vector * S::L;
            let lanes = S::L.min(channels - first);
            for seq in self.work.seqs.iter().filter(|seq| seq.rows > 0) {
                // SAFETY: `first..first + lanes` are channels that this thread alone has; operands were checked.
                unsafe { self.work.channels(s, seq, first, lanes) }
            }
        }
    }
}

impl Work<'_> {
    /// All rows of a sequence, for the channels of one vector.
    ///
    /// # Safety
    /// The channels are in range and no other thread has them.
    #[inline(always)]
    unsafe fn channels<S: Simd>(&self, s: S, seq: &StateSpan, first: usize, lanes: usize) {
        let (width, channels) = (self.conv.width, self.x.cols);
        let before = width - 1;
        let mut weights = [s.splat(0.0); MAX_WIDTH];
        for w in 0..width {
            let mut column = [0.0; 16];
            for lane in 0..lanes {
                column[lane] = self.conv.weight[(first + lane) * width + w];
            }
            weights[w] = s.of(&column[..S::L]);
        }
        let bias = if let Some(bias) = self.conv.bias { s.of_part(&bias[first..first + lanes]) } else { s.splat(0.0) };
        // The rows that outputs see, oldest first: those of the state, then those of x as they come.
        let mut seen = [s.splat(0.0); MAX_WIDTH];
        // SAFETY: the slot was checked; its columns of these channels are this thread's own.
        let slot = unsafe { self.state.get().add(seq.slot * before * channels + first) };
        if !seq.fresh {
            for w in 0..before {
                // SAFETY: row `w` of the slot, `lanes` elements.
                seen[w] = unsafe { s.load_part(slot.add(w * channels), lanes) };
            }
        }
        for row in seq.first_row..seq.first_row + seq.rows {
            seen[before] = s.of_part(&self.x.row(row)[first..first + lanes]);
            let mut y = bias;
            for w in 0..width {
                y = s.fma(weights[w], seen[w], y);
            }
            if let Some(activation) = self.conv.activation {
                y = simd::apply(s, activation, y);
            }
            // SAFETY: these channels are this thread's own.
            s.to_part(unsafe { self.out.part(row, first, lanes) }, y);
            for w in 0..before {
                seen[w] = seen[w + 1];
            }
        }
        for w in 0..before {
            // SAFETY: as above.
            unsafe { s.store_part(slot.add(w * channels), seen[w], lanes) };
        }
    }
}
