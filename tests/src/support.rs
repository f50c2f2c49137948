//! The support table of the plugin `transformers`: what becomes of every zoo entry, as a page for users.
//!
//! The table is what a run of all entries comes to, never written by hand. An entry that gives other numbers than torch's
//! is no row of it: it is a failure.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::ways;
use crate::zoo::{self, Entry};

/// What became of one entry.
#[derive(Debug)]
pub struct Row {
    /// The entry's name.
    pub name: String,
    /// Its class in transformers.
    pub class: String,
    /// `dense`, `sliding`, `moe`, ...
    pub category: String,
    /// The executor that ran it, as torch and in every way alike; or the error with which it does not load.
    pub outcome: Result<String, String>,
}

/// Categories of which every entry has to be right; of the others, four in five.
const ALL_OF: [&str; 7] = ["dense", "sliding", "moe", "moe-sliding", "mla", "mla-moe", "multimodal-wrapper"];

/// Runs these entries on two threads. Panics, after all have run, with every entry that came out wrong.
pub fn run(entries: &[Entry], worker: &str) -> Vec<Row> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new((Vec::new(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let row = catch_unwind(AssertUnwindSafe(|| row(entry, worker)));
                    let mut done = done.lock().expect("no thread panics while it holds the lock");
                    match row {
                        Ok(row) => {
                            println!("{}", line(&row));
                            done.0.push(row);
                        }
                        Err(_) => done.1.push(entry.name.clone()),
                    }
                }
            });
        }
    });
    let (mut rows, mut wrong) = done.into_inner().expect("no thread panicked while it held the lock");
    wrong.sort();
    assert!(wrong.is_empty(), "{} entries came out wrong (see above): {}", wrong.len(), wrong.join(", "));
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

fn row(entry: &Entry, worker: &str) -> Row {
    let golden = entry.golden().expect("has goldens");
    let outcome = ways::check_traced(&entry.name, worker).map_err(|e| without_paths(&e));
    Row { name: entry.name.clone(), class: golden.class, category: golden.category, outcome }
}

/// A message without the folders that differ from run to run.
pub(crate) fn without_paths(message: &str) -> String {
    let words = message.split(' ').filter(|w| !w.starts_with('/') && !w.starts_with("`/"));
    words.collect::<Vec<_>>().join(" ")
}

/// Whether enough of them run: all of the common kinds, four in five of the rest.
pub fn check_counts(rows: &[Row]) {
    let (common, rare): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|r| ALL_OF.contains(&r.category.as_str()));
    let missing: Vec<&str> = common.iter().filter(|r| r.outcome.is_err()).map(|r| r.name.as_str()).collect();
    assert!(missing.is_empty(), "{} of {} common entries do not run: {missing:?}", missing.len(), common.len());
    let right = rare.iter().filter(|r| r.outcome.is_ok()).count();
    assert!(5 * right >= 4 * rare.len(), "only {right} of {} hybrid, SSM and odd entries run", rare.len());
}

/// Where the page is.
const PAGE: &str = "docs/support.md";

/// Holds the page of the repository to these rows: the whole of it, if they are of the whole zoo. `UPDATE_GOLDEN=1` writes it
/// anew then.
pub fn check_page(rows: &[Row], whole_zoo: bool) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(PAGE);
    if whole_zoo && std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, page(rows)).unwrap_or_else(|e| panic!("{PAGE}: {e}"));
    }
    let is = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{PAGE}: {e}"));
    for row in rows {
        let line = line(row);
        assert!(is.lines().any(|l| l == line), "{PAGE} has no line `{line}`; make it anew, see tests/tests/support.rs");
    }
    assert!(!whole_zoo || is == page(rows), "{PAGE} differs; make it anew, see tests/tests/support.rs");
}

/// The page, in Markdown.
fn page(rows: &[Row]) -> String {
    let count = |executor: &str| rows.iter().filter(|r| r.outcome.as_deref() == Ok(executor)).count();
    let (cpu, reference) = (count("cpu"), count("reference"));
    let (all, refused) = (rows.len(), rows.len() - cpu - reference);
    let version = zoo::transformers::VERSION;
    let mut out = format!(
        "# Architectures that the plugin `transformers` runs

<!-- Made by the run of the whole zoo, see tests/tests/support.rs. Not written by hand. -->

From a run of the models of `tests/data/zoo` with transformers {version}: tiny checkpoints, one or more for each class. Each is
loaded by way of the plugin and generates greedily from three prompts, alone, together, in chunks of 3 tokens, from the prefix
cache and after preemption. Tokens and logits are compared with torch's (all 16 tokens equal, logits within a thousandth of their
spread), and the ways with each other, bit for bit. A class that is not in the table is tried in the same way when a model asks for
it, and runs or ends in an error that says why.

Of {all} models {cpu} run on the fast kernels, {reference} on the slow reference executor, since something in them mixes tokens
outside of attention, convolutions and linear attention, and {refused} are refused. None gives other numbers than torch.

| model | class | kind | runs |
|---|---|---|---|
"
    );
    for row in rows {
        let _ = writeln!(out, "{}", line(row));
    }
    out
}

fn line(row: &Row) -> String {
    let outcome = match &row.outcome {
        Ok(executor) if executor == "cpu" => "yes".to_owned(),
        Ok(executor) => format!("slowly ({executor})"),
        Err(why) => format!("no: {}", why.replace('|', "\\|")),
    };
    format!("| {} | {} | {} | {outcome} |", row.name, row.class, row.category)
}
