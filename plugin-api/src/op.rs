//! Every operation of the graph IR, in one place.
//!
//! The first groups are primitives: a closed set that every executor implements. The last group are
//! composites: what fast kernels implement; each is defined once, in primitives, in [`crate::define`].
//! What an op requires of its inputs, and the type it gives, is in [`crate::spec::infer`].
#![allow(rustdoc::broken_intra_doc_links, reason = "shapes such as [T, D] read like links")]

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::dim::Dim;
use crate::spec::MAX_RANK;
use crate::types::DType;

/// An operation with its attributes. Comments give inputs -> output.
///
/// Binary ops and `select` broadcast like numpy: shapes are aligned at the last dimension, and a 1
/// stretches. Both sides must have the same element type: convert with `cast`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs)] // the names are the documentation: one line each, as in the field's papers
pub enum Op {
    // ---- leaves -------------------------------------------------------------------------------
    /// What the host supplies for every step; see [`InputKind`].
    Input {
        kind: InputKind,
    },
    /// A tensor of the checkpoint, under the checkpoint's own name. -> dtype[shape], float or i64
    Weight {
        name: String,
        shape: Vec<usize>,
        #[serde(default = "float", skip_serializing_if = "is_float")]
        dtype: DType,
    },
    /// A literal. -> dtype[shape]
    Const {
        dtype: DType,
        shape: Vec<usize>,
        data: ConstData,
    },
    /// The length of the whole sequence, the same number for each of its tokens: rotary embeddings that change
    /// with the length read it. Keys and values are then those of one length and cannot be kept when it grows.
    /// So the graph promises when its results change: they are the same for all lengths up to `above`, and for
    /// all beyond, unless `growing`: then each length beyond is its own. -> i64[T]
    ContextLength {
        above: u64,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        growing: bool,
    },
    /// 0, 1, 2, ... -> i64[len]
    Iota {
        len: Dim,
    },

    // ---- elementwise, one input: x -> same type ------------------------------------------------
    Neg,
    Abs,
    Sign,
    Exp,
    Log,
    Sqrt,
    Rsqrt,
    Sin,
    Cos,
    Tanh,
    Sigmoid,
    Erf,
    Floor,
    Ceil,
    /// Halves go to the even neighbour.
    Round,
    /// Of a bool.
    Not,

    // ---- elementwise, two inputs: a, b -> broadcast type ---------------------------------------
    Add,
    Sub,
    Mul,
    /// On i64: rounds towards negative infinity.
    Div,
    Pow,
    Max,
    Min,
    /// Remainder with the sign of the divisor.
    Rem,
    /// Of bools.
    And,
    /// Of bools.
    Or,
    /// Comparisons give bool.
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,

    /// condition: bool, a, b -> a where the condition holds, else b
    Select,
    /// Float to i64 truncates; bool to number gives 0 or 1.
    Cast {
        dtype: DType,
    },

    // ---- reductions over one axis: x -> x without that axis (or with size 1: keep) --------------
    Sum {
        axis: usize,
        keep: bool,
    },
    ReduceMax {
        axis: usize,
        keep: bool,
    },
    ReduceMin {
        axis: usize,
        keep: bool,
    },
    /// Index of the first largest element. -> i64
    Argmax {
        axis: usize,
        keep: bool,
    },
    /// Running sum along the axis, itself included. -> same type
    Cumsum {
        axis: usize,
    },

    // ---- matrices -------------------------------------------------------------------------------
    /// a[..., M, K], b[..., K, N] -> [..., M, N]; leading dimensions broadcast.
    Matmul,
    /// a[..., N, N], b[..., N, M] -> x[..., N, M] with (I + the strictly lower triangle of a) x = b; the rest of a is
    /// not read. Leading dimensions broadcast.
    SolveTriangular,

    // ---- shape ----------------------------------------------------------------------------------
    /// Same elements in the same row-major order.
    Reshape {
        #[serde(deserialize_with = "few_dims")]
        shape: Vec<Dim>,
    },
    /// Dimension i of the output is dimension `axes[i]` of the input.
    Permute {
        axes: Vec<usize>,
    },
    /// Stretches dimensions of size 1 and adds leading ones.
    Broadcast {
        #[serde(deserialize_with = "few_dims")]
        shape: Vec<Dim>,
    },
    /// Elements start, start+step, ... before end, of one axis.
    Slice {
        axis: usize,
        start: Dim,
        end: Dim,
        step: usize,
    },
    /// One or more inputs, joined along the axis.
    Concat {
        axis: usize,
    },

