//! Graphs and models: plain data, shared by builder, verifier, text form and host.

use std::collections::BTreeMap;

use crate::op::{InputKind, Op};
use crate::spec::{self, SpecError};
use crate::types::Type;

/// What a plugin returns: the graphs of one model and what the host must know beside them.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The architecture that was built, as in `config.json`, e.g. `LlamaForCausalLM`.
    pub architecture: String,
    /// The longest sequence that the model was made for, in tokens.
    pub context_length: u64,
    /// Graphs by name; `decode` maps tokens to logits.
    pub graphs: BTreeMap<String, Graph>,
}

/// A graph in SSA form; nodes are in an order in which every input precedes its use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// The nodes; [`Value`] `n` is the output of node `n`.
    pub nodes: Vec<Node>,
    /// Named results; `decode` has one, `logits: float[R, vocabulary]`.
    pub outputs: Vec<(String, Value)>,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it does, with its attributes.
    pub op: Op,
    /// What it reads.
    pub inputs: Vec<Value>,
    /// Type of its output.
    pub ty: Type,
    /// Where it comes from, for people: `layers.0.mlp`, or a source line. No meaning.
    pub name: String,
}

/// The output of the node with this index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub u32);

impl Value {
    /// Index into [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Keys and values that one attention node keeps per token of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvState {
    /// The `state` attribute of the attention.
    pub id: u32,
    /// Number of key/value heads.
    pub heads: usize,
    /// Size of one key.
    pub key_dim: usize,
    /// Size of one value.
    pub value_dim: usize,
    /// How many positions back (itself included) a query sees; `None`: all.
    pub window: Option<u32>,
}

/// When the results of a graph change with the length of the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthDependence {
    /// Results are the same for all lengths up to this.
    pub above: u64,
    /// Beyond, every length has its own results; else all have the same.
    pub growing: bool,
}

impl LengthDependence {
    /// Lengths of one class have the same results: what was computed at one holds at the other.
    pub fn class(&self, length: usize) -> u64 {
        match length as u64 {
            length if length <= self.above => 0,
            length if self.growing => length,
            _ => 1,
        }
    }
}

impl Graph {
    /// The node that computes `v`.
    pub fn node(&self, v: Value) -> &Node {
        &self.nodes[v.index()]
    }

    /// Type of `v`.
    pub fn ty(&self, v: Value) -> &Type {
        &self.node(v).ty
    }

    /// The result called `name`.
    pub fn output(&self, name: &str) -> Option<Value> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }

    /// Appends a node after checking it against the specification.
    pub fn push(&mut self, op: Op, inputs: Vec<Value>, name: &str) -> Result<Value, SpecError> {
        let types: Vec<&Type> = inputs.iter().map(|&v| self.ty(v)).collect();
        let ty = spec::infer(&op, &types)
            .map_err(|message| SpecError::node(self.nodes.len(), name, &op, &types, message))?;
        self.nodes.push(Node { op, inputs, ty, name: name.to_owned() });
        Ok(Value(self.nodes.len() as u32 - 1))
    }

    /// The weights that the graph reads: name and shape, in order of first use.
    pub fn weights(&self) -> Vec<(&str, Vec<usize>)> {
        let mut out: Vec<(&str, Vec<usize>)> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for node in &self.nodes {
            if let Op::Weight { name, shape, .. } = &node.op
                && seen.insert(name.as_str())
            {
                out.push((name, shape.clone()));
            }
        }
        out
    }

    /// The key/value states, in order of the nodes. Call on verified graphs.
    pub fn kv_states(&self) -> Vec<KvState> {
        let size = |v: Value, axis: usize| {
            self.ty(v).shape.0.get(axis).and_then(|d| d.as_const()).and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
        };
        self.nodes
            .iter()
            .filter_map(|node| match node.op {
                Op::Attention { state, window, .. } => Some(KvState {
                    id: state,
                    heads: size(node.inputs[1], 1),
                    key_dim: size(node.inputs[1], 2),
                    value_dim: size(node.inputs[2], 2),
                    window,
                }),
                _ => None,
            })
            .collect()
    }

    /// How many token ids there are to give: the rows of the smallest table that the ids look up as they are. `None` where
    /// nothing does.
    pub fn input_vocab_size(&self) -> Option<usize> {
        let is_ids = |mut v: Value| {
            while let Op::Reshape { .. } = self.node(v).op {
                v = self.node(v).inputs[0];
            }
            matches!(self.node(v).op, Op::Input { kind: InputKind::TokenIds })
        };
        let table = |node: &Node| match node.op {
            Op::Embedding if is_ids(node.inputs[0]) => Some(node.inputs[1]),
            Op::Take { axis: 0 } if is_ids(node.inputs[1]) => Some(node.inputs[0]),
            _ => None,
        };
        let rows = |v: Value| self.ty(v).shape.0.first()?.as_const().and_then(|n| usize::try_from(n).ok());
        self.nodes.iter().filter_map(table).filter_map(rows).min()
    }

    /// How the graph's results depend on the length of the sequence; see [`Op::ContextLength`].
    pub fn length_dependence(&self) -> Option<LengthDependence> {
        let all = self.nodes.iter().filter_map(|n| match n.op {
            Op::ContextLength { above, growing } => Some(LengthDependence { above, growing }),
            _ => None,
        });
        // Different promises together: every length beyond the lowest counts as its own.
        all.reduce(|a, b| LengthDependence {
            above: a.above.min(b.above),
            growing: a.growing || b.growing || a.above != b.above,
        })
    }
}
