//! Common subexpressions: nodes with the same op, attributes and inputs become one.
//!
//! Attention is exempt by construction: the `state` attribute differs between nodes.

use std::collections::HashMap;

use plugin_api::spec::SpecError;
use plugin_api::{Graph, Value};

use super::rewrite::rewrite;

pub(super) fn run(graph: &Graph) -> Result<Graph, SpecError> {
    let mut seen: HashMap<(String, Vec<Value>), Value> = HashMap::new();
    rewrite(graph, |out, node| {
        // The printed op tells apart what equality of floats would not (0.0 and -0.0) and joins equal NaNs.
        let key = (node.op.to_string(), node.inputs.clone());
        if let Some(&value) = seen.get(&key) {
            return Ok(Some(value));
        }
        let value = out.push(node.op.clone(), node.inputs.clone(), &node.name)?;
        seen.insert(key, value);
        Ok(Some(value))
    })
}
