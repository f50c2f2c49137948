//! Pages of `docs` with parts that tests write: the part between `<!-- begin NAME -->` and `<!-- end NAME -->` is what a test
//! found, `UPDATE_GOLDEN=1` writes it. For tests only.

use std::path::Path;

/// The part of this page is this text, or is made so.
pub(crate) fn holds(page: &str, part: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page);
    let old = std::fs::read_to_string(&path).expect("the page");
    let (begin, end) = (format!("<!-- begin {part} -->\n"), format!("<!-- end {part} -->"));
    let (head, rest) = old.split_once(&begin).expect("the beginning of the part");
    let (_, tail) = rest.split_once(&end).expect("the end of the part");
    let new = format!("{head}{begin}{text}{end}{tail}");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, new).expect("writes the page");
    } else {
        assert!(
            old == new,
            "{page} is not what the tests found; run them with UPDATE_GOLDEN=1 and read the difference:\n{text}"
        );
    }
}
