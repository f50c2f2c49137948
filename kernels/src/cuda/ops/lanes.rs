//! Kernels of `lanes.cu`: what is computed along an axis of a row, and the moving of elements within rows.

use super::*;

/// A row as `outer` x `n` x `inner` elements; the axis is the middle one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneShape {
    /// Product of the dimensions before the axis.
    pub outer: usize,
    /// The axis.
    pub n: usize,
    /// Product of the dimensions after it.
    pub inner: usize,
}

impl LaneShape {
    fn lanes(&self) -> usize {
        self.outer.saturating_mul(self.inner)
    }

    /// Elements of a row in which the axis has `n`.
    fn elements(&self, n: usize) -> usize {
        self.lanes().saturating_mul(n)
    }

    fn push(&self, args: Args) -> Result<Args, CudaError> {
        int("shape", self.elements(self.n))?;
        Ok(args.int(self.outer as i32).int(self.n as i32).int(self.inner as i32))
    }

    fn launch(&self, cuda: &Cuda, kernel: &'static str, rows: usize, args: Args) -> Result<(), CudaError> {
        // SAFETY: the callers have checked that the operands have these rows, and these elements in each.
        unsafe { cuda.launch(by_element(Module::Lanes, kernel, rows, self.lanes(), args)) }
    }
}

/// What [`fold`] makes of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fold {
    /// The sum; of floats in f64.
    Sum = 0,
    /// The largest; NaN if one is.
    Max = 1,
    /// The smallest; NaN if one is.
    Min = 2,
    /// The sum up to each element.
    Cumsum = 3,
    /// The place of the largest integer, the first of equals; of floats see [`top_k`].
    Argmax = 4,
}

/// Along the axis of each row: one number a lane, or as many as there are for [`Fold::Cumsum`].
pub fn fold<E: super::elementwise::Number>(
    cuda: &Cuda,
    what: Fold,
    shape: LaneShape,
    x: View<'_, E>,
    out: View<'_, E>,
) -> Result<(), CudaError> {
    if (shape.n == 0 && !matches!(what, Fold::Sum | Fold::Cumsum)) || (what == Fold::Argmax && !E::INTEGER) {
        return Err(option("shape.n", shape.n, "the axis has elements, and argmax is of integers"));
    }
    x.check_shape("x", out.rows, shape.elements(shape.n))?;
    out.check_out("out", out.rows, shape.elements(if what == Fold::Cumsum { shape.n } else { 1 }))?;
    let args = push(shape.push(push(Args::default().int(what as i32), &x))?, &out);
    shape.launch(cuda, if E::INTEGER { "fold_i64" } else { "fold_f32" }, out.rows, args)
}

/// The places of the `k` largest of each lane, in descending order, ties by place; NaN is larger than all.
pub fn top_k(cuda: &Cuda, k: usize, shape: LaneShape, x: View<'_, f32>, out: View<'_, i64>) -> Result<(), CudaError> {
    if k > shape.n {
        return Err(option("k", k, "must be at most the elements of the axis"));
    }
    x.check_shape("x", out.rows, shape.elements(shape.n))?;
    out.check_out("out", out.rows, shape.elements(k))?;
    let args = push(shape.push(push(Args::default(), &x))?.int(k as i32), &out);
    shape.launch(cuda, "top_k", out.rows, args)
}

/// The places of the first `k` of each of `outer` lanes of `n` elements in ascending or descending order, ties by place;
/// NaN is larger than all. Costs `n` comparisons for each element: for few or for all of them, see [`top_k`].
pub fn sort<E: super::elementwise::Number>(
    cuda: &Cuda,
    descending: bool,
    [outer, n, k]: [usize; 3],
    x: View<'_, E>,
    out: View<'_, i64>,
) -> Result<(), CudaError> {
    if k > n {
        return Err(option("k", k, "must be at most the elements of the axis"));
    }
    let elements = outer.saturating_mul(n);
    x.check_shape("x", out.rows, elements)?;
    out.check_out("out", out.rows, outer.saturating_mul(k))?;
    int("x.cols", elements)?;
    let args = push(Args::default().int(descending.into()), &x).int(outer as i32).int(n as i32).int(k as i32);
    let kernel = if E::INTEGER { "sort_i64" } else { "sort_f32" };
    // SAFETY: every row of x has `outer * n` elements, every row of out `outer * k`; a lane has one element of each rank.
    unsafe { cuda.launch(by_element(Module::Lanes, kernel, out.rows, elements, push(args, &out))) }
}

