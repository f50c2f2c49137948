//! What `--quantization` and `--kv-cache-dtype int8` cost in quality, on the built-in model.
//!
//! `cargo test -p host-tests --test quantization -- --nocapture` prints the tables of docs/benchmarks/quantization.md.

use std::fs;
use std::path::Path;

use host::exec::{KvCacheDtype, Quantization};
use host::hub::Weights;
use host::llm::{Blueprint, KvCacheDtypeChoice, LlmOptions, ModelSource};
use host_tests::library;
use host_tests::quality::{Quality, Scorer, compare};

const WORKER: &str = env!("CARGO_BIN_EXE_plugin-worker");

/// Tokens of a text at most.
const TOKENS: usize = 320;

fn demo(quantization: Option<Quantization>) -> Scorer {
    demo_with(quantization, KvCacheDtype::Bfloat16)
}

fn demo_with(quantization: Option<Quantization>, kv_cache_dtype: KvCacheDtype) -> Scorer {
    let options = library::options(ModelSource::Demo, WORKER);
    let kv_cache_dtype = KvCacheDtypeChoice::Is(kv_cache_dtype);
    Scorer::new(&LlmOptions { quantization, kv_cache_dtype, threads: Some(2), ..options }, TOKENS)
}

/// Paragraphs that the model was trained on, and prose that it never saw.
fn texts(scorer: &Scorer) -> [(&'static str, Vec<Vec<u32>>); 2] {
    let known = include_str!("../../host/demo/corpus/plain.txt").split("\n\n").filter(|p| !p.starts_with('#'));
    let known = known.map(|text| scorer.tokens(text)).filter(|t| t.len() > 1).step_by(3).collect();
    let unknown = scorer.tokens(include_str!("../../LICENSE"));
    [("trained on", known), ("never seen", unknown.chunks(TOKENS).take(4).map(<[u32]>::to_vec).collect())]
}

#[test]
fn quantised_weights_keep_the_model_s_probabilities() {
    let mut plain = demo(None);
    println!("| weights | text | tokens | KL mean | KL largest | perplexity bf16 | perplexity | same first choice |");
    for (quantization, limit) in [(Quantization::Int8, 0.01), (Quantization::Int4, 0.1)] {
        let mut quantised = demo(Some(quantization));
        for (what, texts) in texts(&plain) {
            let q = compare(&mut plain, &mut quantised, &texts);
            print_row(&[quantization.name(), what], &q);
            assert!(q.tokens > 1000, "{what}");
            assert!(q.divergence < limit, "{quantization:?}, {what}: {q:?}");
            // Something was quantised.
            assert!(q.divergence > 1e-7, "{quantization:?}, {what}: {q:?}");
        }
    }
}

fn print_row(names: &[&str], q: &Quality) {
    println!(
        "| {} | {} | {:.6} | {:.3} | {:.3} | {:.3} | {:.1} % |",
        names.join(" | "),
        q.tokens,
        q.divergence,
        q.largest,
        q.perplexity[0],
        q.perplexity[1],
        q.same * 100.0
    );
}

/// Each against what is exact to it: float32 for bf16, bf16 for int8.
#[test]
fn a_rounded_cache_keeps_the_model_s_probabilities() {
    use KvCacheDtype::{Bfloat16, Float32, Int8};
    println!(
        "| cache | of | text | tokens | KL mean | KL largest | perplexity of that | perplexity | same first choice |"
    );
    for (plain, rounded, limit) in [(Float32, Bfloat16, 0.01), (Bfloat16, Int8, 0.01)] {
        let (mut of, mut cache) = (demo_with(None, plain), demo_with(None, rounded));
        for (what, texts) in texts(&of) {
            let q = compare(&mut of, &mut cache, &texts);
            print_row(&[rounded.name(), plain.name(), what], &q);
            assert!(q.tokens > 1000, "{what}");
            // Something was rounded.
            assert!((1e-9..limit).contains(&q.divergence), "{rounded:?}, {what}: {q:?}");
        }
    }
}

#[test]
fn quantised_weights_and_caches_give_the_same_bits_in_chunks() {
    use KvCacheDtype::{Bfloat16, Int8};
    for (quantization, cache) in [
        (Some(Quantization::Int8), Bfloat16),
        (Some(Quantization::Int4), Bfloat16),
        (None, Int8),
        (Some(Quantization::Int4), Int8),
    ] {
        let mut model = demo_with(quantization, cache);
        let tokens = model.tokens("San Francisco is a city on the coast of California, known for its fog.");
        let whole = model.logits(&tokens, tokens.len());
        for chunk in [1, 7] {
            let chunked = model.logits(&tokens, chunk);
            let bits = |rows: &[Vec<f32>]| rows.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(&whole) == bits(&chunked), "{quantization:?}, {cache:?} in chunks of {chunk}");
        }
    }
}

