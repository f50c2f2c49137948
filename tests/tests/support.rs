//! Every model of the zoo through the plugin `transformers`, and the page that says what came of it: `docs/support.md`.

use std::path::Path;

use host_tests::support;

#[test]
fn every_model_of_the_zoo_is_right_or_refused_and_the_page_says_which() {
    let rows = support::run(env!("CARGO_BIN_EXE_plugin-worker"));
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
