//! `config.json` from the metadata, and the names that tensors have in a Hugging Face checkpoint.

use serde_json::{Value, json};

use super::Meta;
use crate::hub::{GgufFile, GgufPlace};

/// A translated model.
pub(super) struct Translated {
    pub(super) config: Value,
    family: Family,
    /// Size of a head.
    head_dim: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Family {
    Llama,
    Qwen2,
    Gpt2,
}

/// The layer's number and the rest of a name such as `blk.3.attn_q.weight`.
fn of_layer(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

impl Translated {
    /// Where a tensor of the file goes; `None`: nowhere.
    pub(super) fn place(&self, name: &str) -> Option<GgufPlace> {
        if self.family == Family::Gpt2 { gpt2_place(name) } else { self.llama_place(name) }
    }

    /// Whether a tensor says what is known already: rotary factors that were read, and GPT-2's head, which is its table.
    pub(super) fn is_redundant(&self, name: &str) -> bool {
        name == if self.family == Family::Gpt2 { "output.weight" } else { "rope_freqs.weight" }
    }

    fn llama_place(&self, name: &str) -> Option<GgufPlace> {
        let (mut rotary_head, transposed) = (None, false);
        let name = match (name, of_layer(name)) {
            ("token_embd.weight", _) => "model.embed_tokens.weight".to_owned(),
            ("output_norm.weight", _) => "model.norm.weight".to_owned(),
            ("output.weight", _) => "lm_head.weight".to_owned(),
            (_, Some((layer, rest))) => {
                let (part, kind) = rest.rsplit_once('.')?;
                let part = match part {
                    "attn_norm" => "input_layernorm",
                    "ffn_norm" => "post_attention_layernorm",
                    "attn_q" => "self_attn.q_proj",
                    "attn_k" => "self_attn.k_proj",
                    "attn_v" => "self_attn.v_proj",
                    "attn_output" => "self_attn.o_proj",
                    "ffn_gate" => "mlp.gate_proj",
                    "ffn_up" => "mlp.up_proj",
                    "ffn_down" => "mlp.down_proj",
                    _ => return None,
                };
                // llama.cpp rotates neighbours where the checkpoint rotates halves, and orders the rows so.
                if self.family == Family::Llama && part.ends_with("q_proj") | part.ends_with("k_proj") {
                    rotary_head = Some(self.head_dim);
                }
                format!("model.layers.{layer}.{part}.{kind}")
            }
            _ => return None,
        };
        Some(GgufPlace { name, rotary_head, transposed })
    }
}

fn gpt2_place(name: &str) -> Option<GgufPlace> {
    let mut transposed = false;
    let name = match (name, of_layer(name)) {
        ("token_embd.weight", _) => "wte.weight".to_owned(),
        ("position_embd.weight", _) => "wpe.weight".to_owned(),
        ("output_norm.weight" | "output_norm.bias", _) => name.replace("output_norm", "ln_f"),
        (_, Some((layer, rest))) => {
            let (part, kind) = rest.rsplit_once('.')?;
            let (part, matrix) = match part {
                "attn_norm" => ("ln_1", false),
                "ffn_norm" => ("ln_2", false),
                "attn_qkv" => ("attn.c_attn", true),
                "attn_output" => ("attn.c_proj", true),
                "ffn_up" => ("mlp.c_fc", true),
                "ffn_down" => ("mlp.c_proj", true),
                _ => return None,
            };
            transposed = matrix && kind == "weight";
            format!("h.{layer}.{part}.{kind}")
        }
        _ => return None,
    };
    Some(GgufPlace { name, rotary_head: None, transposed })
}

/// The configuration of the model in a file.
pub(super) fn translate(meta: &Meta<'_>, file: &GgufFile) -> Result<Translated, String> {
    let architecture = meta.text("general.architecture")?.unwrap_or_default();
    let has = |name: &str| file.tensors().any(|(n, _)| n == name);
    match architecture {
        "llama" => llama(meta, Family::Llama, "llama", has("output.weight"), file),
        "qwen2" => llama(meta, Family::Qwen2, "qwen2", has("output.weight"), file),
        "gpt2" => gpt2(meta, file),
        _ => Err(meta.wrong("general.architecture", "supported are llama, qwen2 and gpt2")),
    }
}

/// Rows of the table of embeddings.
fn vocabulary(file: &GgufFile) -> Result<usize, String> {
    let table = file.tensors().find(|(name, _)| *name == "token_embd.weight");
    table.and_then(|(_, shape)| shape.first().copied()).ok_or_else(|| "tensor \"token_embd.weight\" is missing".into())
}

fn llama(meta: &Meta<'_>, family: Family, of: &str, untied: bool, file: &GgufFile) -> Result<Translated, String> {
    let key = |name: &str| format!("{of}.{name}");
    let (hidden, heads) = (meta.need(&key("embedding_length"))?, meta.need(&key("attention.head_count"))?);
    if heads == 0 || hidden % heads != 0 {
        return Err(meta.wrong(&key("attention.head_count"), &format!("it must divide {hidden}")));
    }
    let head_dim = meta.size(&key("attention.key_length"))?.unwrap_or(hidden / heads);
    for name in ["rope.dimension_count", "attention.value_length"] {
        if meta.size(&key(name))?.is_some_and(|n| n != head_dim) {
            return Err(meta.wrong(&key(name), &format!("supported is the size of a head, {head_dim}")));
        }
    }
    if meta.size(&key("expert_count"))?.is_some_and(|n| n > 0) {
        return Err(meta.wrong(&key("expert_count"), "mixtures of experts are not read from GGUF files"));
    }
    if meta.size(&key("attention.sliding_window"))?.is_some_and(|n| n > 0) {
        return Err(meta.wrong(&key("attention.sliding_window"), "sliding windows are not read from GGUF files"));
    }
    let biased = |part: &str| file.tensors().any(|(name, _)| of_layer(name).is_some_and(|(_, rest)| rest == part));
    if family == Family::Llama && biased("attn_q.bias") {
        return Err(
            "tensor \"blk.0.attn_q.bias\": biases of the llama architecture are not read from GGUF files".into()
        );
    }
    let eps = meta.float(&key("attention.layer_norm_rms_epsilon"))?;
    let mut config = json!({
        "architectures": [if family == Family::Llama { "LlamaForCausalLM" } else { "Qwen2ForCausalLM" }],
        "model_type": of,
        "hidden_size": hidden,
        "intermediate_size": meta.need(&key("feed_forward_length"))?,
        "num_hidden_layers": meta.need(&key("block_count"))?,
        "num_attention_heads": heads,
        "num_key_value_heads": meta.size(&key("attention.head_count_kv"))?.unwrap_or(heads),
        "head_dim": head_dim,
        "max_position_embeddings": meta.need(&key("context_length"))?,
        "rms_norm_eps": eps.ok_or_else(|| format!("metadata \"{}\" is missing", key("attention.layer_norm_rms_epsilon")))?,
        "rope_theta": meta.float(&key("rope.freq_base"))?.unwrap_or(10_000.0),
        "hidden_act": "silu",
        "vocab_size": vocabulary(file)?,
        "tie_word_embeddings": !untied,
    });
    match meta.text(&key("rope.scaling.type"))? {
        None | Some("none") => {}
        Some("linear") => {
            let factor = meta.float(&key("rope.scaling.factor"))?.unwrap_or(1.0);
            config["rope_scaling"] = json!({"rope_type": "linear", "factor": factor});
        }
        Some(_) => return Err(meta.wrong(&key("rope.scaling.type"), "supported are none and linear")),
    }
    if file.tensors().any(|(name, _)| name == "rope_freqs.weight") {
        config["rope_scaling"] = llama3(file, head_dim, config["rope_theta"].as_f64().unwrap_or(10_000.0))?;
    }
    Ok(Translated { config, family, head_dim })
}

/// Llama 3's scaling, of which the file holds the divisors of the frequencies and not the parameters: those of the
/// published models are tried.
fn llama3(file: &GgufFile, head_dim: usize, theta: f64) -> Result<Value, String> {
    let divisors = file.floats("rope_freqs.weight").ok_or("tensor \"rope_freqs.weight\" is not of floats")?;
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    let (low, high, original) = (1.0, 4.0, 8192.0);
    let wanted = |i: usize| {
        let length = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
        if length < original / high {
            1.0
        } else if length > original / low {
            factor
        } else {
            let smooth = (original / length - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    let same = |(i, x): (usize, &f32)| (f64::from(*x) - wanted(i)).abs() <= 1e-3 * wanted(i);
    if divisors.len() != head_dim / 2 || !divisors.iter().enumerate().all(same) {
        return Err("tensor \"rope_freqs.weight\": other factors than those of Llama 3 are not supported".into());
    }
    Ok(json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original as usize}))
}

fn gpt2(meta: &Meta<'_>, file: &GgufFile) -> Result<Translated, String> {
    let hidden = meta.need("gpt2.embedding_length")?;
    let eps = meta.float("gpt2.attention.layer_norm_epsilon")?;
    let same = |a: &str, b: &str| {
        file.tensors().find(|(n, _)| *n == a).map(|t| t.1) == file.tensors().find(|(n, _)| *n == b).map(|t| t.1)
    };
    if file.tensors().any(|(name, _)| name == "output.weight") && !same("output.weight", "token_embd.weight") {
        return Err("tensor \"output.weight\" is not the table of embeddings, which is GPT-2's head".into());
    }
    let config = json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": hidden,
        "n_inner": meta.need("gpt2.feed_forward_length")?,
        "n_layer": meta.need("gpt2.block_count")?,
        "n_head": meta.need("gpt2.attention.head_count")?,
        "n_positions": meta.need("gpt2.context_length")?,
        "layer_norm_epsilon": eps.ok_or("metadata \"gpt2.attention.layer_norm_epsilon\" is missing")?,
        "activation_function": "gelu_new",
        "vocab_size": vocabulary(file)?,
    });
    Ok(Translated { config, family: Family::Gpt2, head_dim: 0 })
}
