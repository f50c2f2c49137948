//! GGUF files that candle writes and reads as well, and files that are broken.

use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value as Entry};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use super::{Meta, config, tokenizer};
use crate::hub::{GgufFile, GgufPlace, PackedFormat};

fn write(path: &Path, metadata: &[(&str, Entry)], tensors: &[(&str, QTensor)]) {
    let mut file = std::fs::File::create(path).unwrap();
    let metadata: Vec<(&str, &Entry)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
}

fn tensor(n: usize, k: usize, kind: GgmlDType) -> QTensor {
    let value = |i: usize| ((i * 2_654_435_761) % 1_000_003) as f32 / 500_001.5 - 1.0 + (i / 37 % 5) as f32 * 0.2;
    let values: Vec<f32> = (0..n * k).map(value).collect();
    QTensor::quantize(&Tensor::from_vec(values, (n, k), &Device::Cpu).unwrap(), kind).unwrap()
}

#[test]
fn blocks_mean_what_candle_says() {
    let dir = tempfile::tempdir().unwrap();
    let kinds = [
        (GgmlDType::Q8_0, PackedFormat::Int8Groups(32)),
        (GgmlDType::Q4_0, PackedFormat::Int4 { group: 32, zeros: false }),
        (GgmlDType::Q4K, PackedFormat::Int4 { group: 32, zeros: true }),
        (GgmlDType::Q5K, PackedFormat::Other),
        (GgmlDType::Q6K, PackedFormat::Other),
        (GgmlDType::F16, PackedFormat::Floats),
        (GgmlDType::F32, PackedFormat::Floats),
    ];
    let (n, k) = (6, 512);
    for (kind, format) in kinds {
        let path = dir.path().join("a.gguf");
        let written = tensor(n, k, kind);
        let want: Vec<f32> = written.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        write(&path, &[], &[("a", written)]);
        for transposed in [false, true] {
            // So that floats are packed too: heads of two rows, which are in order.
            let place = GgufPlace { name: "b".into(), rotary_head: (!transposed).then_some(2), transposed };
            let weights = GgufFile::open(&path).unwrap().into_weights(&|_| Some(place.clone())).unwrap();
            let names: Vec<_> = weights.describe().map(|(name, _, shape)| (name, shape.to_vec())).collect();
            let shape = if transposed { vec![k, n] } else { vec![n, k] };
            assert_eq!(names, [("b", shape)], "{kind:?}");
            let packed = weights.packed("b").unwrap();
            let got = packed.values();
            for i in 0..n * k {
                let (a, b) = (if transposed { got[i % k * n + i / k] } else { got[i] }, want[i]);
                assert!((a - b).abs() <= b.abs() * 1e-6, "{kind:?} {transposed} [{i}]: {a}, {b}");
            }
            if transposed {
                assert_eq!(packed.format(), PackedFormat::Floats, "{kind:?}");
                let mut row = vec![0.0; n];
                packed.floats(3, &mut row);
                assert_eq!(row, got[3 * n..4 * n]);
                continue;
            }
            assert_eq!(packed.format(), format, "{kind:?}");
            if matches!(format, PackedFormat::Int8Groups(_) | PackedFormat::Int4 { .. }) {
                for row in 0..n {
                    let (mut codes, mut scales, mut zeros) = (vec![0; k], vec![0.0; k / 32], vec![0.0; k / 32]);
                    packed.codes(row, &mut codes, &mut scales, &mut zeros);
                    let middle = if format == (PackedFormat::Int4 { group: 32, zeros: false }) { 8.0 } else { 0.0 };
                    for i in 0..k {
                        let zero = if middle > 0.0 { middle } else { zeros[i / 32] };
                        let (a, b) = (scales[i / 32] * (f32::from(codes[i]) - zero), want[row * k + i]);
                        assert!((a - b).abs() <= 1e-5, "{kind:?} {row} [{i}]: {a}, {b}");
                    }
                }
            }
        }
    }
}

