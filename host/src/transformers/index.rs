//! Finds a file in a package index, in either form that indexes speak: JSON (PEP 691) or a page of links (PEP 503).

use reqwest::Url;
use serde::Deserialize;

/// What an index is asked for.
pub(super) const ACCEPT: &str = "application/vnd.pypi.simple.v1+json, text/html;q=0.1";

#[derive(Deserialize)]
struct Page {
    files: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    filename: String,
    url: String,
}

/// The address of `file` in the answer of an index, which came from `base`.
pub(super) fn find(answer: &str, base: &Url, file: &str) -> Result<Url, String> {
    let address = match serde_json::from_str::<Page>(answer) {
        Ok(page) => page.files.into_iter().find(|entry| entry.filename == file).map(|entry| entry.url),
        Err(_) if answer.trim_start().starts_with('{') => return Err("its answer cannot be read".to_owned()),
        Err(_) => link(answer, file),
    };
    let address = address.ok_or_else(|| format!("it does not have {file}"))?;
    let url = base.join(&address).map_err(|e| format!("`{address}` is not an address: {e}"))?;
    match url.scheme() {
        "https" | "http" => Ok(url),
        other => Err(format!("its address begins with {other}:")),
    }
}

/// The target of the link to `file`, without the part behind `#`.
fn link(page: &str, file: &str) -> Option<String> {
    page.split("href=").skip(1).find_map(|rest| {
        let quote = rest.chars().next().filter(|c| ['"', '\''].contains(c))?;
        let (target, _) = rest[1..].split_once(quote)?;
        let target = target.split('#').next()?.replace("&amp;", "&");
        let name = target.split('?').next()?.rsplit('/').next()?;
        (name == file).then_some(target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_an_index_are_read() {
        let base = Url::parse("http://index.test/simple/transformers/").unwrap();
        let at = |answer: &str| find(answer, &base, "t-1.whl").map(String::from);
        let json = r#"{"files": [{"filename": "t-2.whl", "url": "x"}, {"filename": "t-1.whl", "url": "../../f/t-1.whl"}], "meta": {}}"#;
        assert_eq!(at(json).unwrap(), "http://index.test/f/t-1.whl");
        let html = "<a href=\"https://files.test/t-1.whl.metadata\">x</a> <a data-x='' href='https://files.test/a/t-1.whl?a=1&amp;b=2#sha256=00'>t-1.whl</a>";
        assert_eq!(at(html).unwrap(), "https://files.test/a/t-1.whl?a=1&b=2");
        assert!(at("<a href=\"t-2.whl\">t-2.whl</a>").unwrap_err().contains("does not have t-1.whl"));
        assert!(at("{\"files\": 7}").unwrap_err().contains("cannot be read"));
        assert!(at("<a href=\"file:///t-1.whl\">").unwrap_err().contains("begins with file:"));
    }
}
