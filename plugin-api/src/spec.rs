//! The executable specification: which inputs an op takes and which type it gives.
//!
//! [`infer`] is the rule for one node, [`verify`] checks a whole model. The host runs `verify` on
//! whatever a plugin returns and, in debug builds, between passes. Never panics, whatever the input.

use crate::dim::Dim;
use crate::model::{Graph, Model};
use crate::op::{ConstData, Op};
use crate::types::{DType, Shape, Type};

/// Largest number of nodes in a graph.
pub const MAX_NODES: usize = 1_000_000;
/// Largest constant size of one dimension.
pub const MAX_SIZE: i64 = 1 << 40;
/// Most elements of a value of constant shape. (The largest weights of today's models have 2^33.)
pub const MAX_ELEMENTS: i64 = 1 << 36;
/// Most elements of a value for each token (or selected row, or pair of them).
pub const MAX_ROW_ELEMENTS: i64 = 1 << 28;
/// Most dimensions of a value.
pub const MAX_RANK: usize = 16;
/// Longest name of a weight, in bytes.
pub const MAX_NAME: usize = 1024;
/// Longest text of an op, or of the types of its inputs, in an error.
const MAX_SHOWN: usize = 300;

/// Why a graph is not well-formed.
#[derive(Debug, Clone, thiserror::Error, PartialEq)]
pub enum SpecError {
    /// A node breaks its op's rule.
    #[error("node %{node}{} = {op} of ({inputs}): {message}", if .name.is_empty() { String::new() } else { format!(" ({name})") })]
    Node {
        /// Index of the node.
        node: usize,
        /// Its name.
        name: String,
        /// Its op and attributes.
        op: String,
        /// Types of its inputs.
        inputs: String,
        /// The rule that it breaks.
        message: String,
    },
    /// The graph as a whole is wrong.
    #[error("graph `{graph}`: {message}")]
    Graph {
        /// Name of the graph.
        graph: String,
        /// What is wrong.
        message: String,
    },
    /// The model as a whole is wrong.
    #[error("{0}")]
    Model(String),
}

impl SpecError {
    /// About one node; long literals and lists of inputs are cut.
    pub(crate) fn node(node: usize, name: &str, op: &Op, inputs: &[&Type], message: String) -> SpecError {
        let cut = |text: String| match text.char_indices().nth(MAX_SHOWN) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        };
        // A literal can have millions of numbers: they are not printed to be cut.
        let op = match op {
            Op::Const { dtype, shape, .. } => format!("const(dtype:{dtype},shape:{shape:?},..)"),
            op => cut(op.to_string()),
        };
        let inputs = inputs.iter().take(MAX_SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
        SpecError::Node { node, name: name.to_owned(), op, inputs: cut(inputs), message }
    }
}

/// Checks a model: every node typed as [`infer`] says, inputs before uses, states used once, outputs there.
pub fn verify(model: &Model) -> Result<(), SpecError> {
    if model.context_length == 0 || model.context_length > MAX_SIZE as u64 {
        return Err(SpecError::Model(format!("context_length is {}, it must be 1 to 2^40", model.context_length)));
    }
    let Some(decode) = model.graphs.get("decode") else {
        return Err(SpecError::Model("the model has no graph `decode`".into()));
    };
    for (name, graph) in &model.graphs {
        verify_graph(name, graph)?;
    }
    let wrong = |message: String| SpecError::Graph { graph: "decode".into(), message };
    let logits = decode.output("logits").ok_or_else(|| wrong("has no output `logits`".into()))?;
    let ty = decode.ty(logits);
    let [rows, vocabulary] = ty.shape.0.as_slice() else {
        return Err(wrong(format!("output `logits` is {ty}, it must be [R, vocabulary]")));
    };
    if !ty.dtype.is_float() || *rows != Dim::R() || vocabulary.as_const().is_none_or(|n| n < 1) {
        return Err(wrong(format!("output `logits` is {ty}, it must be a float of shape [R, vocabulary]")));
    }
    Ok(())
}

