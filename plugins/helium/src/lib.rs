//! The `helium` architecture: `HeliumForCausalLM` (Kyutai's Helium 1).
//!
//! A Llama-like decoder whose rotary embedding turns neighbouring elements, (2i, 2i + 1), instead of halves.

use plugin_api::config::{Fields, MAX_HEAD_DIM, MAX_LAYERS};
use plugin_api::rope::{RopeConfig, RopeModel};
use plugin_api::{
    Activation, AttentionOptions, BuildError, BuildRequest, Builder, Description, Graph, Model, Plugin, SpecError,
    Value,
};

/// The plugin.
#[derive(Debug)]
pub struct Helium;

plugin_api::export_plugin!(Helium);

impl Plugin for Helium {
    fn describe() -> Description {
        plugin_api::description!("helium", ["HeliumForCausalLM"])
    }

    fn build(request: &BuildRequest) -> Result<Model, BuildError> {
        build(&request.config)
    }
}

/// Builds the model of a `config.json`.
pub fn build(config: &serde_json::Value) -> Result<Model, BuildError> {
    let c = Config::read(config)?;
    Ok(Model {
        architecture: "HeliumForCausalLM".to_owned(),
        context_length: c.rope.context_length(),
        graphs: [("decode".to_owned(), forward(&c)?)].into(),
    })
}

/// What shapes the graph.
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    activation: Activation,
    norm_eps: f32,
    /// Biases of q, k and v; the attention's output has none.
    attention_bias: bool,
    mlp_bias: bool,
    /// The output head is the embedding.
    tied: bool,
    rope: RopeConfig,
}

impl Config {
    fn read(config: &serde_json::Value) -> Result<Config, BuildError> {
        let c = Fields::new(config)?;
        c.refuse(&["quantization_config", "compression_config"], "quantised checkpoints are not supported")?;
        if c.architecture()? != "HeliumForCausalLM" {
            return Err(c.wrong("architectures", "this plugin builds HeliumForCausalLM"));
        }
        let hidden_size = c.required_size("hidden_size")?;
        let heads = c.required_size("num_attention_heads")?;
        let kv_heads = c.size("num_key_value_heads")?.unwrap_or(20);
        if heads % kv_heads != 0 {
            return Err(c.wrong("num_attention_heads", format!("it must be a multiple of the {kv_heads} key heads")));
        }
        let head_dim = c.size_up_to("head_dim", MAX_HEAD_DIM)?.unwrap_or(128);
        if heads * head_dim != hidden_size {
            let heads = format!("{heads} heads of size {head_dim}");
            return Err(c.wrong("hidden_size", format!("it must be {heads}: the output projection is square")));
        }
        let max_positions = c.size("max_position_embeddings")?.unwrap_or(4096);
        let rope = RopeConfig::from_config(config, RopeModel { head_dim, max_positions, default_theta: 100_000.0 })?;
        rope.require_whole_heads(head_dim)?;
        Ok(Config {
            vocab_size: c.required_size("vocab_size")?,
            hidden_size,
            intermediate_size: c.required_size("intermediate_size")?,
            layers: c.need("num_hidden_layers", c.size_up_to("num_hidden_layers", MAX_LAYERS)?)?,
            heads,
            kv_heads,
            head_dim,
            activation: c.activation("hidden_act", Activation::Silu)?,
            norm_eps: c.epsilon("rms_norm_eps")?.unwrap_or(1e-8),
            attention_bias: c.flag("attention_bias", false)?,
            mlp_bias: c.flag("mlp_bias", false)?,
            tied: c.flag("tie_word_embeddings", false)?,
            rope,
        })
    }
}

/// Tokens to logits.
fn forward(c: &Config) -> Result<Graph, SpecError> {
    let mut b = Builder::new();
    let token_ids = b.token_ids();
    let (embedding, hidden) = b.scope("model", |b| {
        let embedding = b.weight("embed_tokens.weight", [c.vocab_size, c.hidden_size]);
        let mut hidden = b.embedding(token_ids, embedding);
        let angles = b.scope("rotary_emb", |b| c.rope.tables(b));
        for layer in 0..c.layers {
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
        let flat = b.linear_layer(name, x, count * c.head_dim, c.attention_bias);
        b.split_heads(flat, count, c.head_dim)
    };
    let (q, k, v) = (heads("q_proj", c.heads), heads("k_proj", c.kv_heads), heads("v_proj", c.kv_heads));
    let (q, k) = (b.rope(q, angles, true), b.rope(k, angles, true));
    let scale = 1.0 / (c.head_dim as f32).sqrt();
    let mixed = b.attention(layer, [q, k, v], scale, AttentionOptions::default());
    let mixed = b.merge_heads(mixed);
    b.linear_layer("o_proj", mixed, c.hidden_size, false)
}

fn mlp(b: &mut Builder, c: &Config, x: Value) -> Value {
    let gate = b.linear_layer("gate_proj", x, c.intermediate_size, c.mlp_bias);
    let up = b.linear_layer("up_proj", x, c.intermediate_size, c.mlp_bias);
    let inner = b.gated(gate, up, c.activation);
    b.linear_layer("down_proj", inner, c.hidden_size, c.mlp_bias)
}
