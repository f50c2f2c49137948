//! The Llama family: `LlamaForCausalLM`, `MistralForCausalLM` and `Qwen2ForCausalLM`.
//!
//! One graph with three sets of defaults (Touvron et al., arXiv:2302.13971; Jiang et al., arXiv:2310.06825; Yang et al.,
//! arXiv:2407.10671): pre-norm blocks of rotary attention with grouped keys and a gated MLP.

use plugin_api::config::{Fields, MAX_HEAD_DIM, MAX_LAYERS};
use plugin_api::rope::{RopeConfig, RopeModel};
use plugin_api::{
    Activation, AttentionOptions, BuildError, BuildRequest, Builder, Description, Graph, Model, Plugin, SpecError,
    Value,
};

/// The plugin.
#[derive(Debug)]
pub struct Llama;

plugin_api::export_plugin!(Llama);

impl Plugin for Llama {
    fn describe() -> Description {
        plugin_api::description!("llama", ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"])
    }

    fn build(request: &BuildRequest) -> Result<Model, BuildError> {
        build(&request.config)
    }
}

/// Builds the model of a `config.json`.
pub fn build(config: &serde_json::Value) -> Result<Model, BuildError> {
    let c = Config::read(config)?;
    let decode = forward(&c)?;
    Ok(Model {
        architecture: c.architecture,
        context_length: c.rope.context_length(),
        graphs: [("decode".to_owned(), decode)].into(),
    })
}

/// What shapes the graph.
struct Config {
    architecture: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    activation: Activation,
    norm_eps: f32,
    /// Biases of q, k and v; of the attention's output; of the MLP.
    qkv_bias: bool,
    output_bias: bool,
    mlp_bias: bool,
    /// The output head is the embedding.
    tied: bool,
    /// The sliding window of each layer.
    windows: Vec<Option<u32>>,
    rope: RopeConfig,
}

/// What a class of transformers fills in where config.json is silent.
struct Defaults {
    max_positions: usize,
    kv_heads: Option<usize>,
}

impl Config {
    fn read(config: &serde_json::Value) -> Result<Config, BuildError> {
        let c = Fields::new(config)?;
        c.refuse(&["quantization_config", "compression_config"], "quantised checkpoints are not supported")?;
        let architecture = c.architecture()?;
        let defaults = match architecture {
            "LlamaForCausalLM" => Defaults { max_positions: 2048, kv_heads: None },
            "MistralForCausalLM" => Defaults { max_positions: 131_072, kv_heads: Some(8) },
            "Qwen2ForCausalLM" => Defaults { max_positions: 32_768, kv_heads: Some(32) },
            _ => {
                let known = Llama::describe().architectures.join(", ");
                return Err(c.wrong("architectures", format!("this plugin builds {known}")));
            }
        };
        let hidden_size = c.required_size("hidden_size")?;
        let layers = c.need("num_hidden_layers", c.size_up_to("num_hidden_layers", MAX_LAYERS)?)?;
        let heads = c.required_size("num_attention_heads")?;
        let kv_heads = match c.size("num_key_value_heads")? {
            Some(n) => n,
            None if c.has("num_key_value_heads") => heads,
            None => defaults.kv_heads.unwrap_or(heads),
        };
        if heads % kv_heads != 0 {
            return Err(c.wrong("num_attention_heads", format!("it must be a multiple of the {kv_heads} key heads")));
        }
        let head_dim = match c.size_up_to("head_dim", MAX_HEAD_DIM)? {
            Some(n) => n,
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => return Err(c.wrong("hidden_size", format!("it must be a multiple of the {heads} heads"))),
        };
        let max_positions = c.size("max_position_embeddings")?.unwrap_or(defaults.max_positions);
        let rope = RopeConfig::from_config(config, RopeModel { head_dim, max_positions, default_theta: 10_000.0 })?;
        rope.require_whole_heads(head_dim)?;
        let (qkv_bias, output_bias, mlp_bias) = match architecture {
            "LlamaForCausalLM" => {
                let bias = c.flag("attention_bias", false)?;
                (bias, bias, c.flag("mlp_bias", false)?)
            }
            "MistralForCausalLM" => {
                c.refuse(&["attention_bias", "mlp_bias"], "MistralForCausalLM has no biases")?;
                (false, false, false)
            }
            _ => (true, false, false),
        };
        Ok(Config {
            architecture: architecture.to_owned(),
            vocab_size: c.required_size("vocab_size")?,
            hidden_size,
            intermediate_size: c.required_size("intermediate_size")?,
            heads,
            kv_heads,
            head_dim,
            activation: c.activation("hidden_act", Activation::Silu)?,
            norm_eps: c.epsilon("rms_norm_eps")?.unwrap_or(1e-6),
            qkv_bias,
            output_bias,
            mlp_bias,
            tied: c.flag("tie_word_embeddings", false)?,
            windows: windows(&c, architecture, layers)?,
            rope,
        })
    }
}

/// The sliding window of every layer.
fn windows(c: &Fields<'_>, architecture: &str, layers: usize) -> Result<Vec<Option<u32>>, BuildError> {
    // In the config classes null is no window, and a field that is absent is 4096.
    let window = match c.size("sliding_window")? {
        None if !c.has("sliding_window") => Some(4096),
        size => size.map(|n| n as u32),
    };
    match architecture {
        "MistralForCausalLM" => {
            c.refuse(&["layer_types"], "MistralForCausalLM gives all layers one sliding_window")?;
            Ok(vec![window; layers])
        }
        "Qwen2ForCausalLM" => {
            let in_use = c.flag("use_sliding_window", false)?;
            qwen2_windows(c, window.filter(|_| in_use), layers)
        }
        _ => Ok(vec![None; layers]),
    }
}

/// As `layer_types` says, else from layer `max_window_layers` on.
fn qwen2_windows(c: &Fields<'_>, window: Option<u32>, layers: usize) -> Result<Vec<Option<u32>>, BuildError> {
    let first = c.count("max_window_layers")?.unwrap_or(28);
    let Some(types) = c.list("layer_types")? else {
        return Ok((0..layers).map(|i| window.filter(|_| i >= first)).collect());
    };
    if types.len() != layers {
        return Err(c.wrong("layer_types", format!("it must have one entry for each of the {layers} layers")));
    }
    let window_of = |kind: &serde_json::Value| match (kind.as_str(), window) {
        (Some("full_attention"), _) => Ok(None),
        (Some("sliding_attention"), Some(size)) => Ok(Some(size)),
        (Some("sliding_attention"), None) => Err("no window is in use: see use_sliding_window and sliding_window"),
        _ => Err("known are full_attention and sliding_attention"),
    };
    types.iter().map(|kind| window_of(kind).map_err(|e| c.wrong("layer_types", e))).collect()
}

/// Tokens to logits.
fn forward(c: &Config) -> Result<Graph, SpecError> {
    let mut b = Builder::new();
    let token_ids = b.token_ids();
    let (embedding, hidden) = b.scope("model", |b| {
        let embedding = b.weight("embed_tokens.weight", [c.vocab_size, c.hidden_size]);
        let mut hidden = b.embedding(token_ids, embedding);
        let angles = b.scope("rotary_emb", |b| c.rope.tables(b));
        for layer in 0..c.windows.len() {
            hidden = b.scope(format!("layers.{layer}"), |b| block(b, c, layer, hidden, angles));
        }
        let hidden = b.select_outputs(hidden);
        (embedding, b.rms_norm_layer("norm", hidden, c.norm_eps))
    });
    let logits =
        if c.tied { b.linear(hidden, embedding) } else { b.linear_layer("lm_head", hidden, c.vocab_size, false) };
    b.output("logits", logits);
    b.finish()
}

fn block(b: &mut Builder, c: &Config, layer: usize, hidden: Value, angles: (Value, Value)) -> Value {
    let normed = b.rms_norm_layer("input_layernorm", hidden, c.norm_eps);
    let attended = b.scope("self_attn", |b| attention(b, c, layer, normed, angles));
    let hidden = b.add(hidden, attended);
    let normed = b.rms_norm_layer("post_attention_layernorm", hidden, c.norm_eps);
    let fed = b.scope("mlp", |b| mlp(b, c, normed));
    b.add(hidden, fed)
}

fn attention(b: &mut Builder, c: &Config, layer: usize, x: Value, angles: (Value, Value)) -> Value {
    let mut heads = |name: &str, count: usize| {
        let flat = b.linear_layer(name, x, count * c.head_dim, c.qkv_bias);
        b.split_heads(flat, count, c.head_dim)
    };
    let (q, k, v) = (heads("q_proj", c.heads), heads("k_proj", c.kv_heads), heads("v_proj", c.kv_heads));
    let (q, k) = (b.rope(q, angles, false), b.rope(k, angles, false));
    let scale = 1.0 / (c.head_dim as f32).sqrt();
    let options = AttentionOptions { window: c.windows[layer], ..Default::default() };
    let mixed = b.attention(layer, [q, k, v], scale, options);
    let mixed = b.merge_heads(mixed);
    b.linear_layer("o_proj", mixed, c.hidden_size, c.output_bias)
}

fn mlp(b: &mut Builder, c: &Config, x: Value) -> Value {
    let gate = b.linear_layer("gate_proj", x, c.intermediate_size, c.mlp_bias);
    let up = b.linear_layer("up_proj", x, c.intermediate_size, c.mlp_bias);
    let inner = b.gated(gate, up, c.activation);
    b.linear_layer("down_proj", inner, c.hidden_size, c.mlp_bias)
}