/// A safetensors file.
fn safetensors(tensors: &[(String, &str, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), vec![]);
    for (name, dtype, shape, bytes) in tensors {
        let begin = data.len();
        data.extend(bytes);
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// A matrix `[n, k]` in GPTQ's layout: 4 bits, symmetric groups of 64.
fn gptq(base: &str, n: usize, k: usize, values: &[f32]) -> [(String, &'static str, Vec<usize>, Vec<u8>); 3] {
    const GROUP: usize = 64;
    let groups = k / GROUP;
    let group = |j: usize, g: usize| &values[j * k + g * GROUP..][..GROUP];
    let scale = |j, g| group(j, g).iter().fold(0f32, |m, x| x.abs().max(m)) / 7.0;
    let code = |j: usize, i: usize| ((values[j * k + i] / scale(j, i / GROUP)).round() as i32 + 8) as u32;
    let words = (0..k / 8 * n).flat_map(|word| {
        let (i, j) = (word / n * 8, word % n);
        (0..8).fold(0u32, |w, p| w | code(j, i + p) << (4 * p)).to_le_bytes()
    });
    let scales = (0..groups * n).flat_map(|at| half::f16::from_f32(scale(at % n, at / n)).to_le_bytes());
    // Zeros are stored one too small: seven, in every nibble.
    let zeros = vec![0x77; groups * n / 2];
    [
        (format!("{base}.qweight"), "I32", vec![k / 8, n], words.collect()),
        (format!("{base}.scales"), "F16", vec![groups, n], scales.collect()),
        (format!("{base}.qzeros"), "I32", vec![groups, n / 8], zeros),
    ]
}

#[test]
fn a_checkpoint_that_comes_quantised_is_served_by_a_plugin_that_knows_nothing_of_it() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/demo/model");
    let weights = Weights::open(&model).expect("opens");
    let mut tensors = vec![];
    for (name, view) in weights.iter() {
        match (name.strip_suffix("_proj.weight"), view.shape) {
            (Some(base), &[n, k]) => {
                let values = view.data.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32());
                tensors.extend(gptq(&format!("{base}_proj"), n, k, &values.collect::<Vec<_>>()));
            }
            _ => tensors.push((name.to_owned(), view.dtype.name(), view.shape.to_vec(), view.data.to_vec())),
        }
    }
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("model.safetensors"), safetensors(&tensors)).expect("writes");
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(model.join(file), dir.path().join(file)).expect("copies");
    }
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(model.join("config.json")).expect("reads")).expect("is JSON");
    config["quantization_config"] =
        serde_json::json!({"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": false, "sym": true});
    fs::write(dir.path().join("config.json"), config.to_string()).expect("writes");

    let source = ModelSource::Named(dir.path().display().to_string());
    let mut packed = Scorer::new(&library::options(source, WORKER), TOKENS);
    let mut plain = demo(None);
    let [(_, known), _] = texts(&plain);
    let q = compare(&mut plain, &mut packed, &known[..20]);
    // Rounded to the nearest code, without the care that GPTQ takes: worse than `--quantization int4`, and far from chance.
    assert!(q.divergence > 1e-6 && q.divergence < 0.1 && q.same > 0.9, "{q:?}");

    config["quantization_config"]["bits"] = 3.into();
    fs::write(dir.path().join("config.json"), config.to_string()).expect("writes");
    let source = ModelSource::Named(dir.path().display().to_string());
    let error = Blueprint::draw(&library::options(source, WORKER)).err().expect("is refused").to_string();
    assert!(error.contains("config.json: quantization_config: \"bits\" is 3"), "{error}");
}
