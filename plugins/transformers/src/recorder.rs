//! Records the graphs of a trace, and compares the traces of one model at two lengths.
//!
//! Plain Rust: knows no interpreter. `native::graph` offers it to Python, `lib.rs` takes the result.
//!
//! Architecture invariant: a graph leaves here only if every trace gave the same one. A difference means that the code
//! decided by the length of the text, and a graph of one length would be wrong at another. One trace is enough where the same
//! code was compared on the same request before.

use std::collections::HashMap;

use plugin_api::{ConstData, DType, Dim, Graph, Model, Node, Op, Type, Value, spec};

/// Most numbers in the literals of a graph: beyond are tables that belong into the checkpoint.
const MAX_LITERALS: usize = 1 << 26;
/// Texts of ops whose parsed form is kept; most nodes of a model share a few.
const MAX_KNOWN: usize = 4096;

/// The traces of one model so far.
#[derive(Default)]
pub(crate) struct Recorder {
    /// Finished and current traces with the length that each was made at.
    traces: Vec<(i64, Graph)>,
    literals: usize,
    known: HashMap<String, Op>,
    model: Option<(String, u64)>,
    trusted: bool,
}

impl Recorder {
    /// Starts the trace at length `size`.
    pub(crate) fn begin(&mut self, size: i64) {
        self.traces.push((size, Graph::default()));
        self.literals = 0;
    }

    /// Forgets everything.
    pub(crate) fn reset(&mut self) {
        self.traces.clear();
        self.literals = 0;
        self.model = None;
        self.trusted = false;
    }

    /// The current trace needs no comparison: that was done before, with the same code and request.
    pub(crate) fn trust(&mut self) {
        self.trusted = true;
    }

    /// What the model calls itself, and the longest sequence that it is made for.
    pub(crate) fn set_model(&mut self, architecture: String, context_length: u64) {
        self.model = Some((architecture, context_length));
    }

    /// Appends the op that `text` writes in the graph's text form.
    pub(crate) fn push(&mut self, text: &str, inputs: Vec<Value>, name: &str) -> Result<Value, String> {
        let op = match self.known.get(text) {
            Some(op) => op.clone(),
            None => {
                // An op whose attributes all have defaults may be written without parentheses.
                let op: Op = ron::from_str(text)
                    .or_else(|e| if text.contains('(') { Err(e) } else { ron::from_str(&format!("{text}()")) })
                    .map_err(|e| format!("op `{}`: {}", clip(text), e.code))?;
                if self.known.len() < MAX_KNOWN && text.len() < 256 {
                    self.known.insert(text.to_owned(), op.clone());
                }
                op
            }
        };
        self.push_op(op, inputs, name)
    }

    /// Appends a literal.
    pub(crate) fn constant(
        &mut self,
        dtype: DType,
        shape: Vec<usize>,
        data: ConstData,
        name: &str,
    ) -> Result<Value, String> {
        self.push_op(Op::Const { dtype, shape, data }, Vec::new(), name)
    }

    fn push_op(&mut self, op: Op, inputs: Vec<Value>, name: &str) -> Result<Value, String> {
        if let Op::Const { data, .. } = &op {
            self.literals = self.literals.saturating_add(data.len());
            if self.literals > MAX_LITERALS {
                return Err(format!("the literals of the graph have more than {MAX_LITERALS} numbers"));
            }
        }
        let graph = self.current()?;
        if graph.nodes.len() >= spec::MAX_NODES {
            return Err(format!("the graph has more than {} nodes", spec::MAX_NODES));
        }
        if let Some(v) = inputs.iter().find(|v| v.index() >= graph.nodes.len()) {
            return Err(format!("%{} is not a value of this graph, which has {}", v.0, graph.nodes.len()));
        }
        graph.push(op, inputs, name).map_err(|e| e.to_string())
    }