/// `out[j, ..] = table[index[j], ..]` in every row: `table` is `[n, inner]` and the same for all of them. An index out of
/// range is a fault, and gives 0.
pub fn take<E: Element>(
    cuda: &Cuda,
    table: Vector<'_, E>,
    inner: usize,
    index: View<'_, i64>,
    out: View<'_, E>,
    faults: &Faults,
) -> Result<(), CudaError> {
    if inner == 0 || !table.len.is_multiple_of(inner) || !out.cols.is_multiple_of(inner) {
        return Err(option("inner", inner, "must divide the elements of table and the columns of out"));
    }
    index.check_shape("index", out.rows, out.cols / inner)?;
    out.check_out("out", out.rows, out.cols)?;
    let args = Args::default().address(table.memory.address()).int(int("table", table.len)? / inner as i32);
    let args = push(push(args, &index).int(inner as i32), &out).int(int("out.cols", out.cols)?);
    let kernel = by_size::<E>(["take_1", "take_4", "take_8"]);
    let launch = by_element(Module::Lanes, kernel, out.rows, out.cols, args.address(faults.address()));
    // SAFETY: the table has `n * inner` elements, and the kernel compares indices with n; the views have these columns.
    unsafe { cuda.launch(launch) }
}

/// Products of matrices `[m, k]` and `[k, n]` within rows, sums in f64. By product of a row: where its matrices begin in a
/// row of `a` and of `b`.
#[derive(Debug)]
pub struct Products {
    sizes: [usize; 3],
    at: [Memory; 2],
    /// By operand: one more than the last column that is read.
    limits: [usize; 2],
    count: usize,
}

impl Products {
    /// `starts` are the first columns of the matrices in a and in b.
    pub fn new(cuda: &Cuda, [m, k, n]: [usize; 3], starts: &[[usize; 2]]) -> Result<Products, CudaError> {
        let sizes = [m.saturating_mul(k), k.saturating_mul(n)];
        let limit = |i: usize| starts.iter().map(|s| s[i].saturating_add(sizes[i])).max().unwrap_or(0);
        let limits = [limit(0), limit(1)];
        int("a", limits[0])?;
        int("b", limits[1])?;
        let upload =
            |i: usize| cuda.upload(&starts.iter().flat_map(|s| (s[i] as i32).to_ne_bytes()).collect::<Vec<_>>());
        Ok(Products { sizes: [m, k, n], at: [upload(0)?, upload(1)?], limits, count: starts.len() })
    }
}

/// `out = a b`, as `products` says.
pub fn matmul(
    cuda: &Cuda,
    products: &Products,
    a: View<'_, f32>,
    b: View<'_, f32>,
    out: View<'_, f32>,
) -> Result<(), CudaError> {
    let [m, k, n] = products.sizes;
    out.check_out("out", out.rows, products.count.saturating_mul(m).saturating_mul(n))?;
    for (name, view, limit) in [("a", &a, products.limits[0]), ("b", &b, products.limits[1])] {
        view.check_shape(name, out.rows, view.cols)?;
        check_len(name, limit, view.cols)?;
    }
    let args = push(Args::default(), &a).address(products.at[0].address());
    let args = push(args, &b).address(products.at[1].address()).int(m as i32).int(k as i32).int(n as i32);
    let args = push(args, &out).int(int("out.cols", out.cols)?);
    // SAFETY: rows of a and b reach as far as the last matrix that is read, out has a column for each element.
    unsafe { cuda.launch(by_element(Module::Lanes, "matmul", out.rows, out.cols, args)) }
}

/// `out[.., j, ..] = x[.., index[.., j, ..], ..]`; `index` and `out` have `out_n` on the axis. An index out of range is a
/// fault, and gives 0.
pub fn gather<E: Element>(
    cuda: &Cuda,
    shape: LaneShape,
    out_n: usize,
    x: View<'_, E>,
    index: View<'_, i64>,
    out: View<'_, E>,
    faults: &Faults,
) -> Result<(), CudaError> {
    x.check_shape("x", out.rows, shape.elements(shape.n))?;
    index.check_shape("index", out.rows, shape.elements(out_n))?;
    out.check_out("out", out.rows, shape.elements(out_n))?;
    let args = shape.push(push(push(Args::default(), &x), &index))?.int(int("out_n", out_n)?);
    let args = push(args, &out).address(faults.address());
    shape.launch(cuda, by_size::<E>(["gather_1", "gather_4", "gather_8"]), out.rows, args)
}