#[test]
fn rows_of_heads_are_put_in_the_checkpoint_s_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    // Two heads of six rows, each row its number.
    let values: Vec<f32> = (0..12 * 32).map(|i| (i / 32) as f32).collect();
    let stored = Tensor::from_vec(values, (12, 32), &Device::Cpu).unwrap();
    write(&path, &[], &[("a", QTensor::quantize(&stored, GgmlDType::F32).unwrap())]);
    let place = GgufPlace { name: "b".into(), rotary_head: Some(6), transposed: false };
    let weights = GgufFile::open(&path).unwrap().into_weights(&|_| Some(place.clone())).unwrap();
    let order: Vec<f32> = weights.packed("b").unwrap().values().chunks(32).map(|row| row[0]).collect();
    assert_eq!(order, [0.0, 2.0, 4.0, 1.0, 3.0, 5.0, 6.0, 8.0, 10.0, 7.0, 9.0, 11.0]);
    let place = GgufPlace { rotary_head: Some(5), ..place };
    let error = GgufFile::open(&path).unwrap().into_weights(&|_| Some(place.clone())).err().unwrap().to_string();
    assert!(error.contains("tensor \"a\"") && error.contains("12 rows"), "{error}");
}

fn text(s: &str) -> Entry {
    Entry::String(s.into())
}

fn texts(all: &[&str]) -> Entry {
    Entry::Array(all.iter().map(|s| text(s)).collect())
}

fn small(path: &Path) {
    let metadata =
        [("general.architecture", text("llama")), ("a.list", texts(&["x", "yy"])), ("a.float", Entry::F32(0.5))];
    write(path, &metadata, &[("a", tensor(2, 32, GgmlDType::Q8_0)), ("b", tensor(1, 8, GgmlDType::F32))]);
}

#[test]
fn files_that_are_cut_off_or_damaged_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    small(&path);
    let whole = std::fs::read(&path).unwrap();
    assert_eq!(GgufFile::open(&path).unwrap().tensors().count(), 2);
    // The data of the last tensor may be followed by padding, which nobody misses.
    let padding = whole.len() - GgufFile::open(&path).unwrap().end();
    for length in 0..whole.len() - padding {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = GgufFile::open(&path).err().unwrap_or_else(|| panic!("{length} bytes were read")).to_string();
        assert!(error.contains("a.gguf"), "{error}");
    }
    // Whatever a byte becomes, the file is read or refused.
    for at in 0..whole.len().min(400) {
        for value in [0, 1, 0x7f, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            std::fs::write(&path, &damaged).unwrap();
            if let Ok(file) = GgufFile::open(&path) {
                let place = |name: &str| Some(GgufPlace { name: name.into(), rotary_head: None, transposed: false });
                let _ = file.into_weights(&place).map(|w| w.packed("a").map(|p| p.values()));
            }
        }
    }
    let fails = |at: usize, bytes: &[u8], parts: &[&str]| {
        let mut damaged = whole.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&path, &damaged).unwrap();
        let error = GgufFile::open(&path).err().unwrap().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    fails(0, b"GGML", &["no GGUF file"]);
    fails(4, &[1], &["version 1"]);
    fails(8, &[0xff; 8], &["number of tensors is 18446744073709551615"]);
    fails(16, &[0xff; 8], &["metadata entries is 18446744073709551615", "65536"]);
}

fn llama_metadata() -> Vec<(&'static str, Entry)> {
    vec![
        ("general.architecture", text("llama")),
        ("llama.embedding_length", Entry::U32(64)),
        ("llama.feed_forward_length", Entry::U32(96)),
        ("llama.block_count", Entry::U32(1)),
        ("llama.attention.head_count", Entry::U32(4)),
        ("llama.attention.head_count_kv", Entry::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Entry::F32(1e-5)),
        ("llama.context_length", Entry::U32(128)),
        ("llama.rope.freq_base", Entry::F32(500_000.0)),
    ]
}

