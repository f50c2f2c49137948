//! What a plugin author writes a forward pass with.
//!
//! Every method appends one node and returns its [`Value`]. The first mistake is remembered with the op,
//! the shapes and the scope it happened in, and returned by [`Builder::finish`]: code reads like the
//! paper, without a `?` on every line.

use crate::dim::Dim;
use crate::model::{Graph, Value};
use crate::op::{Activation, ConstData, InputKind, Op};
use crate::spec::SpecError;
use crate::types::{DType, Shape, Type};

/// Builds one [`Graph`].
#[derive(Debug, Default)]
pub struct Builder {
    graph: Graph,
    scope: Vec<String>,
    error: Option<SpecError>,
}

/// Optional parts of [`Builder::attention`]; `Default` is plain causal attention.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionOptions {
    /// Sliding window in positions, the query's own included.
    pub window: Option<u32>,
    /// Soft-capping of scores.
    pub softcap: Option<f32>,
    /// Attention sinks, `[Hq]`.
    pub sinks: Option<Value>,
    /// ALiBi slopes, `f32[Hq]`.
    pub alibi: Option<Value>,
    /// Positions are cut into chunks of this size, which do not see each other.
    pub chunk: Option<u32>,
    /// Which keys a query may see beside causality, `bool[T, T]` or `bool[Hq, T, T]`.
    pub mask: Option<Value>,
}

