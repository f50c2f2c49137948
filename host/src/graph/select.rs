//! Moves `select_outputs` from an op's output to its inputs where every row is computed from the same
//! row of the inputs. The last layer's projections then run only for the rows whose logits are wanted.
//!
//! Values that are needed for all tokens anyway are not computed twice: they are selected from.

use plugin_api::spec::SpecError;
use plugin_api::{Dim, Graph, Op, Value};

use super::rows::{per_token, rowwise};

/// In which forms a node's value is needed.
#[derive(Clone, Copy, Default)]
struct Need {
    whole: bool,
    selected: bool,
}

pub(super) fn run(graph: &Graph) -> Result<Graph, SpecError> {
    let need = needs(graph);
    let mut out = Graph::default();
    let none = Value(u32::MAX);
    let (mut whole, mut selected) = (vec![none; graph.nodes.len()], vec![none; graph.nodes.len()]);
    for (i, node) in graph.nodes.iter().enumerate() {
        if need[i].whole {
            whole[i] = match node.op {
                Op::SelectOutputs => selected[node.inputs[0].index()],
                _ => {
                    let inputs = node.inputs.iter().map(|v| whole[v.index()]).collect();
                    out.push(node.op.clone(), inputs, &node.name)?
                }
            };
        }
        if need[i].selected {
            selected[i] = if need[i].whole {
                out.push(Op::SelectOutputs, vec![whole[i]], &node.name)?
            } else {
                let rows = |v: &Value| if per_token(graph.ty(*v)) { selected[v.index()] } else { whole[v.index()] };
                let inputs = node.inputs.iter().map(rows).collect();
                out.push(with_rows_selected(&node.op), inputs, &node.name)?
            };
        }
    }
    out.outputs = graph.outputs.iter().map(|(name, v)| (name.clone(), whole[v.index()])).collect();
    Ok(out)
}

/// From the outputs backwards: what must exist for all tokens, and what for the selected ones.
fn needs(graph: &Graph) -> Vec<Need> {
    let mut need = vec![Need::default(); graph.nodes.len()];
    for (_, v) in &graph.outputs {
        need[v.index()].whole = true;
    }
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        if need[i].selected && !rowwise(graph, node) {
            need[i].whole = true;
        }
        let Need { whole, selected } = need[i];
        for v in &node.inputs {
            let input = &mut need[v.index()];
            match (whole, selected) {
                (true, _) if node.op == Op::SelectOutputs => input.selected = true,
                (true, _) => input.whole = true,
                (false, true) if per_token(graph.ty(*v)) => input.selected = true,
                (false, true) => input.whole = true,
                (false, false) => {}
            }
        }
    }
    need
}

/// The op on selected rows: shapes in attributes get R where they had T.
fn with_rows_selected(op: &Op) -> Op {
    let mut op = op.clone();
    if let Op::Reshape { shape } | Op::Broadcast { shape } = &mut op
        && let Some(first) = shape.first_mut()
    {
        *first = Dim::R();
    }
    op
}
