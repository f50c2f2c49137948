//! Examples of the documentation, taken from its pages and run.

use std::fs;
use std::path::Path;

use host::llm::{Llm, LlmOptions, ModelSource, SamplingParams};
use host_tests::library;

/// The text of the code blocks of a page, each with the word behind its fence.
fn code_blocks(page: &str) -> Vec<(&str, String)> {
    let mut blocks: Vec<(&str, String)> = vec![];
    let mut inside = false;
    for line in page.lines() {
        match line.strip_prefix("```") {
            Some(language) if !inside => blocks.push((language, String::new())),
            Some(_) => {}
            None if inside => {
                let (_, text) = blocks.last_mut().expect("a block is open");
                text.push_str(line);
                text.push('\n');
            }
            None => continue,
        }
        inside ^= line.starts_with("```");
    }
    blocks
}

/// A safetensors file of f32 tensors with small numbers that differ.
fn checkpoint(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let (mut header, mut body) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let begin = body.len();
        for i in 0..shape.iter().product::<usize>() {
            let x = ((i * 37 + begin) % 101) as f32 / 101.0 - 0.5;
            body.extend(x.to_le_bytes());
        }
        header.insert(
            name.clone(),
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, body.len()]}),
        );
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &body].concat()
}

#[test]
fn the_example_for_model_authors_runs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/transformers.md");
    let page = fs::read_to_string(&path).expect("reads the page");
    let dir = tempfile::tempdir().expect("a folder");
    for (language, text) in code_blocks(&page) {
        let name = match language {
            "json" => "config.json",
            _ => text.lines().next().and_then(|l| l.strip_prefix("# ")).expect("begins with the file's name"),
        };
        fs::write(dir.path().join(name), &text).expect("writes a file of the example");
    }
    let mut tensors = vec![
        ("tokens.weight".to_owned(), vec![64, 32]),
        ("positions.weight".to_owned(), vec![128, 32]),
        ("head.weight".to_owned(), vec![64, 32]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("norm.weight", vec![32]),
            ("norm.bias", vec![32]),
            ("attention.qkv.weight", vec![96, 32]),
            ("attention.out.weight", vec![32, 32]),
            ("up.weight", vec![128, 32]),
            ("up.bias", vec![128]),
            ("down.weight", vec![32, 128]),
            ("down.bias", vec![32]),
        ] {
            tensors.push((format!("layers.{layer}.{name}"), shape));
        }
    }
    fs::write(dir.path().join("model.safetensors"), checkpoint(&tensors)).expect("writes the weights");
    let worker = env!("CARGO_BIN_EXE_plugin-worker");
    let model = ModelSource::Named(dir.path().to_str().expect("a path in UTF-8").to_owned());
    let options = LlmOptions {
        registry: library::registry_with_transformers(worker),
        trust_remote_code: true,
        ..library::options(model, worker)
    };
    let llm = Llm::load(&options).expect("loads");
    assert_eq!((llm.info().model_impl.as_str(), llm.info().executor.as_str()), ("transformers", "cpu"));
    let params = SamplingParams { max_tokens: Some(5), temperature: 0.0, ..SamplingParams::default() };
    let prompt: &[u32] = &[1, 2, 3];
    let answers = llm.generate([prompt], params).expect("answers");
    assert_eq!(answers[0].choices[0].token_ids.len(), 5);
}