/// Checks one graph; `name` is for messages.
pub fn verify_graph(name: &str, graph: &Graph) -> Result<(), SpecError> {
    let wrong = |message: String| SpecError::Graph { graph: name.into(), message };
    if graph.nodes.len() > MAX_NODES {
        return Err(wrong(format!("has {} nodes, the limit is {MAX_NODES}", graph.nodes.len())));
    }
    let mut states = std::collections::HashSet::new();
    let mut weights: std::collections::HashMap<&str, (&[usize], DType)> = std::collections::HashMap::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        let fail = |inputs: &[&Type], message: String| SpecError::node(i, &node.name, &node.op, inputs, message);
        if let Some(v) = node.inputs.iter().find(|v| v.index() >= i) {
            return Err(fail(&[], format!("reads %{}, which is not computed before it", v.0)));
        }
        let types: Vec<&Type> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
        let ty = infer(&node.op, &types).map_err(|m| fail(&types, m))?;
        if ty != node.ty {
            return Err(fail(&types, format!("gives {ty} but is declared {}", node.ty)));
        }
        if let Some(state) = node.op.state()
            && !states.insert(state)
        {
            return Err(fail(&types, format!("state {state} is already used by another node")));
        }
        if let Op::Weight { name, shape, dtype } = &node.op {
            let first = weights.entry(name).or_insert((shape, *dtype));
            if *first != (shape.as_slice(), *dtype) {
                return Err(fail(
                    &types,
                    format!("weight `{name}` is also read as {} of shape {:?}", first.1, first.0),
                ));
            }
        }
    }
    let mut outputs = std::collections::HashSet::new();
    for (output, v) in &graph.outputs {
        if v.index() >= graph.nodes.len() {
            return Err(wrong(format!("output `{output}` is %{}, which does not exist", v.0)));
        }
        if !outputs.insert(output) {
            return Err(wrong(format!("there are two outputs `{output}`")));
        }
    }
    Ok(())
}

/// The type that `op` gives for inputs of these types, or the rule that they break.
pub fn infer(op: &Op, inputs: &[&Type]) -> Result<Type, String> {
    let ty = infer_unchecked(op, inputs)?;
    ensure(ty.shape.rank() <= MAX_RANK, || {
        format!("gives a value of {} dimensions, the limit is {MAX_RANK}", ty.shape.rank())
    })?;
    for d in &ty.shape.0 {
        match d.as_const() {
            Some(n) if !(0..=MAX_SIZE).contains(&n) => {
                return Err(format!("a dimension of {ty} is out of range: it must be 0 to {MAX_SIZE}"));
            }
            _ => {}
        }
    }
    let numel = ty.shape.numel().map_err(|e| e.to_string())?;
    match numel.as_const() {
        Some(n) => ensure(n <= MAX_ELEMENTS, || format!("{ty} has {n} elements, the limit is {MAX_ELEMENTS}"))?,
        None => ensure(numel.largest_coefficient() <= MAX_ROW_ELEMENTS, || {
            format!("{ty} has {numel} elements, the limit is {MAX_ROW_ELEMENTS} for each token")
        })?,
    }
    Ok(ty)
}

