//! `host serve --device emulated`: the whole program over the CUDA kernels, as it would run on a GPU.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::http;
use crate::models::Folder;
use crate::program::Place;

/// Kernels are compiled by a C++ compiler when they are first needed.
const LONG: Duration = Duration::from_secs(120);

#[test]
fn a_server_on_the_emulated_device_gives_torchs_tokens_and_ends_cleanly() {
    let place = Place::new();
    let folder = Folder::llama(&place.path("models"));
    let args = [folder.arg(), "--served-model-name", "tiny", "--device", "emulated", "--dtype", "float32"];
    let mut server = place.serve(&args);
    assert!(server.log().contains("emulated"), "{}", server.log());
    assert_eq!(server.get("/health").status, 200);
    let goldens = host_zoo::entry("llama").unwrap().golden().unwrap().prompts;
    let body = |ids: &[u32]| -> Value {
        json!({"model": "tiny", "prompt": ids, "max_tokens": 16, "temperature": 0, "ignore_eos": true,
               "return_token_ids": true})
    };
    // All at once, so that they share steps.
    let sockets: Vec<_> = goldens
        .iter()
        .map(|g| http::send(server.address(), "POST", "/v1/completions", body(&g.prompt_ids).to_string().as_bytes()))
        .collect();
    for (golden, socket) in goldens.iter().zip(sockets) {
        let reply = http::read(socket);
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.json()["choices"][0]["token_ids"], json!(golden.greedy_ids));
    }
    // The same request with the same seed draws the same tokens.
    let drawn = |seed: u64| -> Value {
        let mut body = body(&goldens[0].prompt_ids);
        (body["temperature"], body["seed"]) = (json!(1.5), json!(seed));
        server.ok("/v1/completions", &body)["choices"][0]["token_ids"].clone()
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
    assert_eq!(server.metric("vllm:generation_tokens_total"), (16 * (goldens.len() + 4)) as f64);
    let prompts: usize = goldens.iter().map(|g| g.prompt_ids.len()).sum();
    assert_eq!(server.metric("vllm:prompt_tokens_total"), (prompts + 4 * goldens[0].prompt_ids.len()) as f64);
    server.wait_until_idle(LONG);
    server.signal(Signal::TERM);
    assert_eq!(server.wait(LONG).code(), Some(0), "{}", server.log());
    assert!(server.log().ends_with("stopped\n"), "{}", server.log());
}
