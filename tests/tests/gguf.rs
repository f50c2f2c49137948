//! GGUF files through the native plugins: the same model from its folder and from one file.

use std::fs;
use std::path::Path;

use half::bf16;
use host::exec::Dtype;
use host::hub::{Dtype as Type, Weights};
use host::llm::{Blueprint, LlmOptions, ModelSource};
use host_tests::gguf::{Entry, Stored, file};
use host_tests::quality::{Scorer, compare};
use host_tests::{library, zoo};
use serde_json::Value;

const WORKER: &str = env!("CARGO_BIN_EXE_plugin-worker");
const TOKENS: usize = 320;

type Tensor = (String, Vec<usize>, Vec<f32>, Stored);

fn options(path: &Path) -> LlmOptions {
    library::options(ModelSource::Named(path.display().to_string()), WORKER)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("reads")).expect("is JSON")
}

/// The tensors of a folder as floats.
fn tensors(dir: &Path) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let weights = Weights::open(dir).expect("opens");
    let floats = |dtype: Type, data: &[u8]| -> Vec<f32> {
        match dtype {
            Type::BF16 => data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            Type::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            other => panic!("{other}"),
        }
    };
    weights.iter().map(|(name, v)| (name.to_owned(), v.shape.to_vec(), floats(v.dtype, v.data))).collect()
}

/// Rows of heads as llama.cpp has them: pairs that are rotated together become neighbours.
fn neighbours(values: &[f32], k: usize, head: usize) -> Vec<f32> {
    let row = |r: usize| {
        let (pair, which) = (r % head / 2, r % 2);
        &values[(r / head * head + which * head / 2 + pair) * k..][..k]
    };
    (0..values.len() / k).flat_map(|r| row(r).to_vec()).collect()
}

fn number(config: &Value, field: &str) -> Entry {
    Entry::Number(config[field].as_u64().expect("is a number") as u32)
}

/// The built-in model as a GGUF file.
fn demo(dir: &Path, stored: Stored) -> Vec<u8> {
    let (config, tokenizer) = (json(&dir.join("config.json")), json(&dir.join("tokenizer.json")));
    let mut vocabulary: Vec<(String, usize)> = tokenizer["model"]["vocab"]
        .as_object()
        .expect("has a vocabulary")
        .iter()
        .map(|(token, id)| (token.clone(), id.as_u64().expect("is an id") as usize))
        .collect();
    let mut kinds = vec![1; vocabulary.len()];
    for added in tokenizer["added_tokens"].as_array().expect("has added tokens") {
        let (token, id) = (added["content"].as_str().expect("has a text"), added["id"].as_u64().expect("has an id"));
        if vocabulary.iter().all(|(known, _)| known != token) {
            vocabulary.push((token.to_owned(), id as usize));
            kinds.push(1);
        }
        kinds[id as usize] = 3;
    }
    vocabulary.sort_by_key(|(_, id)| *id);
    let merge = |merge: &Value| match merge {
        Value::String(text) => text.clone(),
        pair => format!("{} {}", pair[0].as_str().expect("a text"), pair[1].as_str().expect("a text")),
    };
    let merges = tokenizer["model"]["merges"].as_array().expect("has merges").iter().map(merge).collect();
    let template =
        json(&dir.join("tokenizer_config.json"))["chat_template"].as_str().expect("has a template").to_owned();
    let metadata = [
        ("general.architecture", Entry::Text("llama".into())),
        ("llama.context_length", number(&config, "max_position_embeddings")),
        ("llama.embedding_length", number(&config, "hidden_size")),
        ("llama.feed_forward_length", number(&config, "intermediate_size")),
        ("llama.block_count", number(&config, "num_hidden_layers")),
        ("llama.attention.head_count", number(&config, "num_attention_heads")),
        ("llama.attention.head_count_kv", number(&config, "num_key_value_heads")),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Entry::Float(config["rms_norm_eps"].as_f64().expect("a number") as f32),
        ),
        ("llama.rope.freq_base", Entry::Float(config["rope_theta"].as_f64().unwrap_or(10_000.0) as f32)),
        ("tokenizer.ggml.model", Entry::Text("gpt2".into())),
        ("tokenizer.ggml.pre", Entry::Text("gpt-2".into())),
        ("tokenizer.ggml.tokens", Entry::Texts(vocabulary.into_iter().map(|(token, _)| token).collect())),
        ("tokenizer.ggml.token_type", Entry::Numbers(kinds)),
        ("tokenizer.ggml.merges", Entry::Texts(merges)),
        ("tokenizer.ggml.eos_token_id", Entry::Number(2)),
        ("tokenizer.chat_template", Entry::Text(template)),
    ];
    let head =
        config["hidden_size"].as_u64().expect("a size") / config["num_attention_heads"].as_u64().expect("a number");
    let named = |(name, shape, values): (String, Vec<usize>, Vec<f32>)| -> Tensor {
        let mut to = name.replace("model.layers.", "blk.");
        for (from, new) in [
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.o_proj", "attn_output"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ] {
            to = to.replace(from, new);
        }
        let rotated = to.contains("attn_q") || to.contains("attn_k");
        let values = if rotated { neighbours(&values, shape[1], head as usize) } else { values };
        (to, shape.clone(), values, if shape.len() == 2 { stored } else { Stored::F32 })
    };
    file(&metadata, &tensors(dir).into_iter().map(named).collect::<Vec<_>>())
}