fn infer_unchecked(op: &Op, inputs: &[&Type]) -> Result<Type, String> {
    use Op::*;
    match op {
        Input { .. } | ContextLength { .. } | Weight { .. } | Const { .. } | Iota { .. } => {
            arity(inputs, 0)?;
            leaf(op)
        }
        Neg | Abs | Sign => unary(inputs, |d| d != DType::Bool, "a number"),
        Exp | Log | Sqrt | Rsqrt | Sin | Cos | Tanh | Sigmoid | Erf | Floor | Ceil | Round | Activation { .. } => {
            unary(inputs, DType::is_float, "a float")
        }
        Not => unary(inputs, |d| d == DType::Bool, "a bool"),
        Add | Sub | Mul | Div | Max | Min | Rem => {
            let ty = binary(inputs)?;
            ensure(ty.dtype != DType::Bool, || "needs numbers".into())?;
            Ok(ty)
        }
        Pow | Gated { .. } => {
            let ty = binary(inputs)?;
            ensure(ty.dtype.is_float(), || "needs floats".into())?;
            ensure(*op == Pow || inputs[0] == inputs[1], || "needs two inputs of one shape".into())?;
            Ok(ty)
        }
        And | Or => {
            let ty = binary(inputs)?;
            ensure(ty.dtype == DType::Bool, || "needs bools".into())?;
            Ok(ty)
        }
        Eq | Ne | Lt | Le | Gt | Ge => Ok(Type { dtype: DType::Bool, shape: binary(inputs)?.shape }),
        Select => {
            arity(inputs, 3)?;
            ensure(inputs[0].dtype == DType::Bool, || "the condition must be bool".into())?;
            let values = binary(&inputs[1..])?;
            Ok(Type { dtype: values.dtype, shape: broadcast(&inputs[0].shape, &values.shape)? })
        }
        Cast { dtype } => {
            arity(inputs, 1)?;
            Ok(Type { dtype: *dtype, shape: inputs[0].shape.clone() })
        }
        Sum { .. } | ReduceMax { .. } | ReduceMin { .. } | Argmax { .. } | Cumsum { .. } => reduction(op, inputs),
        Matmul => matmul(inputs),
        SolveTriangular => {
            arity(inputs, 2)?;
            let a = &inputs[0].shape.0;
            ensure(a.len() >= 2 && a[a.len() - 1] == a[a.len() - 2], || format!("{} is not square", inputs[0]))?;
            matmul(inputs)
        }
        Reshape { .. } | Permute { .. } | Broadcast { .. } | Slice { .. } | Concat { .. } => shape_op(op, inputs),
        Take { .. } | Gather { .. } | Scatter { .. } | ScatterAdd { .. } | TopK { .. } | Argsort { .. } => {
            index_op(op, inputs)
        }
        SelectOutputs => {
            arity(inputs, 1)?;
            let mut ty = inputs[0].clone();
            match ty.shape.0.first_mut() {
                Some(d) if *d == Dim::T() => *d = Dim::R(),
                _ => return Err("needs an input of shape [T, ...]".into()),
            }
            Ok(ty)
        }
        Linear | Embedding | RmsNorm { .. } | LayerNorm { .. } | Rope { .. } | Softmax | Attention { .. } => {
            composite(op, inputs)
        }
        GroupedLinear => grouped_linear(inputs),
        CausalMask { window, chunk } => {
            arity(inputs, 0)?;
            ensure(*window != Some(0) && *chunk != Some(0), || "a window or chunk of 0 sees nothing".into())?;
            Ok(Type::new(DType::Bool, [Dim::T(), Dim::T()]))
        }
        CausalConv1d { .. } => causal_conv1d(inputs),
        LinearAttention { delta, .. } => linear_attention(*delta, inputs),
    }
}

fn leaf(op: &Op) -> Result<Type, String> {
    match op {
        Op::Input { .. } | Op::ContextLength { .. } => Ok(Type::new(DType::I64, [Dim::T()])),
        Op::Weight { name, shape, dtype } => {
            ensure(matches!(dtype, DType::Float | DType::I64), || format!("a weight is float or i64, not {dtype}"))?;
            ensure(!name.is_empty(), || "a weight needs a name".into())?;
            ensure(name.len() <= MAX_NAME, || {
                format!("a weight's name has {} bytes, the limit is {MAX_NAME}", name.len())
            })?;
            ensure(shape.len() <= MAX_RANK, || format!("has {} dimensions, the limit is {MAX_RANK}", shape.len()))?;
            Ok(Type::new(*dtype, shape.iter().copied().collect::<Shape>()))
        }
        Op::Const { dtype, shape, data } => {
            let fits = matches!(
                (dtype, data),
                (DType::Float | DType::F32, ConstData::F32(_))
                    | (DType::I64, ConstData::I64(_))
                    | (DType::Bool, ConstData::Bool(_))
            );
            ensure(fits, || format!("the data are not of type {dtype}"))?;
            ensure(shape.len() <= MAX_RANK, || format!("has {} dimensions, the limit is {MAX_RANK}", shape.len()))?;
            let numel = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
            ensure(numel == Some(data.len()), || format!("{} elements do not fill shape {shape:?}", data.len()))?;
            Ok(Type::new(*dtype, shape.iter().copied().collect::<Shape>()))
        }
        Op::Iota { len } => Ok(Type::new(DType::I64, [len.clone()])),
        other => Err(format!("`{other}` is not a leaf")),
    }
}