/// What [`scatter`] writes, and where.
#[derive(Debug, Clone, Copy)]
pub struct Scatter<'a, E> {
    /// What is there where nothing is written.
    pub x: View<'a, E>,
    /// Places on the axis.
    pub index: View<'a, i64>,
    /// As many as there are places.
    pub values: View<'a, E>,
    /// Elements of the axis of `index` and `values`.
    pub index_n: usize,
    /// Whether values are added (f32 and i64).
    pub sum: bool,
}

/// `out = x`, then `out[.., index[.., j, ..], ..] = values[.., j, ..]` in order, or `+=`. An index out of range is a
/// fault, and writes nothing.
pub fn scatter<E: Element>(
    cuda: &Cuda,
    shape: LaneShape,
    scatter: &Scatter<'_, E>,
    out: View<'_, E>,
    faults: &Faults,
) -> Result<(), CudaError> {
    let Scatter { x, index, values, index_n, sum } = *scatter;
    x.check_shape("x", out.rows, shape.elements(shape.n))?;
    index.check_shape("index", out.rows, shape.elements(index_n))?;
    values.check_shape("values", out.rows, shape.elements(index_n))?;
    out.check_out("out", out.rows, shape.elements(shape.n))?;
    if sum && E::SIZE == 1 {
        return Err(option("sum", true, "is for f32 and i64"));
    }
    let kernel = match sum {
        true => by_size::<E>(["", "scatter_add_f32", "scatter_add_i64"]),
        false => by_size::<E>(["scatter_1", "scatter_4", "scatter_8"]),
    };
    let args = push(push(push(Args::default(), &x), &index), &values);
    let args = push(shape.push(args)?.int(int("index_n", index_n)?), &out).address(faults.address());
    shape.launch(cuda, kernel, out.rows, args)
}

/// Where every column of an output comes from: an operand and a column of it.
#[derive(Debug)]
pub struct Moves {
    which: Memory,
    at: Memory,
    cols: usize,
    /// By operand: one more than its largest column.
    limits: Vec<usize>,
}

impl Moves {
    /// By column of the output: the operand, and its column.
    pub fn new(cuda: &Cuda, columns: &[(u32, u32)]) -> Result<Moves, CudaError> {
        let mut limits = vec![];
        for &(operand, column) in columns {
            let operand = operand as usize;
            limits.resize(limits.len().max(operand + 1), 0);
            limits[operand] = limits[operand].max(column as usize + 1);
            int("columns", limits[operand])?;
        }
        let bytes =
            |part: fn(&(u32, u32)) -> u32| -> Vec<u8> { columns.iter().flat_map(|c| part(c).to_ne_bytes()).collect() };
        let (which, at) = (cuda.upload(&bytes(|c| c.0))?, cuda.upload(&bytes(|c| c.1))?);
        Ok(Moves { which, at, cols: columns.len(), limits })
    }
}

/// `out[:, c]` is the column of the operand that `moves` says. `table` is room for 16 bytes for each operand.
pub fn move_columns<E: Element>(
    cuda: &Cuda,
    moves: &Moves,
    operands: &[View<'_, E>],
    table: &Memory,
    out: View<'_, E>,
) -> Result<(), CudaError> {
    check_len("operands", moves.limits.len(), operands.len())?;
    out.check_out("out", out.rows, moves.cols)?;
    let mut pairs = vec![];
    for (view, &limit) in operands.iter().zip(&moves.limits) {
        view.check_shape("operand", out.rows, view.cols)?;
        check_len("operand", limit, view.cols)?;
        pairs.extend(view.address().to_ne_bytes());
        pairs.extend((view.stride as u64).to_ne_bytes());
    }
    table.write(0, &pairs)?;
    let args = Args::default().address(table.address()).address(moves.which.address()).address(moves.at.address());
    let args = push(args, &out).int(int("out.cols", out.cols)?);
    let kernel = by_size::<E>(["move_1", "move_4", "move_8"]);
    // SAFETY: every operand has these rows and the columns that are read.
    unsafe { cuda.launch(by_element(Module::Lanes, kernel, out.rows, out.cols, args)) }
}
