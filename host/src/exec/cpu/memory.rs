//! Plans memory: values whose lives do not overlap share a buffer.

use super::plan::{Buffer, Call, RowKind, View};

/// Replaces the one-buffer-a-value numbering of `calls` by shared buffers and returns these. `pinned`
/// (inputs and results) keep a buffer of their own.
pub(super) fn assign(calls: &mut [Call], values: &[Buffer], pinned: &mut [&mut View]) -> Vec<Buffer> {
    let mut last = vec![0usize; values.len()];
    for (i, call) in calls.iter_mut().enumerate() {
        call.views().into_iter().for_each(|v| last[v.buffer] = i);
    }
    let mut place: Vec<Option<usize>> = vec![None; values.len()];
    let mut buffers: Vec<Buffer> = Vec::new();
    for view in pinned.iter_mut() {
        // Several results may be one value.
        let at = *place[view.buffer].get_or_insert_with(|| {
            buffers.push(values[view.buffer]);
            buffers.len() - 1
        });
        last[view.buffer] = usize::MAX;
        view.buffer = at;
    }
    let mut free: Vec<usize> = Vec::new();
    for (i, call) in calls.iter_mut().enumerate() {
        let mut dying = Vec::new();
        for view in call.views() {
            let value = view.buffer;
            let at = *place[value].get_or_insert_with(|| take(&mut free, &mut buffers, &values[value]));
            if last[value] == i {
                last[value] = usize::MAX; // once, should the call read it twice
                dying.push(at);
            }
            view.buffer = at;
        }
        // Freed after the whole call: its output never shares with its inputs unless it is in place.
        free.extend(dying);
    }
    buffers
}

/// How many free buffers are looked at: graphs of models have a handful, hostile ones would make this quadratic.
const LOOK_AT: usize = 64;

/// The free buffer of the right type that has to grow least, or a new one.
fn take(free: &mut Vec<usize>, buffers: &mut Vec<Buffer>, want: &Buffer) -> usize {
    let growth =
        |b: &Buffer| want.per_token.saturating_sub(b.per_token) + want.per_selected.saturating_sub(b.per_selected);
    let slack = |b: &Buffer| b.per_token.saturating_sub(want.per_token);
    let best = (free.len().saturating_sub(LOOK_AT)..free.len())
        .filter(|&i| buffers[free[i]].elem == want.elem)
        .min_by_key(|&i| (growth(&buffers[free[i]]), slack(&buffers[free[i]]), free[i]));
    match best {
        Some(i) => {
            let at = free.swap_remove(i);
            let b = &mut buffers[at];
            b.per_token = b.per_token.max(want.per_token);
            b.per_selected = b.per_selected.max(want.per_selected);
            at
        }
        None => {
            buffers.push(*want);
            buffers.len() - 1
        }
    }
}

/// A buffer for rows of `cols` elements.
pub(super) fn buffer_for(elem: super::plan::Elem, rows: RowKind, cols: usize) -> Buffer {
    match rows {
        RowKind::Tokens => Buffer { elem, per_token: cols, per_selected: 0 },
        RowKind::Selected => Buffer { elem, per_token: 0, per_selected: cols },
    }
}
