//! The `gpt2` architecture: `GPT2LMHeadModel` (Radford et al., 2019).
//!
//! Learned positions, layer norms before attention and MLP, and checkpoints that store matrices as [inputs, outputs].

use plugin_api::config::{Fields, MAX_LAYERS};
use plugin_api::{
    Activation, AttentionOptions, BuildError, BuildRequest, Builder, Description, Graph, Model, Plugin, SpecError,
    Value,
};

/// The plugin.
#[derive(Debug)]
pub struct Gpt2;

plugin_api::export_plugin!(Gpt2);

impl Plugin for Gpt2 {
    fn describe() -> Description {
        plugin_api::description!("gpt2", ["GPT2LMHeadModel"])
    }

    fn build(request: &BuildRequest) -> Result<Model, BuildError> {
        let c = Config::read(request)?;
        Ok(Model {
            architecture: "GPT2LMHeadModel".to_owned(),
            context_length: c.positions as u64,
            graphs: [("decode".to_owned(), forward(&c)?)].into(),
        })
    }
}

/// What shapes the graph.
struct Config {
    vocab_size: usize,
    positions: usize,
    hidden_size: usize,
    inner_size: usize,
    layers: usize,
    heads: usize,
    activation: Activation,
    norm_eps: f32,
    /// Scores are divided by the root of the head size.
    scale_by_size: bool,
    /// Scores of layer i are divided by i + 1.
    scale_by_layer: bool,
    /// The output head is the embedding.
    tied: bool,
    /// What stands before the names of all weights but the head's.
    prefix: &'static str,
}

impl Config {
    fn read(request: &BuildRequest) -> Result<Config, BuildError> {
        let c = Fields::new(&request.config)?;
        c.refuse(&["quantization_config", "compression_config"], "quantised checkpoints are not supported")?;
        c.refuse(&["add_cross_attention"], "a decoder with cross-attention is not supported")?;
        if c.architecture()? != "GPT2LMHeadModel" {
            return Err(c.wrong("architectures", "this plugin builds GPT2LMHeadModel"));
        }
        // The config class takes the general names of these fields too.
        let size = |name: &str, general: &str| c.need(name, c.size(name)?.or(c.size(general)?));
        let hidden_size = size("n_embd", "hidden_size")?;
        let heads = size("n_head", "num_attention_heads")?;
        if hidden_size % heads != 0 {
            return Err(c.wrong("n_embd", format!("it must be a multiple of the {heads} heads")));
        }
        let layers = size("n_layer", "num_hidden_layers")?;
        if layers > MAX_LAYERS {
            return Err(c.wrong("n_layer", format!("it must be at most {MAX_LAYERS}")));
        }
        // reorder_and_upcast_attn only changes in which order and precision scores are scaled: they are f32 here anyway.
        c.flag("reorder_and_upcast_attn", false)?;
        // Checkpoints of the bare model, among them the original gpt2, lack the prefix.
        let bare = request.tensor("wte.weight").is_some() && request.tensor("transformer.wte.weight").is_none();
        Ok(Config {
            vocab_size: c.required_size("vocab_size")?,
            positions: c.size("n_positions")?.or(c.size("max_position_embeddings")?).unwrap_or(1024),
            hidden_size,
            inner_size: c.size("n_inner")?.unwrap_or(4 * hidden_size),
            layers,
            heads,
            activation: c.activation("activation_function", Activation::GeluTanh)?,
            norm_eps: c.epsilon("layer_norm_epsilon")?.unwrap_or(1e-5),
            scale_by_size: c.flag("scale_attn_weights", true)?,
            scale_by_layer: c.flag("scale_attn_by_inverse_layer_idx", false)?,
            tied: c.flag("tie_word_embeddings", true)?,
            prefix: if bare { "" } else { "transformer." },
        })
    }
}

/// Tokens to logits.
fn forward(c: &Config) -> Result<Graph, SpecError> {
    let mut b = Builder::new();
    let (token_ids, positions) = (b.token_ids(), b.positions());
    let name = |module: &str| format!("{}{module}", c.prefix);
    let words = b.weight(&name("wte.weight"), [c.vocab_size, c.hidden_size]);
    let places = b.weight(&name("wpe.weight"), [c.positions, c.hidden_size]);
    let (word, place) = (b.embedding(token_ids, words), b.embedding(positions, places));
    let mut hidden = b.add(word, place);
    for layer in 0..c.layers {
        hidden = b.scope(name(&format!("h.{layer}")), |b| block(b, c, layer, hidden));
    }
    let hidden = b.select_outputs(hidden);
    let hidden = b.layer_norm_layer(&name("ln_f"), hidden, c.norm_eps);
    let logits = if c.tied { b.linear(hidden, words) } else { b.linear_layer("lm_head", hidden, c.vocab_size, false) };
    b.output("logits", logits);
    b.finish()
}

fn block(b: &mut Builder, c: &Config, layer: usize, hidden: Value) -> Value {
    let normed = b.layer_norm_layer("ln_1", hidden, c.norm_eps);
    let attended = b.scope("attn", |b| attention(b, c, layer, normed));
    let hidden = b.add(hidden, attended);
    let normed = b.layer_norm_layer("ln_2", hidden, c.norm_eps);
    let fed = b.scope("mlp", |b| mlp(b, c, normed));
    b.add(hidden, fed)
}

fn attention(b: &mut Builder, c: &Config, layer: usize, x: Value) -> Value {
    let head_dim = c.hidden_size / c.heads;
    let qkv = conv1d(b, "c_attn", x, c.hidden_size, 3 * c.hidden_size);
    let parts = b.split_last(qkv, &[c.hidden_size; 3]);
    let [q, k, v] = [0, 1, 2].map(|i| b.split_heads(parts[i], c.heads, head_dim));
    let mut scale = if c.scale_by_size { 1.0 / (head_dim as f32).sqrt() } else { 1.0 };
    if c.scale_by_layer {
        scale /= (layer + 1) as f32;
    }
    let mixed = b.attention(layer, [q, k, v], scale, AttentionOptions::default());
    let mixed = b.merge_heads(mixed);
    conv1d(b, "c_proj", mixed, c.hidden_size, c.hidden_size)
}

fn mlp(b: &mut Builder, c: &Config, x: Value) -> Value {
    let inner = conv1d(b, "c_fc", x, c.hidden_size, c.inner_size);
    let inner = b.activation(inner, c.activation);
    conv1d(b, "c_proj", inner, c.inner_size, c.hidden_size)
}

/// transformers' `Conv1D`: a linear layer whose weight is stored as [inputs, outputs].
fn conv1d(b: &mut Builder, name: &str, x: Value, inputs: usize, outputs: usize) -> Value {
    b.scope(name, |b| {
        let stored = b.weight("weight", [inputs, outputs]);
        let weight = b.permute(stored, [1, 0]);
        let bias = b.weight("bias", [outputs]);
        b.linear_bias(x, weight, bias)
    })
}
