//! The text form: what crosses the ABI, what `host inspect` prints, what golden files hold.
//!
//! One line per node, `%3 float[T,64] = rms_norm(eps:0.000001,unit_offset:false) %1 %2 # layers.0`;
//! attributes are written in RON. The first line carries the version. Reading checks the syntax and the
//! types of every node; a reader accepts every older minor of its major version.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::model::{Graph, Model, Node, Value};
use crate::op::Op;
use crate::spec;
use crate::types::Type;
use crate::{IR_MAJOR, IR_MINOR};

/// Longest text that is read, in bytes.
const MAX_BYTES: usize = 256 << 20;

/// Most types of inputs that an error lists.
const MAX_SHOWN: usize = 16;

/// Why a text is not a model.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ParseError {
    /// The first line is not a version line.
    #[error("this is not a graph: it must start with `host-graph {IR_MAJOR}.x`, it starts with `{0}`")]
    NotAGraph(String),
    /// Not UTF-8.
    #[error("this is not a graph: byte {0} is not UTF-8")]
    NotText(usize),
    /// Too long.
    #[error("the graph has {0} bytes, the limit is {MAX_BYTES}")]
    TooLong(usize),
    /// A version that this library does not read.
    #[error("the graph is of IR version {major}.{minor}, this host reads {IR_MAJOR}.0 to {IR_MAJOR}.{IR_MINOR}: {}",
        if .major > &IR_MAJOR { "use a newer host" } else { "rebuild the plugin with a newer plugin-api" })]
    Version {
        /// Major version of the text.
        major: u32,
        /// Minor version of the text.
        minor: u32,
    },
    /// An op that this library does not know.
    #[error(
        "line {line}: unknown op `{op}`; the graph is of IR version {major}.{minor}, this host knows {IR_MAJOR}.{IR_MINOR}"
    )]
    UnknownOp {
        /// 1-based line.
        line: usize,
        /// Its name.
        op: String,
        /// Major version of the text.
        major: u32,
        /// Minor version of the text.
        minor: u32,
    },
    /// Anything else.
    #[error("line {line}: {message}")]
    Line {
        /// 1-based line.
        line: usize,
        /// What is wrong.
        message: String,
    },
}

impl Model {
    /// The text form.
    pub fn to_text(&self) -> String {
        let mut out = format!("host-graph {IR_MAJOR}.{IR_MINOR}\n");
        let _ = writeln!(out, "architecture {:?}", self.architecture);
        let _ = writeln!(out, "context_length {}", self.context_length);
        for (name, graph) in &self.graphs {
            let _ = writeln!(out, "graph {name}");
            graph.write_text(&mut out);
            out.push_str("end\n");
        }
        out
    }

    /// Reads the text form; the result is typed but not yet verified as a whole (see [`spec::verify`]).
    pub fn parse_bytes(bytes: &[u8]) -> Result<Model, ParseError> {
        if bytes.len() > MAX_BYTES {
            return Err(ParseError::TooLong(bytes.len()));
        }
        Model::parse(std::str::from_utf8(bytes).map_err(|e| ParseError::NotText(e.valid_up_to()))?)
    }

    /// Reads the text form; the result is typed but not yet verified as a whole (see [`spec::verify`]).
    pub fn parse(text: &str) -> Result<Model, ParseError> {
        let mut lines = text.lines().enumerate().map(|(i, l)| (i + 1, l.trim()));
        let version = read_version(lines.next().map_or("", |(_, l)| l))?;
        let mut model = Model { architecture: String::new(), context_length: 0, graphs: BTreeMap::new() };
        let mut graph: Option<(String, Graph)> = None;
        let mut last = 1;
        for (line, content) in lines {
            last = line;
            let fail = |message: String| ParseError::Line { line, message };
            let (word, rest) = content.split_once(' ').unwrap_or((content, ""));
            match (&mut graph, word) {
                (_, "") => {}
                (_, w) if w.starts_with('#') => {}
                (None, "architecture") => {
                    model.architecture = ron::from_str(rest).map_err(|e| fail(e.to_string()))?;
                }
                (None, "context_length") => {
                    model.context_length = rest.parse().map_err(|_| fail(format!("`{rest}` is not a length")))?;
                }
                (None, "graph") if !rest.is_empty() => graph = Some((rest.to_owned(), Graph::default())),
                (Some((_, g)), "output") => g.outputs.push(read_output(rest, g).map_err(fail)?),
                (Some((_, g)), w) if w.starts_with('%') => read_node(content, g, line, version)?,
                (open @ Some(_), "end") => {
                    let Some((name, g)) = open.take() else { continue };
                    if model.graphs.insert(name.clone(), g).is_some() {
                        return Err(fail(format!("a second graph `{name}`")));
                    }
                }
                _ => return Err(fail(format!("`{}` is not expected here", clip(content)))),
            }
        }
        match graph {
            Some((name, _)) => {
                Err(ParseError::Line { line: last, message: format!("graph `{name}` has no `end`: truncated?") })
            }
            None => Ok(model),
        }
    }
}

