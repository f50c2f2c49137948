//! What keeps a state of fixed size for each sequence: convolutions along the sequence, and attention by a running
//! matrix (`scan`).
//!
//! The state of one layer is one slice, a slot of equal size for each sequence. A call takes some rows of some sequences,
//! goes through the rows of each in order, and leaves the slot as the next rows need it. Batch invariance: an output is
//! computed from the slot and the rows before it in one order of operations, whether these came in one call or in many;
//! threads share out sequences, heads and columns, never rows.

mod conv;
mod scan;

pub use conv::{CausalConv, MAX_WIDTH, causal_conv1d};
pub use scan::{LinearAttention, Operands as LinearAttentionOperands, linear_attention};

use super::KernelError;
use super::error::check_len;

/// Rows of a step that belong to one sequence, and where its state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateSpan {
    /// The first of its rows in the operands.
    pub first_row: usize,
    /// How many rows.
    pub rows: usize,
    /// Its slot of the state; no other sequence of the call has it.
    pub slot: usize,
    /// The first row is the sequence's first: its state begins at zero, whatever the slot holds.
    pub fresh: bool,
}

/// Checks that the spans lie in `rows` rows, in ascending order and disjoint, and that slots are inside of the state and
/// used once. Returns the number of slots.
fn check_spans(seqs: &[StateSpan], rows: usize, state: usize, slot: usize) -> Result<usize, KernelError> {
    let slots = state.checked_div(slot).unwrap_or(usize::MAX);
    if slot > 0 {
        super::error::check_eq("state", "length (slots * elements of one)", slots * slot, state)?;
    }
    let mut end = 0;
    for (index, seq) in seqs.iter().enumerate() {
        if seq.first_row < end {
            return Err(KernelError::Overlap { argument: "seqs", first: index - 1, second: index });
        }
        end = seq.first_row.saturating_add(seq.rows);
        check_len("x", end, rows)?;
        if seq.slot >= slots {
            let (place, at) = (index, seq.slot as u64);
            return Err(KernelError::Index { argument: "seqs.slot", place, index: at, limit: slots });
        }
        // Steps have few sequences, and the check is nothing beside their rows.
        if let Some(first) = seqs[..index].iter().position(|other| other.slot == seq.slot) {
            return Err(KernelError::Overlap { argument: "seqs.slot", first, second: index });
        }
    }
    Ok(slots)
}

/// A pointer to the state for several threads, each of which has parts of its own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: only a pointer; whoever uses it answers for disjointness.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(&self) -> *mut f32 {
        self.0
    }
}