fn reduction(op: &Op, inputs: &[&Type]) -> Result<Type, String> {
    arity(inputs, 1)?;
    let x = inputs[0];
    ensure(x.dtype != DType::Bool, || "needs numbers".into())?;
    let (axis, keep, dtype) = match op {
        Op::Argmax { axis, keep } => (*axis, *keep, DType::I64),
        Op::Sum { axis, keep } | Op::ReduceMax { axis, keep } | Op::ReduceMin { axis, keep } => (*axis, *keep, x.dtype),
        Op::Cumsum { axis } => {
            axis_of(x, *axis)?;
            return Ok(x.clone());
        }
        other => return Err(format!("`{other}` is not a reduction")),
    };
    axis_of(x, axis)?;
    let mut dims = x.shape.0.clone();
    if keep {
        dims[axis] = Dim::from(1i64);
    } else {
        dims.remove(axis);
    }
    Ok(Type { dtype, shape: Shape(dims) })
}

fn matmul(inputs: &[&Type]) -> Result<Type, String> {
    arity(inputs, 2)?;
    let (a, b) = (inputs[0], inputs[1]);
    ensure(a.dtype == b.dtype && a.dtype.is_float(), || "needs two floats of one type".into())?;
    let (ra, rb) = (a.shape.rank(), b.shape.rank());
    ensure(ra >= 2 && rb >= 2, || "needs at least two dimensions on both sides".into())?;
    ensure(a.shape.0[ra - 1] == b.shape.0[rb - 2], || {
        format!("the inner dimensions {} and {} differ", a.shape.0[ra - 1], b.shape.0[rb - 2])
    })?;
    let lead = broadcast(&Shape(a.shape.0[..ra - 2].to_vec()), &Shape(b.shape.0[..rb - 2].to_vec()))?;
    let mut dims = lead.0;
    dims.extend([a.shape.0[ra - 2].clone(), b.shape.0[rb - 1].clone()]);
    Ok(Type { dtype: a.dtype, shape: Shape(dims) })
}

fn shape_op(op: &Op, inputs: &[&Type]) -> Result<Type, String> {
    let x = *inputs.first().ok_or("needs an input")?;
    if !matches!(op, Op::Concat { .. }) {
        arity(inputs, 1)?;
    }
    let dims = match op {
        Op::Reshape { shape } => {
            let new = Shape(shape.clone());
            let (from, to) = (x.shape.numel().map_err(text)?, new.numel().map_err(text)?);
            ensure(from == to, || format!("{} has {from} elements, {new} has {to}", x.shape))?;
            new.0
        }
        Op::Permute { axes } => {
            let mut sorted = axes.clone();
            sorted.sort_unstable();
            ensure(sorted.iter().copied().eq(0..x.shape.rank()), || {
                format!("axes {axes:?} are no permutation of {} dimensions", x.shape.rank())
            })?;
            axes.iter().map(|&a| x.shape.0[a].clone()).collect()
        }
        Op::Broadcast { shape } => {
            let new = Shape(shape.clone());
            ensure(broadcast(&x.shape, &new)? == new, || format!("{} does not stretch to {new}", x.shape))?;
            new.0
        }
        Op::Slice { axis, start, end, step } => {
            axis_of(x, *axis)?;
            let mut dims = x.shape.0.clone();
            dims[*axis] = slice_len(&dims[*axis], start, end, *step)?;
            dims
        }
        Op::Concat { axis } => {
            axis_of(x, *axis)?;
            let mut dims = x.shape.0.clone();
            for other in &inputs[1..] {
                ensure(other.dtype == x.dtype && other.shape.rank() == x.shape.rank(), || {
                    format!("cannot join {x} and {other}")
                })?;
                for (i, d) in other.shape.0.iter().enumerate() {
                    if i == *axis {
                        dims[i] = dims[i].add(d).map_err(text)?;
                    } else {
                        ensure(*d == dims[i], || format!("cannot join {x} and {other} along axis {axis}"))?;
                    }
                }
            }
            dims
        }
        other => return Err(format!("`{other}` does not change shapes")),
    };
    Ok(Type { dtype: x.dtype, shape: Shape(dims) })
}

