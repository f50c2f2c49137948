//! The YAML that `vllm serve --config` takes, which is little of YAML: keys with words, numbers, switches or lists, one
//! level deep. The rest of the language is refused with the line. A library would bring all of it, and its own idea of
//! what `no` and `1e3` are; here a value stays as it is written, for the flag to read.

use toml::{Table, Value};

/// The keys of the text; an error names the line.
pub(super) fn parse(text: &str) -> Result<Table, String> {
    let mut table = Table::new();
    // The key whose list may follow.
    let mut open: Option<String> = None;
    for (number, line) in text.lines().enumerate() {
        let wrong = |what: &str| format!("line {}: {what}; expected `key: value`, or a list", number + 1);
        let content = strip_comment(line);
        let trimmed = content.trim();
        if trimmed.is_empty() || trimmed == "---" {
            continue;
        }
        if let Some(item) = trimmed.strip_prefix("- ") {
            let key = open.as_ref().ok_or_else(|| wrong("a list belongs to no key"))?;
            let item = Value::String(scalar(item).ok_or_else(|| wrong("this is no single value"))?);
            match table.entry(key.clone()).or_insert_with(|| Value::Array(Vec::new())) {
                Value::Array(items) => items.push(item),
                _ => return Err(wrong("the key has a value already")),
            }
            continue;
        }
        if content.starts_with([' ', '\t']) {
            return Err(wrong("settings are not nested"));
        }
        let (key, value) = trimmed.split_once(':').ok_or_else(|| wrong("there is no `:`"))?;
        let key = scalar(key).ok_or_else(|| wrong("this is no key"))?;
        if !(value.is_empty() || value.starts_with([' ', '\t'])) {
            return Err(wrong("there is no space after `:`"));
        }
        if table.contains_key(&key) || open.as_ref() == Some(&key) {
            return Err(wrong(&format!("`{key}` is there twice")));
        }
        let value = value.trim();
        open = value.is_empty().then(|| key.clone());
        if let Some(list) = value.strip_prefix('[') {
            let list = list.strip_suffix(']').ok_or_else(|| wrong("the list has no end on this line"))?;
            let items = list.split(',').filter(|item| !item.trim().is_empty());
            let items: Option<Vec<Value>> = items.map(|item| scalar(item).map(Value::String)).collect();
            table.insert(key, Value::Array(items.ok_or_else(|| wrong("this is no list of values"))?));
        } else if !value.is_empty() {
            let value = scalar(value).ok_or_else(|| wrong("this is no single value; put JSON into single quotes"))?;
            table.insert(key, Value::String(value));
        }
    }
    match open.filter(|key| !table.contains_key(key)) {
        Some(key) => Err(format!("`{key}` has no value; leave the line out")),
        None => Ok(table),
    }
}

/// The line without its comment: ` #` outside of quotes begins one.
fn strip_comment(line: &str) -> &str {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == '#' && before.is_whitespace() => return &line[..at],
            None => {}
        }
        before = c;
    }
    line
}

/// A plain or quoted word; None for what YAML means something else by.
fn scalar(text: &str) -> Option<String> {
    let text = text.trim();
    if let Some(inner) = text.strip_prefix('\'') {
        return Some(inner.strip_suffix('\'')?.replace("''", "'"));
    }
    if text.starts_with('"') {
        // Escapes are those of JSON, near enough.
        return serde_json::from_str(text).ok();
    }
    let special = text.starts_with(['{', '[', '&', '*', '!', '|', '>', '%', '@', '`', '?', '#']);
    (!text.is_empty() && !special && text != "-" && text != "~" && text != "null").then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vllm_shows_in_its_documentation() {
        let text = "# served\nmodel: org/model # here\nport: 8000\nuvicorn-log-level: \"info\"\nserved-model-name:\n  - a\n  - 'b c'\n\
                    api-key: [one, \"two\"]\nenable-prefix-caching: true\noverride-generation-config: '{\"top_k\": 5}'\n";
        let table = parse(text).expect("parses");
        let expected = "model = 'org/model'\nport = '8000'\nuvicorn-log-level = 'info'\nserved-model-name = ['a', 'b c']\n\
                        api-key = ['one', 'two']\nenable-prefix-caching = 'true'\noverride-generation-config = '{\"top_k\": 5}'\n";
        assert_eq!(table, expected.parse::<Table>().expect("TOML"));
        assert_eq!(parse("# nothing\n---\n\n"), Ok(Table::new()));
    }

    #[test]
    fn what_is_more_is_refused_with_its_line() {
        for (text, expected) in [
            ("a: 1\nb:\n  c: 2", "line 3: settings are not nested"),
            ("a: {b: 1}", "line 1: this is no single value"),
            ("a: [1", "line 1: the list has no end"),
            ("a: 1\na: 2", "line 2: `a` is there twice"),
            ("- a", "line 1: a list belongs to no key"),
            ("a: |\n  text", "line 1: this is no single value"),
            ("just words", "line 1: there is no `:`"),
            ("a:1", "line 1: there is no space"),
            ("a:", "`a` has no value"),
            ("a: null", "line 1"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
