//! What a server answers, and what it refuses.

use serde_json::{Value, json};

use crate::models::Folder;
use crate::program::{Place, Server};

#[test]
fn the_demo_model_answers_and_tells_about_itself() {
    let place = Place::new();
    let server = place.serve(&[]);
    let request = json!({"model": "host-demo", "prompt": "San Francisco is a", "max_tokens": 7, "temperature": 0});
    let answer = server.ok("/v1/completions", &request);
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["usage"]["completion_tokens"], 7, "{answer}");
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert!(text.starts_with(" city "), "{text:?}");

    let question = json!({"messages": [{"role": "user", "content": "What is AI?"}], "temperature": 0});
    let answer = server.ok("/v1/chat/completions", &question);
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(text.contains("artificial intelligence") && text.ends_with('.'), "{text:?}");

    let models = server.get("/v1/models").json();
    let model = &models["data"][0];
    assert_eq!((&model["id"], &model["max_model_len"]), (&json!("host-demo"), &json!(1024)));
    assert_eq!(model["host"]["plugin"], "llama");
    assert_eq!(model["host"]["model_impl"], "native");
    assert_eq!(model["host"]["architecture"], "LlamaForCausalLM");
    assert_eq!(server.get("/health").json()["status"], "ok");
    assert_eq!(server.get("/version").json()["version"], env!("CARGO_PKG_VERSION"));
    assert!(server.metric("vllm:generation_tokens_total") > 7.0);

    let tokens = server.ok("/tokenize", &json!({"prompt": "San Francisco is a"}));
    assert_eq!(tokens["count"].as_u64(), tokens["tokens"].as_array().map(|t| t.len() as u64));
    let text = server.ok("/detokenize", &json!({"tokens": tokens["tokens"]}));
    assert!(text["prompt"].as_str().unwrap().ends_with("San Francisco is a"), "{text}");
}

/// A folder without tokenizer: ids in, ids out; its outputs are torch's.
#[test]
fn a_model_without_tokenizer_serves_token_ids() {
    let place = Place::new();
    let folder = Folder::llama(&place.path("models"));
    let server = place.serve(&[folder.arg(), "--served-model-name", "tiny"]);
    assert!(server.log().contains("WARN") && server.log().contains("has no tokenizer.json"), "{}", server.log());
    for golden in host_zoo::entry("llama").unwrap().golden().unwrap().prompts {
        let answer = server.ok(
            "/v1/completions",
            &json!({"model": "tiny", "prompt": golden.prompt_ids, "max_tokens": 16, "temperature": 0,
                    "ignore_eos": true, "return_token_ids": true, "logprobs": 2}),
        );
        let choice = &answer["choices"][0];
        assert_eq!(choice["token_ids"], json!(golden.greedy_ids));
        assert_eq!(choice["prompt_token_ids"], json!(golden.prompt_ids));
        assert_eq!(choice["text"], "");
        let names: Vec<String> = golden.greedy_ids.iter().map(|id| format!("token_id:{id}")).collect();
        assert_eq!(choice["logprobs"]["tokens"], json!(names));
        let first = choice["logprobs"]["top_logprobs"][0].as_object().unwrap();
        assert!(first.contains_key(&names[0]) && first.keys().all(|k| k.starts_with("token_id:")), "{first:?}");
    }
    let text = json!({"prompt": "hello"}).to_string();
    server.refused("/v1/completions", text.as_bytes(), 400, &["needs a tokenizer", "send prompt as token ids"]);
    let chat = json!({"messages": [{"role": "user", "content": "hello"}]}).to_string();
    server.refused("/v1/chat/completions", chat.as_bytes(), 400, &["tokenizer"]);
    server.refused("/tokenize", text.as_bytes(), 400, &["tokenizer"]);
}