#[test]
fn a_llama_in_a_file_is_the_llama_in_the_folder() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/demo/model");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("demo.gguf");
    let float32 = |options| LlmOptions { dtype: library::dtype(Dtype::Float32), ..options };
    let mut plain = Scorer::new(&float32(options(&dir)), TOKENS);
    let texts = [
        "San Francisco is a city on the coast.",
        "What is AI? It's 1234 things,\n\n  isn't it?",
        "<|im_start|>user\nHi",
    ];
    let ids: Vec<Vec<u32>> = texts.iter().map(|text| plain.tokens(text)).collect();
    // Stored as f32, sums differ in their last bits (the folder has bf16, which is summed in another order).
    for (stored, limit) in [(Stored::F32, 1e-9), (Stored::Q8_0, 0.001)] {
        fs::write(&path, demo(&dir, stored)).expect("writes");
        let mut other = Scorer::new(&float32(options(&path)), TOKENS);
        for (text, ids) in texts.iter().zip(&ids) {
            assert_eq!(&other.tokens(text), ids, "{text}");
        }
        let q = compare(&mut plain, &mut other, &ids);
        assert!(q.divergence.abs() <= limit && q.same > 0.99, "{stored:?}: {q:?}");
        assert_eq!(stored == Stored::Q8_0, q.divergence > 1e-8, "{q:?}");
    }
    let blueprint = Blueprint::draw(&options(&path)).expect("builds");
    assert_eq!(blueprint.checkpoint.name, "demo");
    assert_eq!(blueprint.checkpoint.generation_config.eos_token_ids, [2]);
    let (graph, plan) = blueprint.plan().expect("plans");
    // Five layers of seven matrices; the head is the table, and quantised as it is stored.
    assert_eq!(blueprint.quantised(&graph, &plan).matrices, 36);

    let mut bytes = fs::read(&path).expect("reads");
    bytes.truncate(bytes.len() - 5000);
    fs::write(&path, bytes).expect("writes");
    let error = Blueprint::draw(&options(&path)).err().expect("is refused").to_string();
    assert!(error.contains("demo.gguf") && error.contains("cut off"), "{error}");
}

#[test]
fn a_gpt2_in_a_file_is_the_gpt2_in_the_folder() {
    let entry = zoo::entry("gpt2").expect("is in the zoo");
    let dir = tempfile::tempdir().expect("a folder");
    let model = entry.materialize(dir.path()).expect("materialises");
    let config = entry.config().expect("has a configuration");
    let number = |field: &str, or: u64| Entry::Number(config[field].as_u64().unwrap_or(or) as u32);
    let width = config["n_embd"].as_u64().expect("a size");
    let metadata = [
        ("general.architecture", Entry::Text("gpt2".into())),
        ("gpt2.context_length", number("n_positions", 1024)),
        ("gpt2.embedding_length", number("n_embd", 0)),
        ("gpt2.feed_forward_length", number("n_inner", 4 * width)),
        ("gpt2.block_count", number("n_layer", 0)),
        ("gpt2.attention.head_count", number("n_head", 0)),
        (
            "gpt2.attention.layer_norm_epsilon",
            Entry::Float(config["layer_norm_epsilon"].as_f64().unwrap_or(1e-5) as f32),
        ),
    ];
    let named = |(name, shape, values): (String, Vec<usize>, Vec<f32>)| -> Option<Tensor> {
        let mut to = name.trim_start_matches("transformer.").replace("h.", "blk.");
        for (from, new) in [
            ("wte", "token_embd"),
            ("wpe", "position_embd"),
            ("ln_f", "output_norm"),
            ("ln_1", "attn_norm"),
            ("ln_2", "ffn_norm"),
            ("attn.c_attn", "attn_qkv"),
            ("attn.c_proj", "attn_output"),
            ("mlp.c_fc", "ffn_up"),
            ("mlp.c_proj", "ffn_down"),
        ] {
            to = to.replace(from, new);
        }
        if name.starts_with("lm_head") {
            return None;
        }
        if name.contains(".c_") && shape.len() == 2 {
            let (a, b) = (shape[0], shape[1]);
            let turned = (0..a * b).map(|i| values[i % a * b + i / a]).collect();
            return Some((to, vec![b, a], turned, Stored::F32));
        }
        Some((to, shape, values, Stored::F32))
    };
    let all: Vec<Tensor> = tensors(&model).into_iter().filter_map(named).collect();
    let path = dir.path().join("tiny.gguf");
    fs::write(&path, file(&metadata, &all)).expect("writes");
    let with = |options| LlmOptions { dtype: library::dtype(Dtype::Float32), skip_tokenizer_init: true, ..options };
    let (mut plain, mut other) = (Scorer::new(&with(options(&model)), 64), Scorer::new(&with(options(&path)), 64));
    let tokens: Vec<u32> = (0..20).map(|i| i * 7 % 50).collect();
    let bits = |rows: Vec<Vec<f32>>| rows.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(plain.logits(&tokens, 20)) == bits(other.logits(&tokens, 20)));
}