    /// The node that computes `value`.
    pub(crate) fn node(&self, value: Value) -> Result<&Node, String> {
        let graph = self.traces.last().map(|(_, g)| g).ok_or("no trace was begun")?;
        graph.nodes.get(value.index()).ok_or_else(|| format!("%{} does not exist", value.0))
    }

    /// Names a result of the graph.
    pub(crate) fn output(&mut self, name: String, value: Value) -> Result<(), String> {
        self.node(value)?;
        self.current()?.outputs.push((name, value));
        Ok(())
    }

    /// The graph that is being recorded, without the names of nodes: what is compared.
    pub(crate) fn text(&mut self) -> Result<String, String> {
        let mut graph = self.current()?.clone();
        graph.nodes.iter_mut().for_each(|node| node.name.clear());
        Ok(graph.to_text())
    }

    /// The graph that is being recorded.
    pub(crate) fn current(&mut self) -> Result<&mut Graph, String> {
        self.traces.last_mut().map(|(_, g)| g).ok_or_else(|| "no trace was begun: call _graph.begin first".to_owned())
    }

    /// Forgets the nodes from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) -> Result<(), String> {
        let graph = self.current()?;
        if let Some((name, _)) = graph.outputs.iter().find(|(_, v)| v.index() >= len) {
            return Err(format!("output `{name}` would be forgotten"));
        }
        graph.nodes.truncate(len);
        Ok(())
    }

    /// The model, if all traces agree. `may_trust` says whether [`Recorder::trust`] counts: not where code of others calls it.
    pub(crate) fn finish(self, may_trust: bool) -> Result<Model, String> {
        let (architecture, context_length) = self.model.ok_or("the driver named no model")?;
        let mut traces = self.traces;
        // The last one has names.
        let (size, graph) = traces.pop().ok_or("nothing was traced")?;
        if traces.is_empty() && !(self.trusted && may_trust) {
            return Err("the model was traced at one length only".to_owned());
        }
        traces.iter().try_for_each(|(other_size, other)| compare((*other_size, other), (size, &graph)))?;
        Ok(Model { architecture, context_length, graphs: [("decode".to_owned(), graph)].into() })
    }
}

/// Why two traces differ, by the first node that does.
fn compare((size, a): (i64, &Graph), (other_size, b): (i64, &Graph)) -> Result<(), String> {
    const ADVICE: &str = "the code decides or loops by the number of tokens, so one graph cannot stand for all lengths";
    for i in 0..a.nodes.len().max(b.nodes.len()) {
        let (x, y) = (a.nodes.get(i), b.nodes.get(i));
        let same = |(x, y): (&Node, &Node)| x.op == y.op && x.inputs == y.inputs && x.ty == y.ty;
        if x.zip(y).is_some_and(same) || x.map(show) == y.map(show) {
            continue; // equal as text: not-a-numbers in literals differ from themselves
        }
        let describe = |node: Option<&Node>| node.map_or("nothing".to_owned(), |n| clip(&show(n)));
        let place = y.or(x).map_or("", |n| n.name.as_str());
        return Err(format!(
            "{place}: traced with {size} tokens, node %{i} is {}; with {other_size} tokens it is {}: {ADVICE}",
            describe(x),
            describe(y)
        ));
    }
    if a.outputs != b.outputs {
        return Err(format!("the results differ between {size} and {other_size} tokens: {ADVICE}"));
    }
    Ok(())
}

fn show(node: &Node) -> String {
    let inputs = node.inputs.iter().map(|v| format!("%{}", v.0)).collect::<Vec<_>>().join(" ");
    format!("`{} = {} {inputs}`", node.ty, node.op)
}