impl Builder {
    /// An empty graph.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// The graph, or the first mistake made while building it.
    pub fn finish(self) -> Result<Graph, SpecError> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.graph),
        }
    }

    /// The graph so far, or the first mistake.
    pub fn so_far(&self) -> Result<&Graph, SpecError> {
        match &self.error {
            Some(error) => Err(error.clone()),
            None => Ok(&self.graph),
        }
    }

    /// Names `value` as a result of the graph.
    pub fn output(&mut self, name: &str, value: Value) {
        self.graph.outputs.push((name.to_owned(), value));
    }

    /// Runs `body` with `name` added to the scope: nodes get it as their name, weights as their prefix
    /// when taken with [`Builder::weight`]. `model.layers.0` is two or more scopes deep.
    pub fn scope<O>(&mut self, name: impl Into<String>, body: impl FnOnce(&mut Builder) -> O) -> O {
        self.scope.push(name.into());
        let out = body(self);
        self.scope.pop();
        out
    }

    /// Appends any op. After a mistake, nothing more is checked.
    pub fn op(&mut self, op: Op, inputs: &[Value]) -> Value {
        if self.error.is_some() {
            return Value(0);
        }
        match self.graph.push(op, inputs.to_vec(), &self.scope.join(".")) {
            Ok(v) => v,
            Err(error) => {
                self.error = Some(error);
                Value(0)
            }
        }
    }

    /// Type of a value.
    pub fn ty(&self, v: Value) -> Type {
        match self.graph.nodes.get(v.index()) {
            Some(node) if self.error.is_none() => node.ty.clone(),
            _ => Type::new(DType::Float, Shape(vec![])),
        }
    }

    // ---- leaves ----

    /// Token ids, `i64[T]`.
    pub fn token_ids(&mut self) -> Value {
        self.op(Op::Input { kind: InputKind::TokenIds }, &[])
    }

    /// Positions, `i64[T]`.
    pub fn positions(&mut self) -> Value {
        self.op(Op::Input { kind: InputKind::Positions }, &[])
    }

    /// The length of the sequence, `i64[T]`; see [`Op::ContextLength`] for the promise made with it.
    pub fn context_length(&mut self, above: u64, growing: bool) -> Value {
        self.op(Op::ContextLength { above, growing }, &[])
    }

    /// The checkpoint's tensor `scope.name`.
    pub fn weight(&mut self, name: &str, shape: impl Into<Vec<usize>>) -> Value {
        let mut path = self.scope.join(".");
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(name);
        self.op(Op::Weight { name: path, shape: shape.into(), dtype: DType::Float }, &[])
    }

    /// A vector of f32 constants.
    pub fn constant(&mut self, data: Vec<f32>) -> Value {
        self.op(Op::Const { dtype: DType::F32, shape: vec![data.len()], data: ConstData::F32(data) }, &[])
    }

    /// A scalar of the given float type.
    pub fn scalar(&mut self, dtype: DType, x: f32) -> Value {
        self.op(Op::scalar(dtype, x), &[])
    }

    /// An i64 scalar.
    pub fn int(&mut self, x: i64) -> Value {
        self.op(Op::Const { dtype: DType::I64, shape: vec![], data: ConstData::I64(vec![x]) }, &[])
    }

    /// 0, 1, ..., len - 1.
    pub fn iota(&mut self, len: impl Into<Dim>) -> Value {
        self.op(Op::Iota { len: len.into() }, &[])
    }

    // ---- arithmetic ----

    /// a + b
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        self.op(Op::Add, &[a, b])
    }

    /// a - b
    pub fn sub(&mut self, a: Value, b: Value) -> Value {
        self.op(Op::Sub, &[a, b])
    }

    /// a * b
    pub fn mul(&mut self, a: Value, b: Value) -> Value {
        self.op(Op::Mul, &[a, b])
    }

    /// a / b
    pub fn div(&mut self, a: Value, b: Value) -> Value {
        self.op(Op::Div, &[a, b])
    }

    /// x * factor, for a float x.
    pub fn scale(&mut self, x: Value, factor: f32) -> Value {
        let dtype = self.ty(x).dtype;
        let c = self.scalar(dtype, factor);
        self.mul(x, c)
    }

    /// x + term, for a float x.
    pub fn shift(&mut self, x: Value, term: f32) -> Value {
        let dtype = self.ty(x).dtype;
        let c = self.scalar(dtype, term);
        self.add(x, c)
    }

    /// condition ? a : b
    pub fn select(&mut self, condition: Value, a: Value, b: Value) -> Value {
        self.op(Op::Select, &[condition, a, b])
    }

    /// Converts the element type; nothing is added when it already is `dtype`.
    pub fn cast(&mut self, x: Value, dtype: DType) -> Value {
        if self.ty(x).dtype == dtype { x } else { self.op(Op::Cast { dtype }, &[x]) }
    }

    /// a[..., M, K] b[..., K, N]
    pub fn matmul(&mut self, a: Value, b: Value) -> Value {
        self.op(Op::Matmul, &[a, b])
    }

    // ---- shapes ----

    /// Same elements, other shape.
    pub fn reshape(&mut self, x: Value, shape: impl Into<Shape>) -> Value {
        self.op(Op::Reshape { shape: shape.into().0 }, &[x])
    }

    /// Reorders dimensions.
    pub fn permute(&mut self, x: Value, axes: impl Into<Vec<usize>>) -> Value {
        self.op(Op::Permute { axes: axes.into() }, &[x])
    }

    /// Elements start..end of one axis.
    pub fn slice(&mut self, x: Value, axis: usize, start: impl Into<Dim>, end: impl Into<Dim>) -> Value {
        self.op(Op::Slice { axis, start: start.into(), end: end.into(), step: 1 }, &[x])
    }

    /// Joins values along an axis.
    pub fn concat(&mut self, axis: usize, parts: &[Value]) -> Value {
        self.op(Op::Concat { axis }, parts)
    }

    /// Cuts the last axis into consecutive parts of these sizes.
    pub fn split_last(&mut self, x: Value, sizes: &[usize]) -> Vec<Value> {
        let axis = self.ty(x).shape.rank().saturating_sub(1);
        let mut start = 0;
        sizes
            .iter()
            .map(|&size| {
                let part = self.slice(x, axis, start, start + size);
                start += size;
                part
            })
            .collect()
    }

    /// x[T, heads * size] -> [T, heads, size]
    pub fn split_heads(&mut self, x: Value, heads: usize, size: usize) -> Value {
        let rows = self.ty(x).shape.0.first().cloned().unwrap_or(Dim::from(0usize));
        self.reshape(x, [rows, heads.into(), size.into()])
    }

    /// x[T, heads, size] -> [T, heads * size]
    pub fn merge_heads(&mut self, x: Value) -> Value {
        let dims = self.ty(x).shape.0;
        let [rows, heads, size] = dims.as_slice() else { return self.reshape(x, [Dim::T()]) };
        let width = heads.mul(size).unwrap_or(Dim::from(0usize));
        self.reshape(x, [rows.clone(), width])
    }

    /// x[T, ...] -> [R, ...]: the rows whose logits are wanted.
    pub fn select_outputs(&mut self, x: Value) -> Value {
        self.op(Op::SelectOutputs, &[x])
    }

    // ---- composites ----

    /// x W^T
    pub fn linear(&mut self, x: Value, weight: Value) -> Value {
        self.op(Op::Linear, &[x, weight])
    }

    /// x W^T + b
    pub fn linear_bias(&mut self, x: Value, weight: Value, bias: Value) -> Value {
        self.op(Op::Linear, &[x, weight, bias])
    }

    /// Rows of `weight`.
    pub fn embedding(&mut self, ids: Value, weight: Value) -> Value {
        self.op(Op::Embedding, &[ids, weight])
    }

    /// Root mean square norm over the last axis.
    pub fn rms_norm(&mut self, x: Value, weight: Value, eps: f32) -> Value {
        self.op(Op::RmsNorm { eps, unit_offset: false }, &[x, weight])
    }

    /// Layer norm over the last axis.
    pub fn layer_norm(&mut self, x: Value, weight: Value, bias: Value, eps: f32) -> Value {
        self.op(Op::LayerNorm { eps }, &[x, weight, bias])
    }

    /// Rotates x[T, H, D] by the angles whose cosines and sines are given; see [`Op::Rope`].
    pub fn rope(&mut self, x: Value, (cos, sin): (Value, Value), interleaved: bool) -> Value {
        self.op(Op::Rope { interleaved }, &[x, cos, sin])
    }

    /// One of several linear maps for each token and choice: x[T, D] or x[T, K, D], ids[T, K], weight[E, N, D] ->
    /// [T, K, N]; see [`Op::GroupedLinear`].
    pub fn grouped_linear(&mut self, x: Value, ids: Value, weight: Value, bias: Option<Value>) -> Value {
        let inputs: Vec<Value> = [x, ids, weight].into_iter().chain(bias).collect();
        self.op(Op::GroupedLinear, &inputs)
    }

    /// Convolution along the sequence; see [`Op::CausalConv1d`].
    pub fn causal_conv1d(&mut self, state: usize, x: Value, weight: Value, bias: Option<Value>) -> Value {
        let inputs: Vec<Value> = [x, weight].into_iter().chain(bias).collect();
        self.op(Op::CausalConv1d { state: state as u32 }, &inputs)
    }

    /// Attention by a running state; the delta rule when `beta` is given. See [`Op::LinearAttention`].
    pub fn linear_attention(
        &mut self,
        state: usize,
        [q, k, v]: [Value; 3],
        decay: Value,
        beta: Option<Value>,
    ) -> Value {
        let inputs: Vec<Value> = [q, k, v, decay].into_iter().chain(beta).collect();
        self.op(Op::LinearAttention { state: state as u32, delta: beta.is_some() }, &inputs)
    }

    /// Applies an activation function.
    pub fn activation(&mut self, x: Value, kind: Activation) -> Value {
        self.op(Op::Activation { kind }, &[x])
    }

    /// activation(gate) * up
    pub fn gated(&mut self, gate: Value, up: Value, kind: Activation) -> Value {
        self.op(Op::Gated { kind }, &[gate, up])
    }

    /// Causal attention over the sequence; see [`Op::Attention`].
    pub fn attention(&mut self, state: usize, [q, k, v]: [Value; 3], scale: f32, options: AttentionOptions) -> Value {
        let AttentionOptions { window, softcap, sinks, alibi, chunk, mask } = options;
        let inputs: Vec<Value> = [q, k, v].into_iter().chain(sinks).chain(alibi).chain(mask).collect();
        let op = Op::Attention {
            state: state as u32,
            scale,
            window,
            chunk,
            softcap,
            sinks: sinks.is_some(),
            alibi: alibi.is_some(),
            masked: mask.is_some(),
        };
        self.op(op, &inputs)
    }
}
