//! Ops that work along one axis: reductions, running sums, sorting, indexing. Over plain slices.
//!
//! A *lane* is the elements that differ in one coordinate only. Called by `ops`.

use std::cmp::Ordering;

/// Where a lane lies in row-major data: `start`, `start + stride`, ... (`len` elements).
#[derive(Clone, Copy)]
pub(super) struct Lane {
    start: usize,
    stride: usize,
    len: usize,
}

impl Lane {
    fn indices(self) -> impl Iterator<Item = usize> {
        (0..self.len).map(move |i| self.start + i * self.stride)
    }

    /// Position in the data of the lane's element `index`.
    fn at(self, index: i64) -> Result<usize, String> {
        match usize::try_from(index) {
            Ok(i) if i < self.len => Ok(self.start + i * self.stride),
            _ => Err(format!("index {index} is out of range, the axis has {} elements", self.len)),
        }
    }
}

/// The lanes of a shape along `axis`, in row-major order of the other coordinates.
pub(super) fn lanes(shape: &[usize], axis: usize) -> impl Iterator<Item = Lane> {
    let (outer, len, inner) =
        (shape[..axis].iter().product::<usize>(), shape[axis], shape[axis + 1..].iter().product::<usize>());
    (0..outer).flat_map(move |o| (0..inner).map(move |i| Lane { start: o * len * inner + i, stride: inner, len }))
}

/// Replaces every lane by `f` of its elements, which must give `out_len` of them.
pub(super) fn map_lanes<E: Copy, O: Copy + Default>(
    data: &[E],
    shape: &[usize],
    axis: usize,
    out_len: usize,
    mut f: impl FnMut(&[E]) -> Result<Vec<O>, String>,
) -> Result<Vec<O>, String> {
    let mut out_shape = shape.to_vec();
    out_shape[axis] = out_len;
    let mut out = vec![O::default(); out_shape.iter().product()];
    let mut lane_data = Vec::with_capacity(shape[axis]);
    for (from, to) in lanes(shape, axis).zip(lanes(&out_shape, axis)) {
        lane_data.clear();
        lane_data.extend(from.indices().map(|i| data[i]));
        for (i, y) in to.indices().zip(f(&lane_data)?) {
            out[i] = y;
        }
    }
    Ok(out)
}

/// Order of floats for maxima, top-k and sorting: NaN is larger than every number, zeros are equal.
pub(in crate::exec) fn order(a: &f32, b: &f32) -> Ordering {
    a.partial_cmp(b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Index of the first largest element.
pub(super) fn argmax<E>(lane: &[E], order: impl Fn(&E, &E) -> Ordering) -> Result<i64, String> {
    let mut best: Option<usize> = None;
    for (i, x) in lane.iter().enumerate() {
        if best.is_none_or(|b| order(x, &lane[b]) == Ordering::Greater) {
            best = Some(i);
        }
    }
    best.map(|b| b as i64).ok_or_else(|| "an empty axis has no largest element".to_owned())
}

/// Indices that sort a lane; equal elements keep their order.
pub(super) fn argsort<E>(lane: &[E], descending: bool, order: impl Fn(&E, &E) -> Ordering) -> Vec<i64> {
    let mut indices: Vec<i64> = (0..lane.len() as i64).collect();
    indices.sort_by(|&a, &b| {
        let ordering = order(&lane[a as usize], &lane[b as usize]);
        if descending { ordering.reverse() } else { ordering }
    });
    indices
}

/// Element by element along the axis; `index` has the shape of `x` but for the axis.
pub(super) fn gather<E: Copy + Default>(
    (x, shape): (&[E], &[usize]),
    (index, index_shape): (&[i64], &[usize]),
    axis: usize,
) -> Result<Vec<E>, String> {
    let mut out = vec![E::default(); index.len()];
    for (from, to) in lanes(shape, axis).zip(lanes(index_shape, axis)) {
        for i in to.indices() {
            out[i] = x[from.at(index[i])?];
        }
    }
    Ok(out)
}

/// Writes `values` (of the shape of `index`) into `x` along the axis, in index order; `write` gets the
/// element that is there and the new one.
pub(super) fn scatter<E: Copy>(
    (x, shape): (&mut [E], &[usize]),
    (index, index_shape): (&[i64], &[usize]),
    values: &[E],
    axis: usize,
    write: impl Fn(E, E) -> E,
) -> Result<(), String> {
    for (to, from) in lanes(shape, axis).zip(lanes(index_shape, axis)) {
        for i in from.indices() {
            let target = &mut x[to.at(index[i])?];
            *target = write(*target, values[i]);
        }
    }
    Ok(())
}