fn clip(text: &str) -> String {
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// How a dimension is handed to Python.
pub(crate) enum PyDim {
    /// A number.
    Number(i64),
    /// A polynomial in T: powers and coefficients, highest power first.
    Tokens(Vec<(u8, i64)>),
    /// Anything with R.
    Text(String),
}

/// The dimensions of a type as Python sees them.
pub(crate) fn dims(ty: &Type) -> Vec<PyDim> {
    ty.shape.0.iter().map(py_dim).collect()
}

fn py_dim(dim: &Dim) -> PyDim {
    if let Some(n) = dim.as_const() {
        return PyDim::Number(n);
    }
    match dim.token_terms() {
        Some(terms) => PyDim::Tokens(terms),
        None => PyDim::Text(dim.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traced(sizes: &[usize]) -> Recorder {
        let mut r = Recorder::default();
        for &size in sizes {
            r.begin(size as i64);
            let ids = r.push("input(kind:token_ids)", vec![], "m.py:1").unwrap();
            let w = r.push("weight(name:\"w\",shape:[4,2])", vec![], "m.py:1").unwrap();
            let x = r.push("embedding", vec![ids, w], "m.py:2").unwrap();
            let x = r.push(&format!("slice(axis:1,start:0,end:{},step:1)", size.min(2)), vec![x], "m.py:3").unwrap();
            let x = r.push("select_outputs", vec![x], "m.py:4").unwrap();
            r.output("logits".into(), x).unwrap();
        }
        r.set_model("M".into(), 8);
        r
    }

    #[test]
    fn equal_traces_give_a_model() {
        let model = traced(&[5, 9]).finish(true).unwrap();
        plugin_api::spec::verify(&model).unwrap();
        assert_eq!(model.graphs["decode"].nodes.len(), 5);
    }

    #[test]
    fn a_difference_is_named_with_its_place() {
        let error = traced(&[1, 9]).finish(true).unwrap_err();
        assert!(error.starts_with("m.py:3: traced with 1 tokens, node %3 is"), "{error}");
        assert!(error.contains("end:1") && error.contains("end:2"), "{error}");
    }

    #[test]
    fn one_trace_is_not_enough() {
        assert!(traced(&[5]).finish(true).unwrap_err().contains("one length only"));
        assert!(Recorder::default().finish(true).is_err());
    }

    #[test]
    fn one_trace_is_enough_where_it_is_trusted() {
        let trusted = || {
            let mut r = traced(&[5]);
            r.trust();
            r
        };
        assert_eq!(trusted().finish(true).unwrap().graphs["decode"].nodes.len(), 5);
        assert!(trusted().finish(false).unwrap_err().contains("one length only"));
        let mut again = trusted();
        again.reset();
        assert!(again.finish(true).is_err());
    }

    #[test]
    fn wrong_ops_are_errors() {
        let mut r = Recorder::default();
        assert!(r.push("add", vec![], "").unwrap_err().contains("begin"));
        r.begin(3);
        assert!(r.push("causal_mask", vec![], "").is_ok());
        assert!(r.push("nonsense(", vec![], "").unwrap_err().contains("nonsense"));
        assert!(r.push("neg", vec![Value(7)], "").unwrap_err().contains("%7"));
        let x = r.push("iota(len:\"T\")", vec![], "").unwrap();
        assert!(r.push("not", vec![x], "m.py:9").unwrap_err().contains("m.py:9"));
    }

    #[test]
    fn a_graph_without_end_is_stopped() {
        let mut r = Recorder::default();
        r.begin(3);
        let x = r.push("iota(len:1)", vec![], "").unwrap();
        let graph = r.current().unwrap();
        let node = graph.node(x).clone();
        graph.nodes.resize(spec::MAX_NODES - 1, node);
        assert!(r.push("neg", vec![x], "").is_ok());
        assert_eq!(r.push("neg", vec![x], "").unwrap_err(), "the graph has more than 1000000 nodes");
    }

    #[test]
    fn literals_are_limited() {
        let mut r = Recorder::default();
        r.begin(3);
        let data = || ConstData::Bool(vec![false; MAX_LITERALS / 2 + 1]);
        let shape = vec![MAX_LITERALS / 2 + 1];
        r.constant(DType::Bool, shape.clone(), data(), "").unwrap();
        assert!(r.constant(DType::Bool, shape, data(), "").unwrap_err().contains("numbers"));
    }
}
