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

#[cfg(test)]
mod tests {
    use super::super::plan::{Elem, Epilogue};
    use super::*;

    /// A random list of calls over values, each written before it is read; one may be written in place again.
    fn random_calls(seed: u64) -> (Vec<Call>, Vec<Buffer>) {
        let mut state = seed;
        let mut below = |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        let (mut values, mut views, mut calls) = (vec![], vec![], vec![]);
        let mut new = |below: &mut dyn FnMut(usize) -> usize, views: &mut Vec<View>| {
            let elem = [Elem::F32, Elem::F32, Elem::I64][below(3)];
            let rows = [RowKind::Tokens, RowKind::Selected][below(2)];
            let cols = 1 + below(9);
            values.push(buffer_for(elem, rows, cols));
            let view = View { buffer: values.len() - 1, elem, rows, cols, offset: 0, stride: cols };
            views.push(view);
            view
        };
        new(&mut below, &mut views);
        for _ in 0..5 + below(60) {
            // Mostly recent values, so that the others die.
            let read = |below: &mut dyn FnMut(usize) -> usize| views[views.len() - 1 - below(views.len().min(6))];
            let (a, b) = (read(&mut below), read(&mut below));
            if below(4) == 0 {
                calls.push(Call::Linear { x: a, segments: vec![], epilogue: Epilogue::Accumulate, out: b });
            } else {
                let out = new(&mut below, &mut views);
                calls.push(Call::Add { a: a.columns(0, 1), b, out });
            }
        }
        (calls, values)
    }

    /// Runs the calls over tags: every read finds the value that was meant, as last written.
    #[test]
    fn no_two_live_values_share_a_buffer() {
        let mut shared = 0;
        for seed in 0..2000 {
            let (mut calls, values) = random_calls(seed);
            let before = calls.clone();
            let mut logits = View { buffer: values.len() - 1, ..before_view(&before, values.len() - 1) };
            let mut input = before_view(&before, 0);
            let buffers = assign(&mut calls, &values, &mut [&mut input, &mut logits]);
            let mut holds: Vec<Option<usize>> = vec![None; buffers.len()];
            holds[input.buffer] = Some(0);
            for (i, (mut call, mut planned)) in before.into_iter().zip(calls).enumerate() {
                let (mut meant, mut found) = (call.views(), planned.views());
                let (out, to) = (meant.pop().expect("a call writes"), found.pop().expect("a call writes"));
                for (value, place) in meant.iter().zip(&found) {
                    assert_eq!(holds[place.buffer], Some(value.buffer), "seed {seed}, call {i} reads another value");
                    assert_eq!(place.buffer == to.buffer, value.buffer == out.buffer, "seed {seed}, call {i}");
                }
                let (b, v) = (&buffers[to.buffer], &values[out.buffer]);
                assert!(b.elem == v.elem && b.per_token >= v.per_token && b.per_selected >= v.per_selected);
                assert!(to.buffer != input.buffer || out.buffer == 0, "seed {seed}: an input's buffer is reused");
                holds[to.buffer] = Some(out.buffer);
            }
            assert_eq!(holds[logits.buffer], Some(values.len() - 1), "seed {seed}: the result was overwritten");
            shared += values.len() - buffers.len();
        }
        assert!(shared > 2000, "buffers are shared: {shared}");
    }

    /// A view of the whole value, as some call has it.
    fn before_view(calls: &[Call], value: usize) -> View {
        let mut all: Vec<View> =
            calls.iter().flat_map(|c| c.clone().views().into_iter().map(|v| *v).collect::<Vec<_>>()).collect();
        all.retain(|v| v.buffer == value);
        all.pop().unwrap_or(View {
            buffer: value,
            elem: Elem::F32,
            rows: RowKind::Tokens,
            cols: 1,
            offset: 0,
            stride: 1,
        })
    }

    #[test]
    fn a_value_read_twice_by_its_last_call_is_freed_once() {
        let view = |buffer| View { buffer, elem: Elem::F32, rows: RowKind::Tokens, cols: 4, offset: 0, stride: 4 };
        let add = |a, b, out| Call::Add { a: view(a), b: view(b), out: view(out) };
        let mut calls = vec![add(0, 0, 1), add(1, 1, 2), add(2, 2, 3), add(3, 3, 4)];
        let values = vec![buffer_for(Elem::F32, RowKind::Tokens, 4); 5];
        let (mut input, mut logits) = (view(0), view(4));
        let buffers = assign(&mut calls, &values, &mut [&mut input, &mut logits]);
        // Input, result, and two that take turns.
        assert_eq!(buffers.len(), 4);
    }
}
