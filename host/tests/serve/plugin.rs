//! Plugins in the folder of a real server: bad ones do it no harm, new ones are used without rebuilding it.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::build;
use crate::models::Folder;
use crate::program::{Place, arg};

/// A model for the fixtures, with an order for `bad`.
fn model(place: &Place, architecture: &str, order: &str) -> Folder {
    let config = json!({"architectures": [architecture], "order": order});
    Folder::made(place.path(&format!("models/{order}")), &config, &[("embedding.weight", &[32, 8])])
}

#[test]
fn bad_plugins_beside_a_good_one_cost_a_line_each() {
    let place = Place::new();
    let files: [(&str, Vec<u8>, &str); 8] = [
        ("a_crash", build::bad("describe:segfault"), "crashed with SIGSEGV"),
        ("b_panic", build::bad("describe:panic"), "panicked while describing itself"),
        ("c_hang", build::bad("describe:hang"), "did not finish describing itself within 3.0 s"),
        ("d_memory", build::bad("describe:allocate"), "ran out of memory while describing itself"),
        ("e_future", build::bad("ir:2.0"), "speaks graph IR 2.0"),
        ("f_rubbish", build::raw("rubbish"), "answered rubbish while describing itself"),
        ("g_layout", build::other_layout("host_plugin_layout_served"), "was built against another plugin ABI"),
        ("h_text", b"hello".to_vec(), "is not a shared library"),
    ];
    for (name, bytes, _) in &files {
        place.put_plugin(name, bytes);
    }
    let server = place.serve(&["--plugin-timeout", "3", "--plugin-memory", "256MiB"]);
    let log = server.log();
    for (name, _, words) in &files {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&format!("host_plugin_{name}"))).collect();
        assert_eq!(lines.len(), 1, "{name}: {log}");
        assert!(lines[0].contains(" WARN plugin ") && lines[0].contains(words), "{}", lines[0]);
    }
    let body = json!({"prompt": "San Francisco is a", "max_tokens": 7, "temperature": 0});
    assert!(server.complete(&body).starts_with(" city "));

    let listed = place.run(&["plugins", "list", "--plugin-timeout", "3", "--plugin-memory", "256MiB"]);
    for (name, _, words) in &files {
        let lines = listed.good().lines().filter(|line| line.contains(&format!("host_plugin_{name}")));
        assert!(lines.clone().count() == 1 && lines.clone().all(|line| line.contains(words)), "{}", listed.stdout);
    }
}

#[test]
fn a_plugin_that_fails_to_build_is_one_line() {
    let place = Place::new();
    place.put_plugin("bad", &build::bad("healthy"));
    place.put_plugin("raw", &build::raw(build::RAW));
    for (order, words) in [
        ("segfault", "crashed with SIGSEGV"),
        ("panic", "panicked while building the model's graph"),
        ("hang", "did not finish building the model's graph within 3.0 s"),
        ("allocate", "ran out of memory while building the model's graph (limit 256 MiB)"),
        ("wrong-shape", "returned a graph that is wrong"),
    ] {
        let folder = model(&place, "BadForCausalLM", order);
        let output = place.run(&[
            "serve",
            folder.arg(),
            "--port",
            "0",
            "--skip-tokenizer-init",
            "--log-level",
            "error",
            "--model-impl",
            "bad",
            "--plugin-timeout",
            "3",
            "--plugin-memory",
            "256MiB",
        ]);
        output.fails(&[folder.arg(), "plugin `bad`", "libhost_plugin_bad", words]);
        assert!(output.took < Duration::from_secs(8), "{order} took {:?}", output.took);
    }
    let folder = model(&place, "RawForCausalLM", "rubbish");
    let output = place.run(&["generate", folder.arg(), "--skip-tokenizer-init", "--prompt-token-ids", "1"]);
    output.fails(&["plugin `raw`", "answered rubbish"]);
    // The same plugin, told to behave, serves.
    let folder = model(&place, "BadForCausalLM", "healthy");
    let ids = place.run(&["generate", folder.arg(), "--skip-tokenizer-init", "--prompt-token-ids", "1"]);
    assert_eq!(ids.good().trim().split(',').count(), 16, "{ids:?}");
}

/// No plan of kernels for it: it runs all the same, slowly, and everyone is told.
#[test]
fn a_model_that_cannot_be_batched_runs_on_the_reference_executor() {
    let place = Place::new();
    place.put_plugin("bad", &build::bad("healthy"));
    let folder = model(&place, "BadForCausalLM", "mixes");
    let server = place.serve(&[folder.arg(), "--skip-tokenizer-init"]);
    let log = server.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("reference executor")).collect();
    assert!(lines.len() == 1 && lines[0].contains(" WARN "), "{log}");
    assert!(lines[0].contains("cumsum: the CPU executor batches sequences and cannot"), "{}", lines[0]);
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["host"]["executor"], "reference");
    let body = json!({"prompt": [1, 2, 3], "max_tokens": 5, "temperature": 0, "return_token_ids": true});
    let chosen = server.ok("/v1/completions", &body)["choices"][0]["token_ids"].clone();
    let ids = |executor: &str| {
        let fixed = ["--skip-tokenizer-init", "--prompt-token-ids", "1,2,3", "--max-tokens", "5", "--temperature", "0"];
        let args = [&["generate", folder.arg(), "--json", "--executor", executor][..], &fixed].concat();
        place.run(&args)
    };
    let asked: Value = serde_json::from_str(ids("reference").good()).unwrap();
    assert_eq!(asked["token_ids"], chosen);
    ids("cpu").fails(&["cumsum", "use --executor auto or reference"]);
    let shown = place.run(&["inspect", folder.arg(), "--skip-tokenizer-init"]);
    assert!(shown.good().contains("none, it runs on the reference executor"), "{shown:?}");
}

