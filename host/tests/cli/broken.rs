//! Broken and hostile model folders: each one line that names the file and the cause, and nothing else.

use serde_json::{Value, json};

use crate::models::Folder;
use crate::program::{Output, Place, arg, says};

/// Generates with a folder whose prompts are token ids.
fn generate(place: &Place, folder: &Folder) -> Output {
    place.run(&["generate", folder.arg(), "--skip-tokenizer-init", "--prompt-token-ids", "1,2,3", "--max-tokens", "2"])
}

/// Serves it, with nothing but errors in the log.
fn serve(place: &Place, folder: &Folder) -> Output {
    place.run(&["serve", folder.arg(), "--skip-tokenizer-init", "--port", "0", "--log-level", "error"])
}

type Damage = fn(&Folder);
type Case = (&'static str, Damage, &'static [&'static str]);

/// Applies each damage to a fresh copy; `serve` fails as `generate` does.
fn all_fail(cases: &[Case]) {
    let place = Place::new();
    let mut wrong = Vec::new();
    for (name, damage, words) in cases {
        let folder = Folder::llama(&place.path(&format!("models/{name}")));
        damage(&folder);
        let output = generate(&place, &folder);
        let one_line = output.code == Some(1) && output.stdout.is_empty() && output.stderr.lines().count() == 1;
        // Whatever it is about, it says where: the folder is part of every line.
        if !one_line || !output.stderr.contains(folder.arg()) || !words.iter().all(|word| output.stderr.contains(word))
        {
            wrong.push(format!("{name}, expected {words:?}: {output:?}"));
        }
        output.fails(&[]);
        assert_eq!(serve(&place, &folder).stderr, output.stderr, "{name}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn set(folder: &Folder, tensor: &str, field: &str, value: Value) {
    folder.header(|h| h[tensor][field] = value);
}

const NORM: &str = "model.norm.weight";

#[test]
fn weights() {
    let cases: [Case; 16] = [
        (
            "truncated",
            |f| {
                let bytes = f.read("model.safetensors");
                f.put("model.safetensors", &bytes[..bytes.len() - 100]);
            },
            &["model.safetensors: ", "cut off"],
        ),
        ("empty", |f| f.put("model.safetensors", ""), &["model.safetensors: ", "the file is empty"]),
        ("seven_bytes", |f| f.put("model.safetensors", [7; 7]), &["model.safetensors: ", "7 bytes"]),
        (
            "oversized_header",
            |f| f.put("model.safetensors", [&(1u64 << 60).to_le_bytes()[..], b"{}"].concat()),
            &["model.safetensors: ", "header"],
        ),
        (
            "header_past_the_end",
            |f| f.put("model.safetensors", [&1000u64.to_le_bytes()[..], b"{}"].concat()),
            &["model.safetensors: ", "1000"],
        ),
        (
            "header_not_json",
            |f| f.put("model.safetensors", [&8u64.to_le_bytes()[..], b"not json"].concat()),
            &["model.safetensors: ", "JSON"],
        ),
        (
            "overlap",
            |f| {
                let mut other = Value::Null;
                f.header(|h| other = h["lm_head.weight"]["data_offsets"].clone());
                set(f, "model.embed_tokens.weight", "data_offsets", other);
            },
            &["model.safetensors: ", "overlap"],
        ),
        (
            "offsets_past_the_end",
            |f| set(f, NORM, "data_offsets", json!([u64::MAX - 255, u64::MAX])),
            &["model.safetensors: ", NORM],
        ),
        (
            "integers",
            |f| {
                set(f, NORM, "dtype", json!("I32"));
            },
            &["model.norm.weight", "I32"],
        ),
        // Well-formed files of types that hold numbers, but none that can be computed with.
        ("doubles", |f| f.retype("lm_head.weight", "F64", 8), &["lm_head.weight", "F64"]),
        ("longs", |f| f.retype("lm_head.weight", "I64", 8), &["lm_head.weight", "I64"]),
        ("long_norm", |f| f.retype(NORM, "I64", 8), &[NORM, "I64"]),
        ("double_ids", |f| f.retype("model.embed_tokens.weight", "F64", 8), &["model.embed_tokens.weight", "F64"]),
        ("unknown_type", |f| set(f, NORM, "dtype", json!("F12")), &["model.safetensors: ", NORM, "F12"]),
        (
            "missing",
            |f| {
                f.header(|h| {
                    let tensor = h.remove(NORM).unwrap();
                    h.insert("model.nrom.weight".into(), tensor);
                });
            },
            &["missing", NORM],
        ),
        ("wrong_shape", |f| set(f, NORM, "shape", json!([8, 8])), &[NORM, "[8, 8]", "[64]"]),
    ];
    all_fail(&cases);
}

#[test]
fn configurations() {
    let cases: [Case; 11] = [
        ("missing", |f| f.remove("config.json"), &["config.json"]),
        ("not_json", |f| f.put("config.json", "{\"a\": "), &["config.json", "JSON"]),
        ("not_utf8", |f| f.put("config.json", b"{\"a\": \"\xff\"}"), &["config.json", "not UTF-8"]),
        ("deep", |f| f.put("config.json", "[".repeat(100_000)), &["config.json"]),
        ("not_an_object", |f| f.put("config.json", "[1]"), &["config.json: it must hold a JSON object"]),
        ("no_class", |f| f.config(|c| drop(c.remove("architectures"))), &["config.json", "architectures"]),
        ("no_size", |f| f.config(|c| drop(c.remove("hidden_size"))), &["plugin `llama`", "hidden_size"]),
        ("heads", |f| f.set("num_attention_heads", json!(3)), &["plugin `llama`", "num_attention_heads", "3"]),
        ("text_for_a_number", |f| f.set("hidden_size", json!("64")), &["plugin `llama`", "hidden_size", "\"64\""]),
        ("dtype", |f| f.set("dtype", json!("int4")), &["config.json", "int4", "--dtype"]),
        ("huge", |f| f.set("num_hidden_layers", json!(u64::MAX)), &["plugin `llama`", "num_hidden_layers"]),
    ];
    all_fail(&cases);
}

#[test]
fn an_unknown_architecture_lists_what_was_tried() {
    let place = Place::new();
    let folder = Folder::llama(&place.path("models"));
    folder.set("architectures", json!(["NovelForCausalLM"]));
    let output = generate(&place, &folder);
    assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{output:?}");
    assert!(output.stderr.starts_with("error: no plugin can build the architecture `NovelForCausalLM`"), "{output:?}");
    says(
        &output.stderr,
        &["tried:\n", "llama 0.1.0", "claims LlamaForCausalLM", "searched:\n", arg(&place.path("plugins"))],
    );
    let output = place.run(&["inspect", folder.arg(), "--model-impl", "lama"]);
    assert_eq!(output.code, Some(1));
    says(&output.stderr, &["there is no usable plugin called `lama`", "llama 0.1.0"]);
}

#[test]
fn texts() {
    let place = Place::new();
    let make = |name: &str| Folder::llama(&place.path(&format!("models/{name}")));
    let run = |folder: &Folder, more: &[&str]| {
        place.run(&[&["generate", folder.arg(), "--max-tokens", "2", "--temperature", "0"], more].concat())
    };
    let prompt = ["-p", "a b c"];

    let folder = make("no_tokenizer");
    let output = run(&folder, &prompt);
    assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{output:?}");
    says(&output.stderr, &["WARN", "has no tokenizer.json", "error: ", "no tokenizer", "token ids"]);

    for (broken, words) in [("{", "tokenizer.json"), ("{}", "tokenizer.json"), ("\u{0}", "tokenizer.json")] {
        let folder = make("tokenizer");
        folder.put("tokenizer.json", broken);
        run(&folder, &prompt).fails(&[words]);
    }
    let folder = make("generation");
    folder.add_tokenizer();
    for (broken, words) in [
        ("{", "generation_config.json"),
        ("[]", "generation_config.json"),
        ("{\"temperature\": \"hot\"}", "temperature"),
        ("{\"eos_token_id\": \"</s>\"}", "eos_token_id"),
    ] {
        folder.put("generation_config.json", broken);
        run(&folder, &prompt).fails(&["generation_config.json", words]);
    }

    // A template that cannot be used costs chats, not completions.
    let folder = make("template");
    folder.add_tokenizer();
    folder.put("tokenizer_config.json", json!({"chat_template": "{% for m in messages %}{{ m.content }"}).to_string());
    let output = run(&folder, &prompt);
    assert_eq!(output.code, Some(0), "{output:?}");
    says(&output.stderr, &["WARN", "chat template", "line 1"]);
    let output = run(&folder, &["--chat", "-p", "a"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    says(&output.stderr, &["error: chat template", "line 1"]);
    let server = place.serve(&[folder.arg()]);
    let chat = json!({"messages": [{"role": "user", "content": "a"}]}).to_string();
    server.refused("/v1/chat/completions", chat.as_bytes(), 400, &["chat template", "line 1"]);
    assert!(!server.complete(&json!({"prompt": "a b", "max_tokens": 1})).contains('\u{fffd}'));
    drop(server);
    folder.put("tokenizer_config.json", "{");
    run(&folder, &prompt).fails(&["tokenizer_config.json"]);
    folder.remove("tokenizer_config.json");
    // A template that raises says so.
    folder.put("chat_template.jinja", "{{ raise_exception('roles must alternate') }}");
    run(&folder, &["--chat", "-p", "a"]).fails(&["roles must alternate"]);
}

#[test]
fn folders_that_are_none() {
    let place = Place::new();
    let empty = place.path("empty");
    std::fs::create_dir(&empty).unwrap();
    place.put("file", "text");
    for (model, words) in [
        (arg(&empty), &["has no config.json", "give a folder with config.json and *.safetensors"][..]),
        ("./nowhere", &["\"./nowhere\"", "no such folder"]),
        ("/nowhere/at/all", &["\"/nowhere/at/all\"", "no such folder"]),
        (arg(&place.path("file")), &["file", "neither a folder nor a GGUF file"]),
        ("org/name", &["\"org/name\"", "HF_HUB_OFFLINE"]),
        ("", &["model"]),
        ("/etc/passwd", &["it is a file, neither a folder nor a GGUF file"]),
    ] {
        place.run(&["generate", model, "-p", "a"]).fails(words);
    }
    let folder = Folder::llama(&place.path("models"));
    folder.remove("model.safetensors");
    generate(&place, &folder).fails(&[folder.arg(), "safetensors"]);
    folder.put("model.safetensors.index.json", json!({"weight_map": {"a": "../../x.safetensors"}}).to_string());
    generate(&place, &folder).fails(&["model.safetensors.index.json"]);
    folder.put("model.safetensors.index.json", json!({"weight_map": {"a": "gone.safetensors"}}).to_string());
    generate(&place, &folder).fails(&["gone.safetensors"]);
}
