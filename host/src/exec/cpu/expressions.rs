//! The identity of static values in plans, as text.

use plugin_api::{Graph, Op};

/// Static values as expressions over weights: their identity in plans. Names of nodes play no part.
/// Long ones (big literals, deep expressions) are shortened to a digest.
pub(super) fn expressions(graph: &Graph, is_static: &[bool]) -> Vec<String> {
    const LONGEST: usize = 160;
    let mut out: Vec<String> = Vec::with_capacity(graph.nodes.len());
    for (i, node) in graph.nodes.iter().enumerate() {
        let text = match &node.op {
            _ if !is_static[i] => String::new(),
            Op::Weight { name, .. } => weight_name(name),
            op if node.inputs.is_empty() => op.to_string(),
            op => {
                let inputs: Vec<&str> = node.inputs.iter().map(|v| out[v.index()].as_str()).collect();
                format!("{op}({})", inputs.join(", "))
            }
        };
        let weight = matches!(node.op, Op::Weight { .. });
        out.push(if text.len() > LONGEST && !weight { digest(&node.op, &text) } else { text });
    }
    out
}

fn digest(op: &Op, text: &str) -> String {
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(text.as_bytes());
    let hex: String = hash.iter().take(16).map(|b| format!("{b:02x}")).collect();
    format!("{}#{hex}", op.name())
}

/// Names that could be taken for an expression or a digest are quoted.
fn weight_name(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
    if name.chars().all(plain) { name.to_owned() } else { format!("{name:?}") }
}