impl Graph {
    /// The graph's lines of the text form.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        self.write_text(&mut out);
        out
    }

    fn write_text(&self, out: &mut String) {
        for (i, node) in self.nodes.iter().enumerate() {
            let _ = write!(out, "  %{i} {} = {}", node.ty, node.op);
            for v in &node.inputs {
                let _ = write!(out, " %{}", v.0);
            }
            if !node.name.is_empty() {
                let _ = write!(out, " # {}", node.name.replace(['\n', '\r'], " "));
            }
            out.push('\n');
        }
        for (name, v) in &self.outputs {
            let _ = writeln!(out, "  output {name} %{}", v.0);
        }
    }
}

fn read_version(line: &str) -> Result<(u32, u32), ParseError> {
    let not_a_graph = || ParseError::NotAGraph(clip(line));
    let version = line.strip_prefix("host-graph ").ok_or_else(not_a_graph)?;
    let (major, minor) = version.split_once('.').ok_or_else(not_a_graph)?;
    let number = |s: &str| s.parse::<u32>().map_err(|_| not_a_graph());
    let (major, minor) = (number(major)?, number(minor)?);
    // A newer minor is read as far as its ops are known: most graphs use only old ones.
    if major == IR_MAJOR { Ok((major, minor)) } else { Err(ParseError::Version { major, minor }) }
}

fn read_output(rest: &str, graph: &Graph) -> Result<(String, Value), String> {
    let (name, value) = rest.split_once(' ').ok_or("an output is `output NAME %N`")?;
    Ok((name.to_owned(), read_value(value, graph)?))
}

fn read_value(word: &str, graph: &Graph) -> Result<Value, String> {
    let index = word.strip_prefix('%').and_then(|n| n.parse::<u32>().ok());
    match index {
        Some(i) if (i as usize) < graph.nodes.len() => Ok(Value(i)),
        Some(i) => Err(format!("%{i} is not computed before this line")),
        None => Err(format!("`{}` is not a value such as %7", clip(word))),
    }
}

/// `%3 float[T,64] = name(attributes) %1 %2 # where`
fn read_node(content: &str, graph: &mut Graph, line: usize, (major, minor): (u32, u32)) -> Result<(), ParseError> {
    let fail = |message: String| ParseError::Line { line, message };
    if graph.nodes.len() >= spec::MAX_NODES {
        return Err(fail(format!("more than {} nodes", spec::MAX_NODES)));
    }
    let (head, body) = content.split_once(" = ").ok_or_else(|| fail("a node is `%N TYPE = OP %A %B`".into()))?;
    let (number, ty) = head.split_once(' ').ok_or_else(|| fail("a node is `%N TYPE = OP %A %B`".into()))?;
    if number[1..].parse() != Ok(graph.nodes.len()) {
        return Err(fail(format!("the next node is %{}, found {}", graph.nodes.len(), clip(number))));
    }
    let ty: Type = ty.parse().map_err(fail)?;
    let split = op_end(body).ok_or_else(|| fail("the attributes have no closing parenthesis".into()))?;
    let (op_text, rest) = body.split_at(split);
    let op: Op = ron::from_str(op_text).map_err(|e| match e.code {
        ron::Error::NoSuchEnumVariant { outer: Some(outer), found, .. } if outer == "Op" => {
            ParseError::UnknownOp { line, op: found, major, minor }
        }
        _ => fail(format!("op `{}`: {}", clip(op_text), e.code)),
    })?;
    let (inputs, name) = rest.split_once(" # ").unwrap_or((rest, ""));
    let inputs =
        inputs.split_whitespace().map(|w| read_value(w, graph)).collect::<Result<Vec<_>, _>>().map_err(fail)?;
    let types: Vec<&Type> = inputs.iter().map(|&v| graph.ty(v)).collect();
    let inferred = spec::infer(&op, &types).map_err(|m| {
        let mut shown = types.iter().take(MAX_SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if types.len() > MAX_SHOWN {
            shown.push_str(", …");
        }
        fail(format!(
            "node {number}{} = {} of ({shown}): {m}",
            if name.is_empty() { String::new() } else { format!(" ({name})") },
            op.name()
        ))
    })?;
    if inferred != ty {
        return Err(fail(format!("{} gives {inferred}, declared is {ty}", op.name())));
    }
    graph.nodes.push(Node { op, inputs, ty, name: name.to_owned() });
    Ok(())
}

/// Where `name` or `name(...)` ends; strings inside may hold parentheses.
fn op_end(body: &str) -> Option<usize> {
    let start = body.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(body.len());
    if !body[start..].starts_with('(') {
        return Some(start);
    }
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for (i, c) in body[start..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => {
                depth -= 1;
                if depth == 0 {
                    return Some(start + i + 1);
                }
            }
            _ => {}
        }
    }
    None
}

fn clip(text: &str) -> String {
    let mut out: String = text.chars().take(60).collect();
    if out.len() < text.len() {
        out.push('…');
    }
    out
}
