//! The tools that speak with a server, and what is made from the flags.

use serde_json::Value;

use crate::program::{Place, arg, finish, says};

/// The figure in a line of the report.
#[track_caller]
fn figure(report: &str, name: &str) -> f64 {
    let line = report.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in\n{report}"));
    line.split_whitespace().last().unwrap().parse().unwrap()
}

#[test]
fn a_benchmark_that_cannot_begin_names_the_flags() {
    let place = Place::new();
    let server = place.serve(&[]);
    let url = format!("http://{}", server.address());
    // The defaults are vLLM's, and too long for the demo model.
    place.run(&["bench", "serve", "--base-url", &url]).fails(&["1024 tokens", "--random-input-len"]);
}

#[test]
fn bench_serve_reports_and_saves_the_figures_of_vllm() {
    let place = Place::new();
    let server = place.serve(&[]);
    let url = format!("http://{}", server.address());
    for (backend, saved) in [("openai", "a.json"), ("openai-chat", "b.json")] {
        let run = [
            "bench",
            "serve",
            "--base-url",
            &url,
            "--backend",
            backend,
            "--num-prompts",
            "20",
            "--random-input-len",
            "12",
            "--random-output-len",
            "5",
            "--max-concurrency",
            "4",
            "--request-rate",
            "500",
            "--metric-percentiles",
            "50,99",
            "--percentile-metrics",
            "ttft,tpot,itl,e2el",
            "--goodput",
            "ttft:60000",
            "--save-result",
            "--result-dir",
            "out",
            "--result-filename",
            saved,
        ];
        let report = place.run(&run).good().to_owned();
        assert!(report.starts_with("============ Serving Benchmark Result ============\n"), "{report}");
        for name in
            ["Mean TTFT (ms):", "P99 ITL (ms):", "P50 TPOT (ms):", "Median E2EL (ms):", "Benchmark duration (s):"]
        {
            assert!(figure(&report, name) > 0.0, "{report}");
        }
        assert_eq!(figure(&report, "Successful requests:"), 20.0);
        assert_eq!(figure(&report, "Total generated tokens:"), 100.0);
        let file: Value = serde_json::from_slice(&std::fs::read(place.path("out").join(saved)).unwrap()).unwrap();
        assert_eq!((&file["completed"], &file["total_output_tokens"]), (&20.into(), &100.into()));
        for name in
            ["request_throughput", "request_goodput", "output_throughput", "mean_ttft_ms", "p99_itl_ms", "std_tpot_ms"]
        {
            assert!(file[name].as_f64().is_some_and(|figure| figure >= 0.0), "{name}: {file}");
        }
        // Completions are sent as token ids, so that their length is exact.
        assert!(backend != "openai" || file["total_input_tokens"] == 240, "{file}");
    }
    place
        .run(&["bench", "serve", "--base-url", "http://127.0.0.1:1", "--disable-tqdm"])
        .fails(&["cannot connect to 127.0.0.1:1"]);
    place.run(&["bench", "serve", "--base-url", &url, "--model", "nope"]).fails(&["nope", "404"]);
}

#[test]
fn bench_of_the_engine_alone() {
    let place = Place::new();
    let file = place.path("latency.json");
    let run =
        ["bench", "latency", "--batch-size", "2", "--input-len", "8", "--output-len", "4", "--num-iters-warmup", "1"];
    let output = place.run(&[&run[..], &["--num-iters", "3", "--output-json", arg(&file)]].concat());
    says(output.good(), &["Avg latency: ", "99% percentile latency: "]);
    let saved: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(saved["latencies"].as_array().unwrap().len(), 3);
    let output = place.run(&["bench", "throughput", "--num-prompts", "5", "--input-len", "8", "--output-len", "4"]);
    says(output.good(), &["Throughput: ", " requests/s", "Total num output tokens:  20"]);
    place.run(&["bench", "latency", "--input-len", "100000"]).fails(&["--input-len 100000", "lower them"]);
}

#[test]
fn chat_over_tls_with_a_key() {
    let place = Place::new();
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/src/server/testdata/");
    let (certificate, key) = (format!("{data}localhost.pem"), format!("{data}localhost.key"));
    let keys = place.put("keys", "# for tests\n\nfirst\n  second  \n");
    let run = ["--ssl-certfile", &certificate, "--ssl-keyfile", &key, "--api-key-file", arg(&keys)];
    let server = place.start(&run);
    server.wait_for("serving ");
    let log = server.log();
    let address = log.lines().find_map(|line| line.split("https://127.0.0.1:").nth(1)).expect("an address");
    let url = format!("https://localhost:{address}");
    let chat = |args: &[&str], key: &str, input: &str| {
        let mut command =
            place.host(&[&["chat", "--url", &url, "--temperature", "0", "--max-tokens", "8"], args].concat());
        command.env("SSL_CERT_FILE", format!("{data}ca.pem")).env("OPENAI_API_KEY", key);
        finish(&mut command, input.as_bytes())
    };
    let answer = chat(&["-q", "What is AI?"], "second", "").good().to_owned();
    assert!(answer.trim().len() > 3 && answer.ends_with('\n'), "{answer:?}");
    // A conversation: the same first answer, then another one.
    let talk = chat(&[], "first", "What is AI?\n\nHello\n/exit\nnever asked\n").good().to_owned();
    assert!(talk.starts_with(&answer) && talk.len() > answer.len(), "{talk:?}");
    chat(&["-q", "What is AI?"], "third", "").fails(&["401", "API key"]);
}

