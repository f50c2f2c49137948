//! `host generate` and `host inspect` on good models.

use serde_json::{Value, json};

use crate::models::Folder;
use crate::program::{Place, finish, says};

const GREEDY: [&str; 4] = ["--max-tokens", "7", "--temperature", "0"];

#[test]
fn generate_prints_what_was_asked_for() {
    let place = Place::new();
    let run = |args: &[&str]| place.run(&[&["generate"], args, &GREEDY].concat());
    let one = run(&["-p", "San Francisco is a"]).good().to_owned();
    assert!(one.starts_with(" city ") && one.ends_with('\n'), "{one:?}");
    let two = run(&["-p", "San Francisco is a", "-p", "The sky is"]);
    let lines: Vec<&str> = two.good().lines().collect();
    assert_eq!(lines.len(), 2, "{two:?}");
    assert_eq!(lines[0], format!("San Francisco is a{}", one.trim_end_matches('\n')));
    assert!(lines[1].starts_with("The sky is "), "{two:?}");

    let input = b"San Francisco is a\n\nThe sky is\n";
    let piped = finish(&mut place.host(&[&["generate", "--prompt-file", "-"][..], &GREEDY].concat()), input);
    assert_eq!(piped.good(), two.good());
    let file = place.put("prompts.txt", input);
    assert_eq!(run(&["--prompt-file", file.to_str().unwrap()]).good(), two.good());

    let json: Vec<Value> = run(&["--json", "-n", "2", "-p", "San Francisco is a", "--prompt-token-ids", "1,5,6"])
        .good()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(json.len(), 4, "{json:?}");
    assert_eq!(json[0]["text"], one.trim_end_matches('\n'));
    assert_eq!((&json[1]["index"], &json[1]["text"]), (&json!(1), &json[0]["text"]));
    assert_eq!((&json[2]["prompt"], &json[2]["prompt_token_ids"]), (&Value::Null, &json!([1, 5, 6])));
    assert_eq!(json[3]["token_ids"].as_array().map(Vec::len), Some(7));

    // An answer that ends at once is an empty line.
    let end = run(&["--prompt-token-ids", "1,2"]);
    assert_eq!(end.good(), "\n");

    let chat = place.run(&["generate", "--chat", "--system", "Be brief.", "-p", "What is AI?", "--temperature", "0"]);
    assert!(chat.good().contains("artificial intelligence"), "{chat:?}");
}

#[test]
fn generate_refuses_what_makes_no_sense() {
    let place = Place::new();
    let fails = |args: &[&str], words: &[&str]| place.run(&[&["generate"], args].concat()).fails(words);
    fails(&[], &["there is no prompt", "-p", "--prompt-file", "--prompt-token-ids"]);
    fails(&["--prompt-file", "gone.txt"], &["--prompt-file gone.txt", "No such file"]);
    fails(&["--prompt-token-ids", "2048"], &["2048", "out of range"]);
    fails(&["-p", &"x ".repeat(3000)], &["tokens", "1024"]);
    fails(&["-p", "a", "--max-tokens", "0"], &["max_tokens", "at least 1"]);
    fails(&["-p", "a", "--max-tokens", "2000"], &["2000", "1024"]);
    fails(&["-p", "a", "--temperature", "nan"], &["temperature", "NaN"]);
    fails(&["-p", "a", "-n", "0"], &["n: "]);
    let both = place.run(&["generate", "--chat", "--prompt-token-ids", "1,2"]);
    assert_eq!(both.code, Some(2));
    says(&both.stderr, &["--chat", "--prompt-token-ids", "cannot be used with"]);
    let invalid = finish(&mut place.host(&["generate", "--prompt-file", "-"]), b"\xff\xfe");
    invalid.fails(&["standard input", "UTF-8"]);
    let nothing = finish(&mut place.host(&["generate", "--prompt-file", "-"]), b"\n\n");
    nothing.fails(&["there is no prompt"]);
}

/// The zoo's llama, offline: the ids that torch generates.
#[test]
fn generate_from_token_ids_prints_ids() {
    let place = Place::new();
    let folder = Folder::llama(&place.path("models"));
    let golden = host_zoo::entry("llama").unwrap().golden().unwrap();
    let join = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let prompts: Vec<String> = golden.prompts.iter().map(|p| join(&p.prompt_ids)).collect();
    let mut args = vec!["generate", folder.arg(), "--skip-tokenizer-init", "--ignore-eos", "--temperature", "0"];
    for prompt in &prompts {
        args.extend(["--prompt-token-ids", prompt]);
    }
    let expected: Vec<String> = golden.prompts.iter().map(|p| join(&p.greedy_ids)).collect();
    assert_eq!(place.run(&args).good().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn inspect_shows_plugin_graph_and_plan() {
    let place = Place::new();
    let folder = Folder::llama(&place.path("models"));
    for model in [&[][..], &[folder.arg(), "--skip-tokenizer-init"]] {
        let run = |flags: &[&str]| place.run(&[&["inspect"], model, flags].concat()).good().to_owned();
        let summary = run(&[]);
        says(&summary, &["LlamaForCausalLM", "llama 0.1.0 (native)", "KV cache", "0 by the reference executor"]);
        let all = run(&["--graph", "--optimised", "--plan"]);
        assert!(all.starts_with(&summary));
        says(&all, &["host-graph 1.", "model.embed_tokens.weight", "# after ", "attention"]);
        assert!(run(&["--graph"]).len() > summary.len() && run(&["--plan"]).len() > summary.len());
        assert!(!run(&["--optimised"]).contains("host-graph 1."));
    }
}

#[test]
fn quantization_is_shown_and_what_it_cannot_be_is_named() {
    let place = Place::new();
    let summary = |flags: &[&str]| place.run(&[&["inspect"], flags].concat()).good().to_owned();
    // Five layers of seven matrices, and the head.
    says(&summary(&["--quantization", "int8"]), &["quantised", "36 matrices of linear layers", "instead of"]);
    assert!(!summary(&[]).contains("quantised"));
    let refused = place.run(&["inspect", "--quantization", "int3"]);
    assert_eq!(refused.code, Some(2));
    says(&refused.stderr, &["'int3' for '--quantization", "int8 or int4"]);
    let reference = ["generate", "--quantization", "int8", "--executor", "reference", "-p", "a"];
    place.run(&reference).fails(&["--quantization is int8", "reference executor"]);
}

#[test]
fn the_type_of_the_cache_is_shown_and_what_it_cannot_be_is_named() {
    let place = Place::new();
    let line = |dtype| {
        let all = place.run(&["inspect", "--kv-cache-dtype", dtype]).good().to_owned();
        let line = all.lines().find(|line| line.starts_with("KV cache")).unwrap().to_owned();
        (all, line)
    };
    let (all, int8) = line("int8");
    says(&all, &["KV cache int8"]);
    assert_ne!(int8, line("bfloat16").1);
    let refused = place.run(&["inspect", "--kv-cache-dtype", "fp8"]);
    assert_eq!(refused.code, Some(2));
    says(&refused.stderr, &["'fp8' for '--kv-cache-dtype", "float32", "bfloat16 or int8"]);
    let reference = ["generate", "--kv-cache-dtype", "int8", "--executor", "reference", "-p", "a"];
    place.run(&reference).fails(&["--kv-cache-dtype is int8", "reference executor", "leave --kv-cache-dtype out"]);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let place = Place::new();
    for args in [&["inspect", "--plan"][..], &["completions", "bash"], &["man"], &["plugins", "list"]] {
        let mut command = place.host(args);
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
        let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.as_str()), (Some(0), ""), "{args:?}");
    }
}