#[test]
fn bad_requests_are_refused_and_do_no_harm() {
    let place = Place::new();
    let server = place.serve(&[]);
    let path = "/v1/completions";
    let good = json!({"prompt": "San Francisco is a", "max_tokens": 7, "temperature": 0});
    let before = server.complete(&good);
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body.to_string().into_bytes()
    };
    let long: Vec<u32> = vec![5; 1025];
    let cases: [(Vec<u8>, u16, &[&str]); 13] = [
        (with("prompt", json!(long)), 400, &["1025", "1024"]),
        (with("max_tokens", json!(1024)), 400, &["max_tokens", "1024"]),
        (with("max_tokens", json!(0)), 400, &["max_tokens", "0", "at least 1"]),
        (with("temperature", json!("NaN")), 400, &["temperature", "NaN"]),
        (br#"{"prompt": "a", "temperature": 1e999}"#.into(), 400, &["number out of range", "column 36"]),
        (br#"{"prompt": "a", "temperature": NaN}"#.into(), 400, &["JSON", "column 32"]),
        (with("prompt", json!("x".repeat(10 << 20))), 413, &["8388608", "--max-body-size"]),
        (b"{\"prompt\": \"\xff\"}".into(), 400, &["UTF-8"]),
        (b"{\"prompt\": ".into(), 400, &["JSON"]),
        (b"".into(), 400, &["JSON"]),
        (b"[]".into(), 400, &["JSON object"]),
        (with("temprature", json!(1)), 400, &["temprature", "did you mean", "temperature"]),
        (with("model", json!("gpt-4")), 404, &["gpt-4", "host-demo"]),
    ];
    for (body, status, words) in cases {
        server.refused(path, &body, status, words);
    }
    assert_eq!(server.complete(&good), before);
    assert!(!server.log().contains("ERROR") && !server.log().contains("panicked"), "{}", server.log());
}

/// The cache is as large as the settings allow, but only what is used takes memory.
#[test]
fn a_large_cache_costs_nothing_until_it_is_used() {
    let place = Place::new();
    let server = place.serve(&["--kv-cache-memory", "4GiB"]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 1 << 20, "{kib} KiB");
}

/// The last state of a prompt, as the server gives it, times the head is what torch has for logits.
#[test]
fn a_model_that_pools_gives_the_states_behind_torchs_logits() {
    let place = Place::new();
    let folder = Folder::llama(&place.path("models"));
    let raw = json!({"use_activation": false});
    let flags = ["--runner", "pooling", "--dtype", "float32", "--pooler-config", &raw.to_string()];
    let server = place.serve(&[&[folder.arg()], &flags[..]].concat());
    let head = folder.floats("lm_head.weight");
    let vector = |ids: &[u32]| -> Vec<f64> {
        let answer = server.ok("/v1/embeddings", &json!({"input": ids}));
        answer["data"][0]["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    for golden in host_zoo::entry("llama").unwrap().golden().unwrap().prompts {
        let state = vector(&golden.prompt_ids);
        let rows = head.chunks_exact(state.len());
        let logits: Vec<f64> = rows.map(|row| row.iter().zip(&state).map(|(&w, x)| f64::from(w) * x).sum()).collect();
        assert_eq!(logits.len(), golden.last_logits.len());
        let worst = logits.iter().zip(&golden.last_logits).map(|(a, &b)| (a - f64::from(b)).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-3, "logits differ by {worst}");
    }
    let text = json!({"prompt": [1, 2]}).to_string();
    server.refused("/v1/completions", text.as_bytes(), 400, &["--runner generate"]);

    // The mean of all states, and the same for the class without a head, as sentence-transformers stores it.
    let ids: Vec<u32> = (1..40).collect();
    let states: Vec<Vec<f64>> = (1..=ids.len()).map(|end| vector(&ids[..end])).collect();
    let mean: Vec<f64> =
        (0..states[0].len()).map(|i| states.iter().map(|state| state[i]).sum::<f64>() / states.len() as f64).collect();
    drop(server);
    folder.set("architectures", json!(["LlamaModel"]));
    folder.rename(|name| name.strip_prefix("model.").map(str::to_owned));
    let transformer = json!({"path": "", "type": "sentence_transformers.models.Transformer"});
    let pooling = json!({"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"});
    folder.put("modules.json", json!([transformer, pooling]).to_string());
    std::fs::create_dir(folder.dir.join("1_Pooling")).unwrap();
    folder.put("1_Pooling/config.json", json!({"pooling_mode_mean_tokens": true}).to_string());
    let server = place.serve(&[folder.arg(), "--dtype", "float32"]);
    let answer = server.ok("/v1/embeddings", &json!({"input": ids}));
    let found: Vec<f64> =
        answer["data"][0]["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    let worst = found.iter().zip(&mean).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-5, "the mean differs by {worst}");
}

#[test]
fn the_number_of_blocks_can_be_given() {
    let place = Place::new();
    let server = place.serve(&["--num-gpu-blocks-override", "70"]);
    let metrics = server.get("/metrics").text();
    assert!(metrics.contains("num_gpu_blocks=\"70\""), "{metrics}");
    // 64 blocks hold one sequence of the demo model's context; fewer shorten it.
    let server = place.serve(&["--num-gpu-blocks-override", "10"]);
    assert_eq!(server.get("/v1/models").json()["data"][0]["max_model_len"], 160);
}

/// What lm-eval's `local-completions` asks: echo, log-probabilities, one token more than is read, prompts as token ids. The
/// log-likelihoods of every possible continuation of a golden's prompt are torch's.
#[test]
fn log_likelihoods_are_torchs() {
    let place = Place::new();
    for name in ["llama", "llama__rope_llama3", "llama__tied_gqa1", "mistral", "qwen2"] {
        let entry = host_zoo::entry(name).unwrap();
        let folder = entry.materialize(&place.path("models")).unwrap();
        let server = place.serve(&[folder.to_str().unwrap(), "--served-model-name", "tiny", "--dtype", "float32"]);
        for golden in entry.golden().unwrap().prompts {
            let logits: Vec<f64> = golden.last_logits.iter().map(|&x| x.into()).collect();
            let most = logits.iter().fold(f64::MIN, |a, &b| a.max(b));
            let norm = most + logits.iter().map(|x| (x - most).exp()).sum::<f64>().ln();
            let context = golden.prompt_ids.len();
            let prompts: Vec<Vec<u32>> = (0..logits.len() as u32)
                .map(|next| golden.prompt_ids.iter().copied().chain([next]).collect())
                .collect();
            let answer = server.ok(
                "/v1/completions",
                &json!({"model": "tiny", "prompt": prompts, "max_tokens": 1, "temperature": 0, "logprobs": 1,
                        "echo": true, "seed": 1234}),
            );
            let choices = answer["choices"].as_array().unwrap();
            assert_eq!(choices.len(), logits.len());
            let mut greedy = Vec::new();
            for (next, (choice, logit)) in choices.iter().zip(&logits).enumerate() {
                let lists = &choice["logprobs"];
                // lm-eval reads from the end of the context to before the token that was generated.
                let all = lists["token_logprobs"].as_array().unwrap();
                assert_eq!(all.len(), context + 2);
                let found: f64 = all[context..all.len() - 1].iter().map(|x| x.as_f64().unwrap()).sum();
                assert!((found - (logit - norm)).abs() < 1e-3, "{name}, token {next}: {found}, torch {}", logit - norm);
                // And takes the continuation for greedy if each of its tokens is the best.
                let (token, best) = (&lists["tokens"][context], lists["top_logprobs"][context].as_object().unwrap());
                let highest = best.iter().max_by(|a, b| a.1.as_f64().unwrap().total_cmp(&b.1.as_f64().unwrap()));
                if highest.is_some_and(|(best, _)| best == token.as_str().unwrap()) {
                    greedy.push(next as u32);
                }
            }
            assert_eq!(greedy, [golden.greedy_ids[0]], "{name}");
        }
    }
}

#[test]
fn a_cache_of_int8_has_room_for_more_and_answers_the_same_cached_or_not() {
    let place = Place::new();
    let serve = |dtype| place.serve(&["--kv-cache-dtype", dtype, "--kv-cache-memory", "1MiB"]);
    let blocks = |server: &Server| {
        let metrics = server.get("/metrics").text();
        let after = metrics.split("num_gpu_blocks=\"").nth(1).unwrap();
        after.split('"').next().unwrap().parse::<usize>().unwrap()
    };
    let plain = serve("bfloat16");
    // By the name that vLLM has for it.
    let server = serve("int8_per_token_head");
    assert!(server.get("/metrics").text().contains("cache_dtype=\"int8\""));
    // One byte instead of two, and four more for a key or value of 32 or more.
    assert!(blocks(&server) * 10 > blocks(&plain) * 17, "{} and {} blocks", blocks(&server), blocks(&plain));
    let prompt = "San Francisco is a city on the coast of California, known for its fog and its bridges. The";
    let body = json!({"prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": true, "logprobs": 5});
    let answer = |server: &Server| {
        let answer = server.ok("/v1/completions", &body);
        (answer["choices"][0]["text"].clone(), answer["choices"][0]["logprobs"].clone())
    };
    let first = answer(&server);
    assert_eq!(server.metric("vllm:prefix_cache_hits_total"), 0.0);
    assert_eq!(answer(&server), first);
    assert!(server.metric("vllm:prefix_cache_hits_total") > 0.0);
    // The numbers are others than without rounding: the option arrived.
    assert_ne!(answer(&plain).1, first.1);
}