fn slice_len(size: &Dim, start: &Dim, end: &Dim, step: usize) -> Result<Dim, String> {
    ensure(step >= 1, || "the step must be at least 1".into())?;
    let len = end.sub(start).map_err(text)?;
    match (size.as_const(), start.as_const(), end.as_const()) {
        (Some(n), Some(s), Some(e)) => ensure(0 <= s && s <= e && e <= n, || format!("{s}..{e} is not within 0..{n}"))?,
        // Symbolic bounds are checked again at every step, when T and R are known.
        (_, Some(s), _) => ensure(s >= 0, || format!("starts at {s}"))?,
        _ => {}
    }
    if step == 1 {
        return Ok(len);
    }
    let n = len.as_const().ok_or("a step above 1 needs constant bounds")?;
    let step = i64::try_from(step).map_err(|e| e.to_string())?;
    Ok(Dim::from((n + step - 1) / step))
}

fn index_op(op: &Op, inputs: &[&Type]) -> Result<Type, String> {
    let x = *inputs.first().ok_or("needs an input")?;
    let index = |i: usize| -> Result<&Type, String> {
        ensure(inputs[i].dtype == DType::I64, || "the index must be i64".into())?;
        Ok(inputs[i])
    };
    let same_but = |axis: usize, index: &Type| -> Result<(), String> {
        axis_of(x, axis)?;
        let fits = x.shape.rank() == index.shape.rank()
            && (0..x.shape.rank()).all(|i| i == axis || x.shape.0[i] == index.shape.0[i]);
        ensure(fits, || format!("the index {index} does not match {x} beside axis {axis}"))
    };
    match op {
        Op::Take { axis } => {
            arity(inputs, 2)?;
            axis_of(x, *axis)?;
            let mut dims = x.shape.0.clone();
            dims.splice(*axis..=*axis, index(1)?.shape.0.iter().cloned());
            Ok(Type { dtype: x.dtype, shape: Shape(dims) })
        }
        Op::Gather { axis } => {
            arity(inputs, 2)?;
            same_but(*axis, index(1)?)?;
            Ok(Type { dtype: x.dtype, shape: inputs[1].shape.clone() })
        }
        Op::Scatter { axis } | Op::ScatterAdd { axis } => {
            arity(inputs, 3)?;
            same_but(*axis, index(1)?)?;
            ensure(inputs[2].shape == inputs[1].shape && inputs[2].dtype == x.dtype, || {
                "the values must have the index's shape and the input's type".into()
            })?;
            ensure(x.dtype != DType::Bool || matches!(op, Op::Scatter { .. }), || "cannot add bools".into())?;
            Ok(x.clone())
        }
        Op::TopK { .. } | Op::Argsort { .. } => {
            arity(inputs, 1)?;
            ensure(x.dtype != DType::Bool, || "needs numbers".into())?;
            let mut dims = x.shape.0.clone();
            let last = dims.last_mut().ok_or("needs at least one dimension")?;
            if let Op::TopK { k } = op {
                let n = last.as_const().ok_or("needs a constant last dimension")?;
                let k = i64::try_from(*k).map_err(|e| e.to_string())?;
                ensure(k >= 1 && k <= n, || format!("k is {k}, the axis has {n}"))?;
                *last = Dim::from(k);
            }
            Ok(Type { dtype: DType::I64, shape: Shape(dims) })
        }
        other => Err(format!("`{other}` does not index")),
    }
}

