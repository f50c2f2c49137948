//! Matrix products on views. Products with a matrix of weights become `linear`, outer products `mul`; others are written
//! with the tokens first where each token has its own product.

use plugin_api::{Dim, Op, Value};

use super::view::{Atom, Slot, View, is_symbolic};
use super::{Result_, Writer};

/// Which axis of which operand something is: of the left one and of the right one.
type Both = [Option<usize>; 2];

impl Writer<'_> {
    pub(super) fn linear(&mut self, inputs: &[View]) -> Result_<View> {
        if inputs[0].axes.len() < 2 || !self.symbolic(inputs[0].value) {
            return self.as_written(&Op::Linear, inputs);
        }
        let x = self.last_written(&inputs[0])?;
        let mut values = vec![x.value];
        for other in &inputs[1..] {
            values.push(self.full(other)?);
        }
        let value = self.push(Op::Linear, values)?;
        self.settle(View { value, axes: x.axes })
    }

    pub(super) fn matmul(&mut self, a: &View, b: &View) -> Result_<View> {
        let rank = a.axes.len().max(b.axes.len());
        let (a, b) = (a.padded(rank), b.padded(rank));
        let (m, n) = (rank - 2, rank - 1);
        // One element in common: no sum.
        if a.axes[n].is_empty() && b.axes[m].is_empty() {
            return self.elementwise(&Op::Mul, &[a, b]);
        }
        let [a_steps, b_steps] = [&a, &b].map(|v| self.symbolic(v.value));
        let plain = |v: &View| v.axes[..m].iter().all(Vec::is_empty) && v.axes.iter().all(|x| x.len() <= 1);
        if a_steps && !b_steps && plain(&b) {
            return self.by_weight(&a, &b, [n, m]);
        }
        if b_steps && !a_steps && plain(&a) {
            // Transposed: the right side's columns are what the matrix is applied to.
            let axes: Vec<usize> = (0..m).chain([n, m]).collect();
            let (x, w) = (b.permuted(&axes), a.permuted(&axes));
            return Ok(self.by_weight(&x, &w, [n, m])?.permuted(&axes));
        }
        let (a, b) = (self.flat(&a)?, self.flat(&b)?);
        let stretched = |v: &View| v.axes.iter().flatten().any(|x| matches!(x, Atom::Stretch(_)));
        if stretched(&a) || stretched(&b) || !(a_steps || b_steps) {
            return self.stretched_matmul(&a, &b);
        }
        self.batched(&a, &b)
    }

    /// x[..., K] times a matrix [K, N] that is the same in every step; `k` and `n` are its axes.
    fn by_weight(&mut self, x: &View, w: &View, [n, k]: [usize; 2]) -> Result_<View> {
        let slot = |i: usize| match w.axes[i].as_slice() {
            [Atom::Axis(p)] => Slot::Axis(*p),
            [Atom::Stretch(d)] => Slot::Stretch(d.clone()),
            _ => Slot::One,
        };
        let weight = self.arranged(w.value, &[slot(n), slot(k)])?;
        let x = self.last_written(x)?;
        let value = self.push(Op::Linear, vec![x.value, weight])?;
        self.settle(View { value, axes: x.axes })
    }

    /// With what is stretched written out.
    fn stretched_matmul(&mut self, a: &View, b: &View) -> Result_<View> {
        if !(self.symbolic(a.value) || self.symbolic(b.value)) {
            return self.as_written(&Op::Matmul, &[a.clone(), b.clone()]);
        }
        let (x, y) = (self.full(a)?, self.full(b)?);
        let (x, y) = (self.settled(x)?, self.settled(y)?);
        self.batched(&x, &y)
    }

    /// Two values of which at least one is of the step. At most one atom an axis, none stretched.
    fn batched(&mut self, a: &View, b: &View) -> Result_<View> {
        let (m, n) = (a.axes.len() - 2, a.axes.len() - 1);
        let symbolic = |w: &Self, v: &View, i: usize| v.alone(i).is_some_and(|p| is_symbolic(&w.shape(v.value)[p]));
        let in_batch: Vec<usize> = (0..m).filter(|&i| symbolic(self, a, i) || symbolic(self, b, i)).collect();
        let (rows, columns) = (symbolic(self, a, m), symbolic(self, b, n));
        let summed = symbolic(self, a, n) || symbolic(self, b, m);
        let batch: Vec<usize> = (0..m).filter(|&i| a.alone(i).is_some() || b.alone(i).is_some()).collect();
        let by_token = !summed && in_batch.len() + usize::from(rows) + usize::from(columns) == 1;
        if !by_token {
            let axes = batch.iter().map(|&i| [Some(i); 2]).chain([[Some(m), Some(m)], [Some(n), Some(n)]]);
            return self.product([a, b], &axes.collect::<Vec<_>>(), |p, count| {
                if p < batch.len() { batch[p] } else { [m, n][p + 2 - count] }
            });
        }
        let others = batch.iter().copied().filter(|i| !in_batch.contains(i));
        // The token's axis, the other batches, then a matrix whose row or column may have been the tokens.
        let (token, matrix): (usize, [Both; 2]) = match (rows, columns) {
            (true, _) => (m, [[None, Some(m)], [Some(n), Some(n)]]),
            (_, true) => (n, [[Some(m), Some(m)], [Some(n), None]]),
            _ => (in_batch[0], [[Some(m), Some(m)], [Some(n), Some(n)]]),
        };
        let first: Both = match (rows, columns) {
            (true, _) => [Some(m), None],
            (_, true) => [None, Some(n)],
            _ => [Some(token), Some(token)],
        };
        let others: Vec<usize> = others.collect();
        let axes: Vec<Both> = [first].into_iter().chain(others.iter().map(|&i| [Some(i); 2])).chain(matrix).collect();
        self.product([a, b], &axes, |p, count| match p {
            0 => token,
            p if p <= others.len() => others[p - 1],
            p => [m, n][p + 2 - count],
        })
    }

    /// The matmul of operands with these axes; `old` gives the old axis of an axis of the result.
    fn product(&mut self, [a, b]: [&View; 2], axes: &[Both], old: impl Fn(usize, usize) -> usize) -> Result_<View> {
        let operand = |w: &mut Self, view: &View, side: usize| -> Result_<Value> {
            let slot = |axis: &Both| axis[side].and_then(|i| view.alone(i)).map_or(Slot::One, Slot::Axis);
            let slots: Vec<Slot> = axes.iter().map(slot).collect();
            // Both need two axes; more of size 1 before them are not needed.
            let from = slots[..slots.len() - 2].iter().take_while(|s| **s == Slot::One).count();
            w.arranged(view.value, &slots[from..])
        };
        let (x, y) = (operand(self, a, 0)?, operand(self, b, 1)?);
        let value = self.push(Op::Matmul, vec![x, y])?;
        let rank = a.axes.len();
        let mut out: Vec<Vec<Atom>> = vec![vec![]; rank];
        let dims: Vec<Dim> = self.shape(value).to_vec();
        for p in (0..axes.len()).filter(|&p| !dims[p].is_one()) {
            out[old(p, axes.len())] = vec![Atom::Axis(p)];
        }
        self.settle(View { value, axes: out })
    }
}