    // ---- indexing -------------------------------------------------------------------------------
    /// x[..., N, ...], index: i64[I...] -> x with `axis` replaced by the dimensions of index.
    Take {
        axis: usize,
    },
    /// x, index: i64 of the same rank -> shape of index; element by element along the axis.
    Gather {
        axis: usize,
    },
    /// x, index: i64, values (shape of index) -> x with values written (in index order) along the axis.
    Scatter {
        axis: usize,
    },
    /// Like `scatter`, adding.
    ScatterAdd {
        axis: usize,
    },
    /// Indices of the k largest along the last axis, largest first, ties by lower index. -> i64[..., k]
    TopK {
        k: usize,
    },
    /// Indices that sort the last axis; stable. -> i64
    Argsort {
        descending: bool,
    },
    /// x[T, ...] -> [R, ...]: the rows whose logits are wanted.
    SelectOutputs,

    // ---- composites -----------------------------------------------------------------------------
    /// x[..., K], weight[N, K], optional bias[N] -> [..., N]
    Linear,
    /// ids: i64[...], weight[V, D] -> [..., D]
    Embedding,
    /// x[..., D], optional weight[D] -> x / sqrt(mean(x^2) + eps) * (weight, or 1 + weight with unit_offset).
    /// Statistics in f32 (Zhang & Sennrich, arXiv:1910.07467).
    RmsNorm {
        eps: f32,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unit_offset: bool,
    },
    /// x[..., D], optional weight[D], optional bias[D] (Ba et al., arXiv:1607.06450). Statistics in f32.
    LayerNorm {
        eps: f32,
    },
    /// x[T, H, D], cos: f32[T, N], sin: f32[T, N], 2N <= D -> x with the first 2N elements of every head
    /// rotated in pairs: (i, i + N), or (2i, 2i + 1) when interleaved (Su et al., arXiv:2104.09864).
    Rope {
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        interleaved: bool,
    },
    /// Over the last axis, in f32.
    Softmax,
    /// x -> same type.
    Activation {
        kind: Activation,
    },
    /// gate, up -> activation(gate) * up (Shazeer, arXiv:2002.05202).
    Gated {
        kind: Activation,
    },
    /// A linear map chosen for each token, K times: mixtures of experts. x[T, D] (the same for all K) or x[T, K, D],
    /// ids: i64[T, K], weight[E, N, D], optional bias[E, N] -> [T, K, N]:
    /// y[t, k] = weight[ids[t, k]] x[t, k] + bias[ids[t, k]].
    GroupedLinear,
    /// Which keys a query may see: j <= i, i - j < window, and i / chunk = j / chunk. -> bool[T, T]
    CausalMask {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        window: Option<u32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        chunk: Option<u32>,
    },
    /// Convolution along the sequence, each channel by itself: x[T, C], weight[C, W], optional bias[C] -> [T, C].
    /// y[t, c] = sum over w of weight[c, w] * x[t - W + 1 + w, c] + bias[c], with zeros before the sequence.
    CausalConv1d {
        /// Identity of the W - 1 rows that this node keeps.
        state: u32,
    },
    /// Attention by a matrix S[H, Dk, Dv] per sequence that starts at zero and is updated by every token, in f32.
    /// q[T, Hk, Dk], k[T, Hk, Dk], v[T, H, Dv], decay: f32[T, H] or f32[T, H, Dk], beta: f32[T, H] if delta
    /// -> [T, H, Dv]. Head h reads q and k of head h / (H / Hk). For every token, in order:
    /// S = exp(decay) * S + k u^T, y = q^T S, with u = v, or by the delta rule u = beta * (v - k^T (exp(decay) * S)).
    /// Mamba 1 and 2 (Dao & Gu, arXiv:2405.21060), gated delta rule (Yang et al., arXiv:2412.06464), Kimi delta
    /// attention (arXiv:2510.26692), RG-LRU and lightning attention are cases of it.
    LinearAttention {
        /// Identity of the matrices that this node keeps.
        state: u32,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        delta: bool,
    },
    /// q[T, Hq, D], k[T, Hkv, D], v[T, Hkv, Dv], then sinks[Hq] if sinks, slopes: f32[Hq] if alibi, and
    /// mask: bool[T, T] or bool[Hq, T, T] if masked -> [T, Hq, Dv]. Causal. Query head h reads key head h / (Hq / Hkv).
    /// score(i, j) = softcap(scale * q_i.k_j) + slope * (j - i), for i - window < j <= i, i / chunk = j / chunk and
    /// mask[i, j].
    Attention {
        /// Identity of the keys and values this node keeps; used by one node only.
        state: u32,
        /// Factor of q.k, usually 1 / sqrt(D).
        scale: f32,
        /// Sliding window: how many positions back, itself included.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        window: Option<u32>,
        /// Positions are cut into chunks of this size; a query sees keys of its own chunk (Llama 4).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        chunk: Option<u32>,
        /// c * tanh(score / c) (Gemma 2).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        softcap: Option<f32>,
        /// One learned logit per head that takes part in the softmax and has no value (gpt-oss).
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        sinks: bool,
        /// Linear biases (Press et al., arXiv:2108.12409).
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        alibi: bool,
        /// Keys are chosen by a further mask (sparse attention).
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        masked: bool,
    },
}