fn composite(op: &Op, inputs: &[&Type]) -> Result<Type, String> {
    let count = |range: std::ops::RangeInclusive<usize>| {
        ensure(range.contains(&inputs.len()), || format!("takes {range:?} inputs, got {}", inputs.len()))
    };
    let last = |ty: &Type| ty.shape.0.last().cloned().ok_or("needs at least one dimension".to_owned());
    let vector = |ty: &Type, n: &Dim, what: &str| {
        ensure(ty.shape.0 == [n.clone()], || format!("{what} is {ty}, it must have shape [{n}]"))
    };
    match op {
        Op::Linear => {
            count(2..=3)?;
            let (x, w) = (inputs[0], inputs[1]);
            ensure(x.dtype == w.dtype && x.dtype.is_float(), || "input and weight must be floats of one type".into())?;
            let [n, k] = w.shape.0.as_slice() else { return Err(format!("the weight is {w}, it must be [N, K]")) };
            ensure(last(x)? == *k, || format!("the input ends in {}, the weight in {k}", x.shape))?;
            if let Some(bias) = inputs.get(2) {
                vector(bias, n, "the bias")?;
                ensure(bias.dtype == x.dtype, || "the bias must have the input's type".into())?;
            }
            let mut dims = x.shape.0.clone();
            dims.pop();
            dims.push(n.clone());
            Ok(Type { dtype: x.dtype, shape: Shape(dims) })
        }
        Op::Embedding => {
            count(2..=2)?;
            let (ids, w) = (inputs[0], inputs[1]);
            ensure(ids.dtype == DType::I64, || "the ids must be i64".into())?;
            let [_, d] = w.shape.0.as_slice() else { return Err(format!("the weight is {w}, it must be [V, D]")) };
            let mut dims = ids.shape.0.clone();
            dims.push(d.clone());
            Ok(Type { dtype: w.dtype, shape: Shape(dims) })
        }
        Op::RmsNorm { eps, .. } | Op::LayerNorm { eps } => {
            count(if matches!(op, Op::LayerNorm { .. }) { 1..=3 } else { 1..=2 })?;
            let x = inputs[0];
            ensure(x.dtype.is_float(), || "needs a float".into())?;
            ensure(eps.is_finite() && *eps >= 0.0, || format!("eps is {eps}"))?;
            let d = last(x)?;
            for (ty, what) in inputs[1..].iter().zip(["the weight", "the bias"]) {
                vector(ty, &d, what)?;
                ensure(ty.dtype == x.dtype, || format!("{what} must have the input's type"))?;
            }
            Ok(x.clone())
        }
        Op::Rope { .. } => {
            count(3..=3)?;
            let (x, cos, sin) = (inputs[0], inputs[1], inputs[2]);
            ensure(x.dtype.is_float() && cos.dtype == DType::F32 && sin == cos, || {
                "needs a float, and cos and sin as f32 of one shape".into()
            })?;
            let ([t, _, d], [t2, n]) = (x.shape.0.as_slice(), cos.shape.0.as_slice()) else {
                return Err("needs x[T, H, D], cos[T, N], sin[T, N]".into());
            };
            let fits = matches!((d.as_const(), n.as_const()), (Some(d), Some(n)) if n >= 1 && 2 * n <= d);
            ensure(t == t2 && fits, || format!("cos of {cos} does not rotate heads of {x}"))?;
            Ok(x.clone())
        }
        Op::Softmax => {
            count(1..=1)?;
            ensure(inputs[0].dtype.is_float(), || "needs a float".into())?;
            last(inputs[0])?;
            Ok(inputs[0].clone())
        }
        Op::Attention { .. } => attention(op, inputs),
        other => Err(format!("`{other}` is not a composite")),
    }
}

/// x[T, D] or x[T, K, D], ids[T, K], weight[E, N, D], optional bias[E, N]
fn grouped_linear(inputs: &[&Type]) -> Result<Type, String> {
    ensure((3..=4).contains(&inputs.len()), || format!("takes 3 or 4 inputs, got {}", inputs.len()))?;
    let (x, ids, w) = (inputs[0], inputs[1], inputs[2]);
    ensure(x.dtype.is_float() && w.dtype == x.dtype, || "input and weight must be floats of one type".into())?;
    ensure(ids.dtype == DType::I64, || "the ids must be i64".into())?;
    let ([t, k], [experts, n, d]) = (ids.shape.0.as_slice(), w.shape.0.as_slice()) else {
        return Err(format!("needs ids[T, K] and weight[E, N, D], got {ids} and {w}"));
    };
    let fits = x.shape.0 == [t.clone(), d.clone()] || x.shape.0 == [t.clone(), k.clone(), d.clone()];
    ensure(fits, || format!("the input {x} is not [T, D] or [T, K, D] for ids {ids} and weight {w}"))?;
    if let Some(bias) = inputs.get(3) {
        ensure(bias.dtype == x.dtype && bias.shape.0 == [experts.clone(), n.clone()], || {
            format!("the bias is {bias}, it must be {}[{experts},{n}]", x.dtype)
        })?;
    }
    Ok(Type::new(x.dtype, [t.clone(), k.clone(), n.clone()]))
}