#[test]
fn ctrl_c_ends_a_server_that_is_still_loading() {
    let place = Place::new();
    place.put_plugin("bad", &build::bad("healthy"));
    let folder = model(&place, "BadForCausalLM", "sleep");
    let mut server = place.start(&[folder.arg(), "--skip-tokenizer-init"]);
    server.wait_for("model files");
    // The worker's command line names the private copy of the plugin.
    let worker = place.path(".cache");
    let patience = std::time::Instant::now() + crate::program::PATIENCE;
    while !build::is_running(arg(&worker)) {
        assert!(std::time::Instant::now() < patience, "no worker of {}: {}", worker.display(), server.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    server.signal(Signal::INT);
    assert_eq!(server.wait(Duration::from_secs(2)).code(), Some(0));
    assert!(server.log().contains("stopped while loading"), "{}", server.log());
    // The worker does not outlive it.
    for _ in 0..100 {
        if !build::is_running(arg(&worker)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the plugin's process still runs");
}

/// `host plugins new`, built somewhere else, dropped into a folder of a program that was built before.
#[test]
fn a_new_plugin_serves_a_model_without_rebuilding_the_host() {
    let place = Place::new();
    let (dropped, crate_dir) = (place.path("dropped"), place.path("elsewhere/made"));
    std::fs::create_dir_all(&dropped).unwrap();
    std::fs::create_dir_all(crate_dir.parent().unwrap()).unwrap();
    build::set_mode(&dropped, 0o755);
    let list = || place.run(&["plugins", "list", "--plugins-dir", arg(&dropped)]).good().to_owned();
    assert!(!list().contains("served"));
    place.run(&["plugins", "new", "served", "--dir", arg(&crate_dir)]).good();
    // The versions that this repository was tested with.
    std::fs::copy(build::workspace().join("Cargo.lock"), crate_dir.join("Cargo.lock")).unwrap();
    build::cargo(&crate_dir, &["build"]).unwrap();
    let library = build::library("host_plugin_served");
    std::fs::copy(&library, dropped.join(library.file_name().unwrap())).unwrap();
    assert!(list().contains("ServedForCausalLM"), "{}", list());

    let golden = std::fs::read_to_string(crate_dir.join("tests/golden/tiny.txt")).unwrap();
    let (config, _) = golden.split_once("\n---\n").unwrap();
    let config: Value = serde_json::from_str(config).unwrap();
    let size = |field: &str| config[field].as_u64().unwrap() as usize;
    let (vocab, hidden, inner) = (size("vocab_size"), size("hidden_size"), size("intermediate_size"));
    let (heads, kv_heads) = (size("num_attention_heads"), size("num_key_value_heads"));
    let kv = hidden / heads * kv_heads;
    let mut tensors: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![vocab, hidden]), ("model.norm.weight".into(), vec![hidden])];
    if config["tie_word_embeddings"] != json!(true) {
        tensors.push(("lm_head.weight".into(), vec![vocab, hidden]));
    }
    for layer in 0..size("num_hidden_layers") {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let tensors: Vec<(&str, &[usize])> = tensors.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
    let folder = Folder::made(place.path("models/made"), &config, &tensors);
    let server = place.serve(&[folder.arg(), "--plugins-dir", arg(&dropped), "--dtype", "float32"]);
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["host"]["plugin"], "served");
    let body =
        json!({"prompt": [1, 2, 3], "max_tokens": 5, "temperature": 0, "return_token_ids": true, "ignore_eos": true});
    let answer = server.ok("/v1/completions", &body);
    let by_plan = answer["choices"][0]["token_ids"].clone();
    assert_eq!(by_plan.as_array().map(Vec::len), Some(5), "{answer}");
    // The oracle reads the same graph the same way.
    let oracle = place.run(&[
        "generate",
        folder.arg(),
        "--plugins-dir",
        arg(&dropped),
        "--skip-tokenizer-init",
        "--executor",
        "reference",
        "--prompt-token-ids",
        "1,2,3",
        "--max-tokens",
        "5",
        "--temperature",
        "0",
        "--ignore-eos",
        "--json",
    ]);
    let oracle: Value = serde_json::from_str(oracle.good()).unwrap();
    assert_eq!(oracle["token_ids"], by_plan);
}
