//! What becomes of zoo entries on the emulated CUDA device, as a page for users: docs/cuda-support.md.
//!
//! A row is what a run of its entry came to, never written by hand. The device is slow, so rows are made entry by entry:
//! with `UPDATE_GOLDEN=1` a run writes those of the entries that it was given, and leaves the others as they are.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::support::without_paths;
use crate::ways::try_emulated;
use crate::zoo;

const PAGE: &str = "docs/cuda-support.md";

/// How to make a row anew, for messages.
const ANEW: &str =
    "make it anew: UPDATE_GOLDEN=1 HOST_TEST_ZOO=NAME cargo test -p host-tests --test zoo_emulated named";

/// Runs these entries and holds the page to what comes of them. Panics, after all have run, with what came out wrong.
pub fn check(names: &[String], worker: &str) {
    let mut wrong = vec![];
    for name in names {
        match catch_unwind(AssertUnwindSafe(|| row(name, worker))) {
            Ok(row) => {
                println!("{row}");
                if std::env::var_os("UPDATE_GOLDEN").is_some() {
                    let mut all = rows();
                    all.insert(name.clone(), row.clone());
                    std::fs::write(path(), page(&all)).unwrap_or_else(|e| panic!("{PAGE}: {e}"));
                }
                if rows().get(name) != Some(&row) {
                    wrong.push(format!("{PAGE} has no line `{row}`; {ANEW}"));
                }
            }
            Err(_) => wrong.push(format!("{name} came out wrong (see above)")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The page is as it would be written, and every row is of an entry of the zoo.
pub fn check_page() {
    let (all, known) = (rows(), names());
    for name in all.keys() {
        assert!(known.contains(name), "{PAGE} has a row for {name}, which the zoo does not have");
    }
    let is = std::fs::read_to_string(path()).unwrap_or_else(|e| panic!("{PAGE}: {e}"));
    assert!(is == page(&all), "{PAGE} was edited by hand; {ANEW}");
}

/// The names of all entries, in order.
pub fn names() -> Vec<String> {
    let mut all: Vec<String> = zoo::entries().into_iter().map(|entry| entry.name).collect();
    all.sort();
    all
}

fn row(name: &str, worker: &str) -> String {
    let golden = zoo::entry(name).expect("is in the zoo").golden().expect("has goldens");
    let outcome = match try_emulated(name, worker) {
        Ok(()) => "yes".to_owned(),
        Err(why) => {
            // That no plan can be made is the model's; a kernel must not be missing.
            assert!(!why.contains("CUDA executor"), "{name}: {why}");
            // Nor is it the model's that this machine was busy.
            assert!(!why.contains("did not finish building"), "{name}: {why}");
            format!("no: {}", without_paths(&why).replace('|', "\\|"))
        }
    };
    format!("| {name} | {} | {} | {outcome} |", golden.class, golden.category)
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(PAGE)
}

/// The page's rows by name; none if there is no page.
fn rows() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(path()).unwrap_or_default();
    let table = text.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    table.filter_map(|line| Some((line.split(" | ").next()?.strip_prefix("| ")?.to_owned(), line.to_owned()))).collect()
}

fn page(rows: &BTreeMap<String, String>) -> String {
    let right = rows.values().filter(|row| row.ends_with("| yes |")).count();
    let mut out = format!(
        "# Architectures that run on the CUDA executor

<!-- Made by runs of the zoo, see tests/src/emulated.rs. Not written by hand. -->

From runs of the models of `tests/data/zoo` with transformers {} on the *emulated* CUDA device: the plan, the kernels and the
executor of `--device cuda`, on the CPU. Nothing here has run on hardware ([cuda.md](cuda.md)). Each model is loaded by way of the
plugin `transformers` and generates greedily from three prompts; all 16 tokens are torch's, and the first logits within a
thousandth of their spread.

Tried are {} of {} models; {right} of them run there. The others have no plan, which the CPU's fast kernels would need as well: they run on the slow
reference executor, on the CPU, or nowhere ([support.md](support.md)).

| model | class | kind | runs |
|---|---|---|---|
",
        zoo::transformers::VERSION,
        rows.len(),
        names().len(),
    );
    rows.values().for_each(|row| {
        let _ = writeln!(out, "{row}");
    });
    out
}