/// x[T, C], weight[C, W], optional bias[C]
fn causal_conv1d(inputs: &[&Type]) -> Result<Type, String> {
    ensure((2..=3).contains(&inputs.len()), || format!("takes 2 or 3 inputs, got {}", inputs.len()))?;
    let (x, w) = (inputs[0], inputs[1]);
    ensure(x.dtype.is_float() && inputs.iter().all(|ty| ty.dtype == x.dtype), || "needs floats of one type".into())?;
    let ([t, c], [c2, width]) = (x.shape.0.as_slice(), w.shape.0.as_slice()) else {
        return Err(format!("needs x[T, C] and weight[C, W], got {x} and {w}"));
    };
    ensure(*t == Dim::T() && c == c2 && c.as_const().is_some(), || format!("{w} does not convolve {x}"))?;
    ensure(width.as_const().is_some_and(|w| w >= 1), || format!("the width is {width}"))?;
    if let Some(bias) = inputs.get(2) {
        ensure(bias.shape.0 == [c.clone()], || format!("the bias is {bias}, it must have shape [{c}]"))?;
    }
    Ok(x.clone())
}

/// q[T, Hk, Dk], k[T, Hk, Dk], v[T, H, Dv], decay[T, H] or decay[T, H, Dk], beta[T, H]
fn linear_attention(delta: bool, inputs: &[&Type]) -> Result<Type, String> {
    arity(inputs, 4 + usize::from(delta))?;
    let (q, k, v, decay) = (inputs[0], inputs[1], inputs[2], inputs[3]);
    ensure(q.dtype.is_float() && q == k && v.dtype == q.dtype, || {
        "q and k must be floats of one shape, and v of their type".into()
    })?;
    let ([t, hk, dk], [t2, h, dv]) = (q.shape.0.as_slice(), v.shape.0.as_slice()) else {
        return Err(format!("needs q[T, Hk, Dk] and v[T, H, Dv], got {q} and {v}"));
    };
    let sizes = [hk, dk, h, dv].map(|d| d.as_const().filter(|n| *n >= 1));
    let [Some(key_heads), Some(_), Some(heads), Some(_)] = sizes else {
        return Err(format!("heads and sizes of {q} and {v} must be constants of at least 1"));
    };
    ensure(*t == Dim::T() && t2 == t, || format!("{q} and {v} must be of all tokens"))?;
    ensure(heads % key_heads == 0, || format!("{heads} heads are not a multiple of {key_heads} key heads"))?;
    let gate = [t.clone(), h.clone()];
    let per_channel = [t.clone(), h.clone(), dk.clone()];
    ensure(decay.dtype == DType::F32 && (decay.shape.0 == gate || decay.shape.0 == per_channel), || {
        format!("the decay is {decay}, it must be f32[T,{h}] or f32[T,{h},{dk}]")
    })?;
    if let Some(beta) = inputs.get(4) {
        ensure(beta.dtype == DType::F32 && beta.shape.0 == gate, || format!("beta is {beta}, it must be f32[T,{h}]"))?;
    }
    Ok(v.clone())
}

