//! Runs graphs of zoo entries on the executors and holds them to torch's outputs; for people who work on plugins and passes.
//!
//!     cargo run -p host-tests --example zoo -- --graphs DIR [NAME...]
//!
//! `DIR/NAME.txt` is the graph of the entry `NAME` in the text form. One line an entry: what the reference executor makes
//! of the graph as it is and after the passes, and the CPU executor of the latter.

use std::path::PathBuf;

use host::hub::Weights;
use host_tests::executors::{Verdict, on_cpu, on_reference};
use host_tests::zoo::{self, Entry};
use plugin_api::{Model, spec};

fn main() {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    assert!(names.len() >= 2 && names[0] == "--graphs", "usage: zoo --graphs DIR [NAME...]");
    let graphs = PathBuf::from(names.remove(1));
    names.remove(0);
    if names.is_empty() {
        names = zoo::entries().into_iter().map(|e| e.name).collect();
    }
    let (mut right, mut fast) = (0, 0);
    for name in &names {
        let path = graphs.join(format!("{name}.txt"));
        let line = match std::fs::read(&path) {
            Err(e) => format!("no graph: {e}"),
            Ok(text) => match judge(&zoo::entry(name).unwrap_or_else(|| panic!("no entry {name}")), &text) {
                Err(e) => format!("bad graph: {e}"),
                Ok([plain, optimised, cpu]) => {
                    right += usize::from(plain == Verdict::Right && optimised == Verdict::Right);
                    fast += usize::from(cpu == Verdict::Right);
                    format!("reference {} | optimised {} | cpu {}", show(&plain), show(&optimised), show(&cpu))
                }
            },
        };
        println!("{name:28} {line}");
    }
    println!("{} entries: {right} right on the reference executor, {fast} on the CPU executor", names.len());
}

fn judge(entry: &Entry, text: &[u8]) -> Result<[Verdict; 3], String> {
    let model = Model::parse_bytes(text).map_err(|e| e.to_string())?;
    spec::verify(&model).map_err(|e| e.to_string())?;
    let golden = entry.golden().map_err(|e| e.to_string())?;
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let folder = entry.materialize(dir.path()).map_err(|e| e.to_string())?;
    let weights = Weights::open(&folder).map_err(|e| e.to_string())?;
    let plain = &model.graphs["decode"];
    let optimised = host::graph::optimise(plain).map_err(|e| format!("passes: {e}"))?;
    Ok([
        on_reference(plain, &model, &weights, &golden),
        on_reference(&optimised, &model, &weights, &golden),
        on_cpu(&optimised, &weights, &golden),
    ])
}

fn show(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Right => "right".to_owned(),
        Verdict::Refused(why) => format!("REFUSED ({why})"),
        Verdict::Wrong(how) => format!("WRONG ({how})"),
    }
}
