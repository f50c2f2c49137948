//! Every model of the zoo through the plugin `transformers`, and the page that says what came of it: `docs/support.md`.
//!
//! `HOST_TEST_ZOO=llama,gemma2 cargo test -p host-tests --test support -- --nocapture` runs these only and prints their rows.

use std::path::Path;

use host_tests::support;
use host_tests::zoo;

#[test]
fn every_model_of_the_zoo_is_right_or_refused_and_the_page_says_which() {
    let worker = env!("CARGO_BIN_EXE_plugin-worker");
    if let Ok(names) = std::env::var("HOST_TEST_ZOO") {
        let named: Vec<_> = names.split(',').map(|name| zoo::entry(name).expect("is in the zoo")).collect();
        support::run(&named, worker).iter().for_each(|row| println!("{row:?}"));
        return;
    }
    let rows = support::run(&zoo::entries(), worker);
    support::check_counts(&rows);
    let page = support::page(&rows);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/support.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &page).expect("writes the page");
    }
    let kept = std::fs::read_to_string(&path).expect("reads the page");
    let differs = kept.lines().zip(page.lines()).find(|(a, b)| a != b);
    assert!(kept == page, "docs/support.md is not what the run came to, first in (page, run): {differs:?}");
}
