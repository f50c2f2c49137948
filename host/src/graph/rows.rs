//! Which nodes compute every row of their output from the same row of their inputs.

use plugin_api::{Dim, Graph, Node, Op, Type};

/// Whether the first dimension of the type is `T`.
pub fn per_token(ty: &Type) -> bool {
    ty.shape.0.first() == Some(&Dim::T())
}

/// Whether row i of the output depends on row i of the per-token inputs only, and on all of the others; and the
/// node gives the selected rows when its per-token inputs are replaced by their selected rows.
pub fn rowwise(graph: &Graph, node: &Node) -> bool {
    use Op::*;
    if !per_token(&node.ty) {
        return false;
    }
    let rank = node.ty.shape.rank();
    let inputs: Vec<&Type> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
    let fixed = |ty: &Type| ty.shape.0.iter().all(|d| d.as_const().is_some());
    // Aligned at the last dimension, so equal ranks align the rows.
    let aligned = |ty: &Type| per_token(ty) && ty.shape.rank() == rank;
    let others_fixed = || inputs.iter().skip(1).all(|ty| fixed(ty));
    let first_has_rows = |min_rank: usize| inputs.first().is_some_and(|x| per_token(x) && x.shape.rank() >= min_rank);
    match &node.op {
        Neg
        | Abs
        | Sign
        | Exp
        | Log
        | Sqrt
        | Rsqrt
        | Sin
        | Cos
        | Tanh
        | Sigmoid
        | Erf
        | Floor
        | Ceil
        | Round
        | Not
        | Add
        | Sub
        | Mul
        | Div
        | Pow
        | Max
        | Min
        | Rem
        | And
        | Or
        | Eq
        | Ne
        | Lt
        | Le
        | Gt
        | Ge
        | Select
        | Cast { .. }
        | Activation { .. }
        | Gated { .. } => inputs.iter().all(|ty| fixed(ty) || aligned(ty)),
        // A weight of shape [T, K] would lose rows too.
        Linear | RmsNorm { .. } | LayerNorm { .. } => first_has_rows(2) && others_fixed(),
        Softmax => first_has_rows(2),
        Embedding => first_has_rows(1) && others_fixed(),
        // One matrix product: rows of the left side. Several: one a row.
        Matmul if rank == 2 => first_has_rows(2) && others_fixed(),
        Matmul => inputs.iter().all(|ty| fixed(ty) || aligned(ty)),
        Broadcast { .. } => inputs.iter().all(|ty| fixed(ty) || aligned(ty)),
        Take { axis: 0 } => fixed(inputs[0]) && per_token(inputs[1]),
        Gather { axis } | Scatter { axis } | ScatterAdd { axis } => *axis >= 1 && inputs.iter().all(|ty| per_token(ty)),
        Rope { .. } => true,
        GroupedLinear => inputs[..2].iter().all(|ty| per_token(ty)) && inputs[2..].iter().all(|ty| fixed(ty)),
        Reshape { .. } => first_has_rows(1),
        Permute { axes } => axes.first() == Some(&0),
        Slice { axis, .. }
        | Sum { axis, .. }
        | ReduceMax { axis, .. }
        | ReduceMin { axis, .. }
        | Argmax { axis, .. }
        | Cumsum { axis } => *axis >= 1 && first_has_rows(2),
        Concat { axis } => *axis >= 1 && inputs.iter().all(|ty| per_token(ty)),
        TopK { .. } | Argsort { .. } => first_has_rows(2),
        _ => false,
    }
}