#[test]
fn run_batch_answers_in_order_and_reports_what_failed() {
    let place = Place::new();
    let line = |id: &str, url: &str, body: &str| {
        format!("{{\"custom_id\": \"{id}\", \"method\": \"POST\", \"url\": \"{url}\", \"body\": {body}}}\n")
    };
    let input = [
        line("one", "/v1/completions", r#"{"prompt": "San Francisco is a", "max_tokens": 30, "ignore_eos": true}"#),
        line("two", "/v1/chat/completions", r#"{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}"#),
        line("three", "/v1/completions", r#"{"prompt": "a", "nonsense": 1}"#),
        line("four", "/v1/nothing", "{}"),
    ];
    let input = place.put("in.jsonl", input.concat());
    let output = place.path("out.jsonl");
    let run = place.run(&["run-batch", "-i", arg(&input), "-o", arg(&output)]);
    says(run.good(), &["4 requests, 2 failed"]);
    let text = std::fs::read_to_string(&output).unwrap();
    let answers: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<&str> = answers.iter().map(|answer| answer["custom_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["one", "two", "three", "four"]);
    let status: Vec<&Value> = answers.iter().map(|answer| &answer["response"]["status_code"]).collect();
    assert_eq!(status, [200, 200, 400, 404]);
    assert_eq!(answers[0]["response"]["body"]["usage"]["completion_tokens"], 30);
    assert!(answers[0]["error"].is_null() && answers[2]["error"]["message"].as_str().unwrap().contains("nonsense"));
    // The same through a server that runs already.
    let server = place.serve(&[]);
    let url = format!("http://{}", server.address());
    let run = place.run(&["run-batch", "--url", &url, "-i", arg(&input), "-o", arg(&output)]);
    says(run.good(), &["4 requests, 2 failed"]);

    for (bad, words) in [
        ("no json\n", "line 1"),
        (&line("a", "/v1/completions", r#"{"stream": true}"#), "`stream` has no place"),
        ("\n", "has no requests"),
    ] {
        let input = place.put("bad.jsonl", bad);
        place.run(&["run-batch", "-i", arg(&input), "-o", arg(&output)]).fails(&[words]);
    }
}

#[test]
fn completions_and_the_manual_page() {
    let place = Place::new();
    says(place.run(&["completions", "bash"]).good(), &["_host()", "--max-num-seqs"]);
    says(place.run(&["completions", "zsh"]).good(), &["#compdef host"]);
    says(place.run(&["man"]).good(), &[".TH host 1"]);
    assert_eq!(place.run(&["man", "pages"]).good(), "");
    assert!(place.path("pages/host-bench-serve.1").is_file());
}

#[test]
fn settings_in_vllms_yaml_and_flags_that_only_vllm_has() {
    let place = Place::new();
    let yaml =
        "served-model-name: [first, second]\nmax-num-seqs: 4\noverride-generation-config: '{\"max_new_tokens\": 3}'\n";
    let file = place.put("config.yaml", yaml);
    let server = place.serve(&["--config", arg(&file), "--uvicorn-log-level", "info", "--seed", "5"]);
    assert_eq!(server.get("/v1/models").json()["data"][1]["id"], "second");
    let messages = serde_json::json!([{"role": "user", "content": "What is AI?"}]);
    let body = serde_json::json!({"model": "second", "messages": messages, "ignore_eos": true});
    let answer = server.ok("/v1/chat/completions", &body);
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    let refused = place.run(&["serve", "--tensor-parallel-size", "2"]);
    assert_eq!(refused.code, Some(2));
    says(&refused.stderr, &["--tensor-parallel-size can only be 1 here", "load balancer"]);
    let file = place.put("lora.yaml", "enable_lora: true\n");
    let words = ["lora.yaml", "enable_lora is a flag of vLLM that host does not have: "];
    place.run(&["serve", "--config", arg(&file)]).fails(&words);
    let empty = place.put("keys", "# none\n");
    place.run(&["serve", "--api-key-file", arg(&empty)]).fails(&["--api-key-file", "has no key"]);
    place.run(&["serve", "--ssl-certfile", "nothing.pem"]).fails(&["--ssl-certfile nothing.pem"]);
    place.run(&["serve", "--override-generation-config", "{\"topp\": 1}"]).fails(&["topp"]);
}
