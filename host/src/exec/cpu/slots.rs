//! Running states: memory of fixed size for each sequence, in slots. Which sequence has which slot, and how far it is.
//!
//! A sequence gets a slot with its first token and gives it back when it is forgotten. What a slot held before does not
//! matter: states begin at zero with position 0.

use std::collections::HashMap;

use kernels::cpu::StateSpan;

use super::zeroed::Zeroed;
use crate::exec::{ExecError, Step};

/// The states of all sequences.
pub(in crate::exec) struct Slots {
    /// By state of the plan: a slot of equal size for each sequence.
    pub(super) data: Vec<Zeroed<f32>>,
    held: HashMap<u64, Held>,
    /// The lowest is taken first, so that memory which few sequences need is never touched.
    free: Vec<usize>,
    count: usize,
}

struct Held {
    slot: usize,
    /// Tokens that the state has seen.
    computed: usize,
}

impl Slots {
    /// For at most `count` sequences.
    pub(in crate::exec) fn new(count: usize) -> Slots {
        Slots { data: vec![], held: HashMap::with_capacity(count), free: (0..count).rev().collect(), count }
    }

    /// Allocates slots of these elements.
    pub(in crate::exec) fn allocate(&mut self, elements: &[usize]) -> Result<(), ExecError> {
        let one = |&n: &usize| {
            n.checked_mul(self.count).ok_or_else(|| "the size overflows".to_owned()).and_then(Zeroed::new).map_err(
                |reason| {
                    let bytes = elements.iter().fold(0usize, |sum, n| sum.saturating_add(n.saturating_mul(4)));
                    ExecError::Failed(format!(
                        "cannot allocate {bytes} bytes of recurrent state for each of {} sequences: {reason}; lower \
                     --max-num-seqs",
                        self.count
                    ))
                },
            )
        };
        self.data = elements.iter().map(one).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Where the states of a step's sequences are; nothing if the plan has none.
    pub(in crate::exec) fn begin(&mut self, step: &Step<'_>) -> Result<Vec<StateSpan>, ExecError> {
        if self.data.is_empty() {
            return Ok(vec![]);
        }
        let mut first_row = 0;
        let mut spans = Vec::with_capacity(step.seqs.len());
        for seq in step.seqs {
            let bad = |what: String| Err(ExecError::BadStep(format!("sequence {} {what}", seq.id)));
            let fresh = seq.computed == 0;
            let slot = match self.held.get(&seq.id) {
                Some(held) if fresh || held.computed == seq.computed => held.slot,
                Some(held) => {
                    return bad(format!(
                        "goes on at token {}, but its recurrent state has seen {}",
                        seq.computed, held.computed
                    ));
                }
                None if !fresh => return bad(format!("goes on at token {}, but has no recurrent state", seq.computed)),
                None => match self.free.pop() {
                    Some(slot) => slot,
                    None => return bad(format!("is one more than the {} that states are kept for", self.count)),
                },
            };
            self.held.insert(seq.id, Held { slot, computed: seq.tokens.len() });
            let rows = seq.tokens.len() - seq.computed;
            spans.push(StateSpan { first_row, rows, slot, fresh });
            first_row += rows;
        }
        Ok(spans)
    }

    /// Takes the slot of a sequence back.
    pub(in crate::exec) fn forget(&mut self, id: u64) {
        if let Some(held) = self.held.remove(&id) {
            let at = self.free.partition_point(|&other| other > held.slot);
            self.free.insert(at, held.slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::{LogitRows, StepSeq};

    fn seq(id: u64, tokens: &[u32], computed: usize) -> StepSeq<'_> {
        StepSeq { id, tokens, computed, context_len: tokens.len(), blocks: &[], logits: LogitRows::None }
    }

    #[test]
    fn sequences_keep_their_slot_until_they_are_forgotten() {
        let mut slots = Slots::new(2);
        assert_eq!(slots.begin(&Step { seqs: &[seq(1, &[5], 0)] }).unwrap(), []);
        slots.allocate(&[3, 1]).unwrap();
        assert_eq!(slots.data.iter().map(|s| s.len()).collect::<Vec<_>>(), [6, 2]);
        let spans = |slots: &mut Slots, seqs: &[StepSeq<'_>]| slots.begin(&Step { seqs });
        let a = [1, 2, 3, 4];
        let first = spans(&mut slots, &[seq(7, &a[..2], 0), seq(8, &a[..1], 0)]).unwrap();
        let span = |first_row, rows, slot, fresh| StateSpan { first_row, rows, slot, fresh };
        assert_eq!(first, [span(0, 2, 0, true), span(2, 1, 1, true)]);
        assert_eq!(
            spans(&mut slots, &[seq(8, &a, 1), seq(7, &a, 2)]).unwrap(),
            [span(0, 3, 1, false), span(3, 2, 0, false)]
        );
        let says = |slots: &mut Slots, seq: StepSeq<'_>, words: &str| {
            let error = slots.begin(&Step { seqs: &[seq] }).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        says(&mut slots, seq(9, &a, 0), "sequence 9 is one more than the 2 that states are kept for");
        says(&mut slots, seq(9, &a, 2), "goes on at token 2, but has no recurrent state");
        says(&mut slots, seq(7, &a, 3), "goes on at token 3, but its recurrent state has seen 4");
        // Begun anew after preemption, with or without being forgotten.
        assert_eq!(spans(&mut slots, &[seq(7, &a[..1], 0)]).unwrap(), [span(0, 1, 0, true)]);
        slots.forget(8);
        slots.forget(7);
        slots.forget(7);
        assert_eq!(spans(&mut slots, &[seq(9, &a[..1], 0)]).unwrap(), [span(0, 1, 0, true)]);
    }
}
