//! Golden tests of the passes, on graphs small enough to read: `passes.txt` has, for each case, the passes to run, the
//! graph and what becomes of it. `UPDATE_GOLDEN=1` writes the file anew; read the difference before it is kept.

use std::path::Path;

use host::graph::PASSES;
use plugin_api::{Graph, Model, spec};

fn parse(text: &str) -> Graph {
    let model = format!("host-graph 1.0\narchitecture \"Test\"\ncontext_length 8\ngraph g\n{text}\nend\n");
    let mut model = Model::parse(&model).unwrap_or_else(|e| panic!("{e} in\n{text}"));
    model.graphs.remove("g").unwrap()
}

fn run(passes: &str, graph: &str) -> String {
    let mut graph = parse(graph);
    spec::verify_graph("input", &graph).unwrap();
    for name in passes.split_whitespace() {
        let pass = PASSES.iter().find(|p| p.name == name).unwrap_or_else(|| panic!("no pass {name}"));
        graph = pass.run(&graph).unwrap();
        spec::verify_graph(name, &graph).unwrap();
    }
    graph.to_text()
}

#[test]
fn passes_rewrite_what_they_say_and_nothing_else() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exec/passes.txt");
    let golden = std::fs::read_to_string(&path).unwrap();
    let mut cases = golden.split("=== ");
    let mut out = cases.next().unwrap().to_owned();
    let mut tested = std::collections::HashSet::new();
    for case in cases {
        let (title, body) = case.split_once('\n').unwrap();
        let (passes, _) = title.split_once(": ").unwrap_or_else(|| panic!("`{title}` is not `PASSES: WHAT`"));
        tested.extend(passes.split_whitespace());
        let (input, _) = body.split_once("--->\n").unwrap_or((body, ""));
        out += &format!("=== {title}\n{}\n--->\n{}\n", input.trim_end(), run(passes, input));
    }
    for pass in PASSES {
        assert!(tested.contains(pass.name), "{} has no case", pass.name);
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &out).unwrap();
        return;
    }
    let difference = out.lines().zip(golden.lines()).enumerate().find(|(_, (a, b))| a != b);
    if let Some((i, (new, old))) = difference {
        panic!("passes.txt, line {}: is\n{old}\nbut the pass gives\n{new}", i + 1);
    }
    assert_eq!(out.len(), golden.len(), "passes.txt is longer or shorter than what the passes give");
}
