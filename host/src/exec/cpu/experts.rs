//! Linear layers by expert: which rows of which weights an expert has, so that weights which a checkpoint stores expert by
//! expert, or gate and up apart, are read where they are.

use plugin_api::{DType, Graph, Op, Value};

use super::facts::row_dims;
use super::lower::Lowering;
use super::plan::{Call, ExpertPart, Experts, StaticForm, View};

/// Most runs that a value is looked at as; beyond, it is computed in one piece.
const MAX_RUNS: usize = 1 << 16;

/// Rows `row .. row + rows` of a static value, seen as a matrix of its last dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    value: Value,
    row: usize,
    rows: usize,
}

/// The rows of a static value as rows of the values that it is put together from.
fn runs(graph: &Graph, v: Value) -> Vec<Run> {
    let sizes = |v: Value| graph.ty(v).shape.as_consts().unwrap_or_default();
    let dims = sizes(v);
    let Some(axes) = dims.len().checked_sub(1) else { return vec![Run { value: v, row: 0, rows: 1 }] };
    let whole = vec![Run { value: v, row: 0, rows: dims[..axes].iter().product() }];
    let node = graph.node(v);
    let first = node.inputs.first().copied();
    let found = match (&node.op, first) {
        (Op::Reshape { .. }, Some(x)) if sizes(x).len() > 1 && sizes(x).last() == dims.last() => runs(graph, x),
        (Op::Cast { dtype: DType::Float | DType::F32 }, Some(x)) if graph.ty(x).dtype.is_float() => runs(graph, x),
        (Op::Concat { axis }, Some(_)) if *axis < axes => {
            let parts: Vec<(Vec<Run>, usize)> =
                node.inputs.iter().map(|&p| (runs(graph, p), sizes(p)[*axis..axes].iter().product())).collect();
            let outer = dims[..*axis].iter().product::<usize>();
            if outer.saturating_mul(parts.len()) > MAX_RUNS {
                return whole;
            }
            let mut out = vec![];
            for o in 0..outer {
                parts.iter().for_each(|(runs, inner)| take(runs, o * inner, *inner, &mut out));
            }
            out
        }
        (Op::Slice { axis, start, step: 1, .. }, Some(x)) if *axis < axes => {
            let (from, start) = (sizes(x), start.as_const().and_then(|n| usize::try_from(n).ok()));
            let Some(start) = start else { return whole };
            let (outer, below) =
                (dims[..*axis].iter().product::<usize>(), dims[axis + 1..axes].iter().product::<usize>());
            if outer > MAX_RUNS {
                return whole;
            }
            let (source, mut out) = (runs(graph, x), vec![]);
            for o in 0..outer {
                take(&source, (o * from[*axis] + start) * below, dims[*axis] * below, &mut out);
            }
            out
        }
        _ => return whole,
    };
    if found.len() > MAX_RUNS { whole } else { found }
}

/// Appends rows `from .. from + len` of what `runs` lists.
fn take(runs: &[Run], from: usize, len: usize, out: &mut Vec<Run>) {
    let mut before = 0;
    for run in runs {
        let begin = from.clamp(before, before + run.rows) - before;
        let end = (from + len).clamp(before, before + run.rows) - before;
        before += run.rows;
        if begin == end {
            continue;
        }
        let next = Run { value: run.value, row: run.row + begin, rows: end - begin };
        match out.last_mut() {
            Some(last) if last.value == next.value && last.row + last.rows == next.row => last.rows += next.rows,
            _ => out.push(next),
        }
    }
}

/// The runs of each of `experts`; all have as many, of the same sizes.
fn by_expert(graph: &Graph, v: Value, experts: usize, n: usize) -> Option<Vec<Vec<Run>>> {
    let all = runs(graph, v);
    let own = |e: usize| {
        let mut out = vec![];
        take(&all, e * n, n, &mut out);
        out
    };
    let out: Vec<Vec<Run>> = (0..experts).map(own).collect();
    let alike = |a: &[Run]| a.len() == out[0].len() && a.iter().zip(&out[0]).all(|(a, b)| a.rows == b.rows);
    out.iter().all(|a| alike(a)).then_some(out)
}

impl Lowering<'_> {
    /// The weights of a grouped linear, as they are stored if that can be.
    fn experts(&mut self, weight: Value, bias: Option<Value>) -> Experts {
        let sizes = self.graph.ty(weight).shape.as_consts().unwrap_or_default();
        let (experts, n) = (sizes[0], sizes[1]);
        let one = |e: usize| vec![Run { value: weight, row: e * n, rows: n }];
        let dtype = |run: &Run| (self.dtype_of)(self.graph, run.value);
        let runs = by_expert(self.graph, weight, experts, n)
            // Kernels take one type at a time.
            .filter(|all| all.iter().flatten().all(|run| dtype(run) == dtype(&all[0][0])))
            .unwrap_or_else(|| (0..experts).map(one).collect());
        let widths = runs.first().map_or(vec![n], |first| first.iter().map(|run| run.rows).collect());
        let part = |run: &Run| ExpertPart { weight: self.statics(run.value, StaticForm::Matrix), row: run.row };
        let parts = runs.iter().flatten().map(part).collect();
        Experts { count: experts, widths, parts, bias: bias.map(|b| self.statics(b, StaticForm::Values)) }
    }

    pub(super) fn grouped_linear(&mut self, i: usize) -> View {
        let node = &self.graph.nodes[i];
        let (x, ids) = (self.dense(node.inputs[0]), self.dense(node.inputs[1]));
        let experts = self.experts(node.inputs[2], node.inputs.get(3).copied());
        let per_choice = row_dims(self.graph.ty(node.inputs[0])).len() == 2;
        self.call(i, |out| Call::GroupedLinear { x, ids, per_choice, experts, out })
    }
}