/// The configuration that metadata with some changes give.
fn configuration(changes: &[(&'static str, Entry)], more: Vec<(&str, QTensor)>) -> Result<serde_json::Value, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let mut metadata = llama_metadata();
    metadata.retain(|(key, _)| changes.iter().all(|(changed, _)| key != changed));
    metadata.extend(changes.iter().cloned());
    let mut tensors = vec![("token_embd.weight", tensor(50, 64, GgmlDType::F32))];
    tensors.extend(more);
    write(&path, &metadata, &tensors);
    let file = GgufFile::open(&path).unwrap();
    config::translate(&Meta { of: file.metadata() }, &file).map(|translated| translated.config)
}

#[test]
fn metadata_become_a_configuration() {
    let config = configuration(&[], vec![]).unwrap();
    assert_eq!(config["architectures"][0], "LlamaForCausalLM");
    assert_eq!((&config["hidden_size"], &config["num_key_value_heads"]), (&64.into(), &2.into()));
    assert_eq!((&config["rope_theta"], &config["tie_word_embeddings"]), (&500_000.0.into(), &true.into()));
    assert_eq!((&config["vocab_size"], &config["head_dim"]), (&50.into(), &16.into()));
    let untied = configuration(&[], vec![("output.weight", tensor(50, 64, GgmlDType::F32))]).unwrap();
    assert_eq!(untied["tie_word_embeddings"], false);
    let scaled = [("llama.rope.scaling.type", text("linear")), ("llama.rope.scaling.factor", Entry::F32(4.0))];
    let scaled = configuration(&scaled, vec![]).unwrap();
    assert_eq!(scaled["rope_scaling"], serde_json::json!({"rope_type": "linear", "factor": 4.0}));

    let cases: Vec<(&'static str, Entry, &str)> = vec![
        ("general.architecture", text("mamba"), "supported are llama, qwen2 and gpt2"),
        ("llama.attention.head_count", Entry::U32(5), "must divide 64"),
        ("llama.attention.head_count", text("4"), "must be a number"),
        ("llama.rope.dimension_count", Entry::U32(8), "size of a head, 16"),
        ("llama.expert_count", Entry::U32(8), "mixtures of experts"),
        ("llama.attention.sliding_window", Entry::U32(8), "sliding windows"),
        ("llama.rope.scaling.type", text("yarn"), "supported are none and linear"),
    ];
    for (key, value, part) in cases {
        let error = configuration(&[(key, value)], vec![]).unwrap_err();
        assert!(error.contains(&format!("\"{key}\"")) && error.contains(part), "{error}");
    }
    let odd = configuration(&[], vec![("rope_freqs.weight", tensor(1, 8, GgmlDType::F32))]).unwrap_err();
    assert!(odd.contains("rope_freqs.weight"), "{odd}");
}

/// The tokenizer that metadata give.
fn tokenizer_of(metadata: &[(&str, Entry)]) -> Result<crate::text::Tokenizer, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    write(&path, metadata, &[("a", tensor(1, 8, GgmlDType::F32))]);
    let file = GgufFile::open(&path).unwrap();
    let (tokenizer, config) = tokenizer::translate(&Meta { of: file.metadata() })?;
    let (tokenizer, config) = (tokenizer.to_string(), config.to_string());
    crate::text::Tokenizer::from_bytes(tokenizer.as_bytes(), Some(config.as_bytes()), None).map_err(|e| e.to_string())
}

fn numbers(all: &[i32]) -> Entry {
    Entry::Array(all.iter().map(|&n| Entry::I32(n)).collect())
}

#[test]
fn sentence_pieces_become_a_tokenizer() {
    let tokens = ["<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>", "▁", "a", "b", "c", "ab", "▁a", "▁ab", "bc", "<|user|>"];
    let scores = [0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -10.0, -11.0, -12.0, -2.0, -1.0, -3.0, -4.0, 0.0];
    let metadata = [
        ("tokenizer.ggml.model", text("llama")),
        ("tokenizer.ggml.tokens", texts(&tokens)),
        ("tokenizer.ggml.scores", Entry::Array(scores.iter().map(|&s| Entry::F32(s)).collect())),
        ("tokenizer.ggml.token_type", numbers(&[2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 1, 1, 4])),
        ("tokenizer.ggml.bos_token_id", Entry::U32(1)),
        ("tokenizer.ggml.eos_token_id", Entry::U32(2)),
        ("tokenizer.ggml.unknown_token_id", Entry::U32(0)),
    ];
    let tokenizer = tokenizer_of(&metadata).unwrap();
    // "▁ab": ▁a is the best join, then ▁ab; after it b c is joined.
    assert_eq!(tokenizer.encode("abbc", true).unwrap(), [1, 11, 12]);
    assert_eq!(tokenizer.encode("aé", false).unwrap(), [10, 3, 4]);
    assert_eq!(tokenizer.encode("a<|user|>", false).unwrap(), [10, 13]);
    assert_eq!(tokenizer.decode(&[1, 11, 12, 10, 3, 4], true).unwrap(), "abbc aé");
    let mut broken = metadata.to_vec();
    broken[2].1 = Entry::Array(vec![Entry::F32(0.0)]);
    assert!(tokenizer_of(&broken).err().unwrap().contains("tokenizer.ggml.scores"));
    let mut broken = metadata.to_vec();
    broken[4].1 = Entry::U32(99);
    assert!(tokenizer_of(&broken).err().unwrap().contains("bos_token_id"));
}

#[test]
fn bytes_become_a_tokenizer() {
    let tokens = ["a", "b", "c", "Ġ", "1", "2", "3", "4", "ab", "Ġa", "<|end|>", "12", "123"];
    let metadata = |pre: &str| {
        vec![
            ("tokenizer.ggml.model", text("gpt2")),
            ("tokenizer.ggml.pre", text(pre)),
            ("tokenizer.ggml.tokens", texts(&tokens)),
            ("tokenizer.ggml.merges", texts(&["a b", "Ġ a", "1 2", "12 3"])),
            ("tokenizer.ggml.token_type", numbers(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 1, 1])),
            ("tokenizer.ggml.bos_token_id", Entry::U32(10)),
            ("tokenizer.ggml.eos_token_id", Entry::U32(10)),
            ("tokenizer.chat_template", text("{{ messages[0].content }}{{ eos_token }}")),
        ]
    };
    let encode = |pre: &str, text: &str| tokenizer_of(&metadata(pre)).unwrap().encode(text, true).unwrap();
    assert_eq!(encode("gpt-2", "ab ac<|end|>"), [8, 9, 2, 10]);
    // Digits: all together, three together, one by one; and llama-bpe begins with a token.
    assert_eq!(encode("gpt-2", "1234"), [12, 7]);
    assert_eq!(encode("llama-bpe", "1234"), [10, 12, 7]);
    assert_eq!(encode("qwen2", "1234"), [4, 5, 6, 7]);
    let tokenizer = tokenizer_of(&metadata("gpt-2")).unwrap();
    assert_eq!(tokenizer.decode(&[8, 9, 2], true).unwrap(), "ab ac");
    let error = tokenizer_of(&metadata("tekken")).err().unwrap();
    assert!(error.contains("tokenizer.ggml.pre") && error.contains("tekken"), "{error}");
    let mut broken = metadata("gpt-2");
    broken[3].1 = texts(&["ab"]);
    assert!(tokenizer_of(&broken).err().unwrap().contains("\"ab\" is no pair"));
    broken = metadata("gpt-2");
    broken[2].1 = texts(&["a", "a"]);
    broken[4].1 = numbers(&[1, 1]);
    assert!(tokenizer_of(&broken).err().unwrap().contains("is token 0 and token 1"));
}

#[test]
fn tensors_of_other_models_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let options = crate::llm::LlmOptions { skip_tokenizer_init: true, ..Default::default() };
    let open = |extra: &str| {
        let tensors = [("token_embd.weight", tensor(50, 64, GgmlDType::F32)), (extra, tensor(1, 8, GgmlDType::F32))];
        write(&path, &llama_metadata(), &tensors);
        super::open(&path.display().to_string(), &options)
    };
    let checkpoint = open("output_norm.weight").unwrap();
    assert_eq!((checkpoint.name.as_str(), checkpoint.architecture().unwrap()), ("a", "LlamaForCausalLM"));
    assert!(checkpoint.weights.get("model.embed_tokens.weight").is_some() && checkpoint.tokenizer.is_none());
    let error = open("blk.0.attn_q_norm.weight").err().unwrap().to_string();
    assert!(error.contains("a.gguf: tensor \"blk.0.attn_q_norm.weight\" has no place"), "{error}");
}