fn attention(op: &Op, inputs: &[&Type]) -> Result<Type, String> {
    let Op::Attention { scale, window, chunk, softcap, sinks, alibi, masked, .. } = op else {
        return Err("not an attention".into());
    };
    let vectors = usize::from(*sinks) + usize::from(*alibi);
    arity(inputs, 3 + vectors + usize::from(*masked))?;
    let (q, k, v) = (inputs[0], inputs[1], inputs[2]);
    ensure(q.dtype.is_float() && q.dtype == k.dtype && q.dtype == v.dtype, || {
        "q, k, v must be floats of one type".into()
    })?;
    let rank3 = |ty: &Type, what: &str| -> Result<(i64, i64), String> {
        match ty.shape.0.as_slice() {
            [t, h, d] if *t == Dim::T() => match (h.as_const(), d.as_const()) {
                (Some(h), Some(d)) if h >= 1 && d >= 1 => Ok((h, d)),
                _ => Err(format!("{what} is {ty}: heads and head size must be constants of at least 1")),
            },
            _ => Err(format!("{what} is {ty}, it must be [T, heads, head size]")),
        }
    };
    let ((hq, dq), (hk, dk), (hv, dv)) = (rank3(q, "q")?, rank3(k, "k")?, rank3(v, "v")?);
    ensure(dq == dk, || format!("q has heads of size {dq}, k of {dk}"))?;
    ensure(hk == hv, || format!("k has {hk} heads, v has {hv}"))?;
    ensure(hq % hk == 0, || format!("{hq} query heads are not a multiple of {hk} key heads"))?;
    ensure(scale.is_finite(), || format!("scale is {scale}"))?;
    ensure(*window != Some(0) && *chunk != Some(0), || "a window or chunk of 0 sees nothing".into())?;
    ensure(softcap.is_none_or(|c| c.is_finite() && c > 0.0), || format!("softcap is {softcap:?}"))?;
    if let Some(mask) = inputs.get(3 + vectors) {
        let pairs = [Dim::T(), Dim::T()];
        let fits =
            mask.shape.0 == pairs || (mask.shape.0.first() == Some(&Dim::from(hq)) && mask.shape.0[1..] == pairs);
        ensure(mask.dtype == DType::Bool && fits, || format!("the mask is {mask}, not bool[T,T] or bool[{hq},T,T]"))?;
    }
    for extra in &inputs[3..3 + vectors] {
        ensure(extra.shape.0 == [Dim::from(hq)] && extra.dtype.is_float(), || {
            format!("sinks and slopes must be floats of shape [{hq}], got {extra}")
        })?;
    }
    Ok(Type::new(q.dtype, [Dim::T(), Dim::from(hq), Dim::from(dv)]))
}

/// The common shape of two shapes under numpy's rules.
pub fn broadcast(a: &Shape, b: &Shape) -> Result<Shape, String> {
    let rank = a.rank().max(b.rank());
    let one = Dim::from(1i64);
    let at = |s: &Shape, i: usize| if i + s.rank() >= rank { s.0[i + s.rank() - rank].clone() } else { one.clone() };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y || y.is_one() => Ok(x),
            (x, y) if x.is_one() => Ok(y),
            _ => Err(format!("shapes {a} and {b} do not broadcast")),
        })
        .collect::<Result<Vec<Dim>, String>>()
        .map(Shape)
}

fn unary(inputs: &[&Type], accepts: impl Fn(DType) -> bool, what: &str) -> Result<Type, String> {
    arity(inputs, 1)?;
    ensure(accepts(inputs[0].dtype), || format!("needs {what}"))?;
    Ok(inputs[0].clone())
}

fn binary(inputs: &[&Type]) -> Result<Type, String> {
    arity(inputs, 2)?;
    ensure(inputs[0].dtype == inputs[1].dtype, || {
        format!("element types {} and {} differ: convert one with cast", inputs[0].dtype, inputs[1].dtype)
    })?;
    Ok(Type { dtype: inputs[0].dtype, shape: broadcast(&inputs[0].shape, &inputs[1].shape)? })
}

fn axis_of(x: &Type, axis: usize) -> Result<(), String> {
    ensure(axis < x.shape.rank(), || format!("axis {axis} of a value with {} dimensions", x.shape.rank()))
}

fn arity(inputs: &[&Type], n: usize) -> Result<(), String> {
    ensure(inputs.len() == n, || format!("takes {n} inputs, got {}", inputs.len()))
}

fn ensure(ok: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if ok { Ok(()) } else { Err(message()) }
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}