fn float() -> DType {
    DType::Float
}

fn is_float(dtype: &DType) -> bool {
    *dtype == DType::Float
}

/// What the host supplies for every step: one number per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputKind {
    /// -> i64[T]
    TokenIds,
    /// 0 for the first token of a sequence. -> i64[T]
    Positions,
}

/// The elements of a literal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConstData {
    /// For dtypes `float` and `f32`.
    F32(Vec<f32>),
    /// For dtype `i64`.
    I64(Vec<i64>),
    /// For dtype `bool`.
    Bool(Vec<bool>),
}

/// Activation functions, by their usual names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x * sigmoid(x)
    Silu,
    /// x * (1 + erf(x / sqrt 2)) / 2
    Gelu,
    /// x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) / 2
    GeluTanh,
    /// x * sigmoid(1.702 x)
    QuickGelu,
    /// max(x, 0)
    Relu,
    /// max(x, 0)^2
    ReluSquared,
    /// log(1 + exp(x))
    Softplus,
    /// 1 / (1 + exp(-x))
    Sigmoid,
    /// tanh(x)
    Tanh,
}

impl Activation {
    /// Every name that [`Activation::from_hf`] knows.
    pub const HF_NAMES: &[&str] = &[
        "silu",
        "swish",
        "gelu",
        "gelu_python",
        "gelu_new",
        "gelu_pytorch_tanh",
        "gelu_fast",
        "gelu_accurate",
        "gelu_python_tanh",
        "quick_gelu",
        "relu",
        "relu2",
        "softplus",
        "sigmoid",
        "tanh",
    ];

    /// From the names used in `hidden_act` of Hugging Face configurations.
    pub fn from_hf(name: &str) -> Option<Activation> {
        Some(match name {
            "silu" | "swish" => Activation::Silu,
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" | "gelu_python_tanh" => {
                Activation::GeluTanh
            }
            "quick_gelu" => Activation::QuickGelu,
            "relu" => Activation::Relu,
            "relu2" => Activation::ReluSquared,
            "softplus" => Activation::Softplus,
            "sigmoid" => Activation::Sigmoid,
            "tanh" => Activation::Tanh,
            _ => return None,
        })
    }
}

impl Op {
    /// The op's name in the text form, without attributes.
    pub fn name(&self) -> String {
        let text = self.to_string();
        text.split('(').next().unwrap_or_default().to_owned()
    }

    /// Whether the op is a composite, that is, has a definition in primitives.
    pub fn is_composite(&self) -> bool {
        use Op::*;
        matches!(
            self,
            Linear
                | Embedding
                | RmsNorm { .. }
                | LayerNorm { .. }
                | Rope { .. }
                | Softmax
                | Activation { .. }
                | Gated { .. }
                | GroupedLinear
                | CausalMask { .. }
                | CausalConv1d { .. }
                | LinearAttention { .. }
                | Attention { .. }
        )
    }

    /// The identity of what the node keeps for each sequence, if it keeps something.
    pub fn state(&self) -> Option<u32> {
        match self {
            Op::Attention { state, .. } | Op::CausalConv1d { state } | Op::LinearAttention { state, .. } => {
                Some(*state)
            }
            _ => None,
        }
    }

    /// A scalar literal.
    pub fn scalar(dtype: DType, x: f32) -> Op {
        Op::Const { dtype, shape: vec![], data: ConstData::F32(vec![x]) }
    }
}

impl ConstData {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            ConstData::F32(v) => v.len(),
            ConstData::I64(v) => v.len(),
            ConstData::Bool(v) => v.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A list of dimensions that is read no further than the longest allowed.
fn few_dims<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Dim>, D::Error> {
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Vec<Dim>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX_RANK} dimensions")
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Vec<Dim>, A::Error> {
            let mut out = Vec::new();
            while let Some(d) = list.next_element()? {
                if out.len() == MAX_RANK {
                    return Err(serde::de::Error::custom(format!("a shape of more than {MAX_RANK} dimensions")));
                }
                out.push(d);
            }
            Ok(out)
        }
    }
    d.deserialize_seq(Visitor)
}

/// Name and attributes as in the text form: `rms_norm(eps:0.000001,unit_offset:false)`.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&ron::to_string(self).map_err(|_| fmt::Error)?)
    }
}
