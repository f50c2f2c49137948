//! Frequencies of rotary position embeddings (RoPE): all that transformers' `modeling_rope_utils` can scale.
//!
//! Reads `rope_parameters` (transformers 5) as well as `rope_theta` and `rope_scaling` (before 5), and puts tables of
//! cosines and sines into a graph, for [`Builder::rope`]. Constants are computed in the steps and the precision (f32) in
//! which torch computes them, so that angles of late positions agree. Plugins call it; the host does not.
//!
//! A parameter that transformers knows but that does not belong to the chosen type has no effect there and none here;
//! so do `finetuned` (a note of early YaRN checkpoints) and `mrope_section` (its axes are equal for text). Anything else
//! is an error, because it may ask for frequencies that this file does not compute.

use serde_json::Value as Json;

use crate::builder::Builder;
use crate::config::{Fields, MAX_SIZE};
use crate::dim::Dim;
use crate::model::Value;
use crate::op::Op;
use crate::request::BuildError;
use crate::types::DType;

/// The values of `rope_type` that are known.
pub const TYPES: &[&str] = &["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"];

/// Parameters that transformers knows, for one type or another, and two that mean nothing for text.
const KNOWN: &[&str] = &[
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "short_factor",
    "long_factor",
    "low_freq_factor",
    "high_freq_factor",
    "finetuned",
    "mrope_section",
];

/// What a rope type needs to know of the model beside its own parameters.
#[derive(Clone, Copy, Debug)]
pub struct RopeModel {
    /// Size of an attention head.
    pub head_dim: usize,
    /// `max_position_embeddings`.
    pub max_positions: usize,
    /// `rope_theta` where config.json gives none.
    pub default_theta: f64,
}

/// Which frequencies rotate the heads of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    frequencies: Frequencies,
    /// Factor of cosines and sines.
    attention_factor: f32,
    context_length: u64,
}

#[derive(Clone, Debug, PartialEq)]
enum Frequencies {
    /// The same for every token.
    Fixed(Vec<f32>),
    /// `long` once the context is longer than `original`.
    ByLength { short: Vec<f32>, long: Vec<f32>, original: i64 },
    /// From a base that grows once the context is longer than `max_positions`; `dim` elements are rotated.
    Dynamic { theta: f32, factor: f64, max_positions: usize, dim: usize },
}

impl RopeConfig {
    /// Reads the parameters of `config.json`.
    pub fn from_config(config: &Json, model: RopeModel) -> Result<RopeConfig, BuildError> {
        let top = Fields::new(config)?;
        let none = Json::Object(Default::default());
        // As in transformers, an old `rope_scaling` that says something wins over `rope_parameters`.
        let scaling = top.object("rope_scaling")?.filter(|s| s.names().next().is_some());
        let parameters = match scaling {
            Some(scaling) => scaling,
            None => top.object("rope_parameters")?.unwrap_or(Fields::new(&none)?),
        };
        if let Some(name) = parameters.names().find(|name| !KNOWN.contains(name)) {
            return Err(parameters.wrong(name, format!("unknown parameter; known are {}", KNOWN.join(", "))));
        }
        let rope = Reader::new(top, parameters, model)?.read()?;
        rope.check_finite()?;
        Ok(rope)
    }

    /// The longest context, in tokens, that these frequencies are made for.
    pub fn context_length(&self) -> u64 {
        self.context_length
    }

    /// How many elements of a head are rotated: twice the number of frequencies.
    pub fn rotary_dim(&self) -> usize {
        2 * match &self.frequencies {
            Frequencies::Fixed(inv_freq) => inv_freq.len(),
            Frequencies::ByLength { short, .. } => short.len(),
            Frequencies::Dynamic { dim, .. } => dim.div_ceil(2),
        }
    }

    /// For architectures that rotate every element of a head: refuses a smaller `partial_rotary_factor`.
    pub fn require_whole_heads(&self, head_dim: usize) -> Result<(), BuildError> {
        let n = self.rotary_dim();
        if n == head_dim {
            return Ok(());
        }
        Err(BuildError::new(format!(
            "config.json: partial_rotary_factor rotates {n} of the {head_dim} elements of a head; this architecture \
             rotates all of them"
        )))
    }

    /// Cosines and sines of all angles, `f32[T, rotary_dim / 2]` each.
    pub fn tables(&self, b: &mut Builder) -> (Value, Value) {
        let positions = b.positions();
        let positions = b.cast(positions, DType::F32);
        let positions = column(b, positions);
        let inv_freq = self.inv_freq(b);
        let angles = b.mul(positions, inv_freq);
        let (cos, sin) = (b.op(Op::Cos, &[angles]), b.op(Op::Sin, &[angles]));
        if self.attention_factor == 1.0 {
            return (cos, sin);
        }
        (b.scale(cos, self.attention_factor), b.scale(sin, self.attention_factor))
    }

    /// Inverse frequencies, `f32[N]` or, where they differ between tokens, `f32[T, N]`.
    fn inv_freq(&self, b: &mut Builder) -> Value {
        match &self.frequencies {
            Frequencies::Fixed(inv_freq) => b.constant(inv_freq.clone()),
            Frequencies::ByLength { short, long, original } => {
                let length = b.context_length();
                let original = b.int(*original);
                let is_long = b.op(Op::Gt, &[length, original]);
                let is_long = column(b, is_long);
                let (short, long) = (b.constant(short.clone()), b.constant(long.clone()));
                b.select(is_long, long, short)
            }
            Frequencies::Dynamic { theta, factor, max_positions, dim } => {
                // base = theta * (factor * length / max_positions - (factor - 1)) ^ (dim / (dim - 2))
                let context = b.context_length();
                let limit = b.int(*max_positions as i64);
                let grown = b.op(Op::Gt, &[context, limit]);
                let length = b.cast(context, DType::F32);
                let stretched = b.scale(length, *factor as f32);
                let limit = b.scalar(DType::F32, *max_positions as f32);
                let ratio = b.div(stretched, limit);
                let ratio = b.shift(ratio, -((factor - 1.0) as f32));
                let exponent = b.scalar(DType::F32, (*dim as f64 / (*dim as f64 - 2.0)) as f32);
                let growth = b.op(Op::Pow, &[ratio, exponent]);
                let base = b.scale(growth, *theta);
                let theta = b.scalar(DType::F32, *theta);
                let base = b.select(grown, base, theta);
                let base = column(b, base);
                let exponents = b.constant(exponents(*dim, *dim));
                let freq = b.op(Op::Pow, &[base, exponents]);
                let one = b.scalar(DType::F32, 1.0);
                b.div(one, freq)
            }
        }
    }

    fn check_finite(&self) -> Result<(), BuildError> {
        let finite = |v: &[f32]| v.iter().all(|x| x.is_finite());
        let all = self.attention_factor.is_finite()
            && match &self.frequencies {
                Frequencies::Fixed(inv_freq) => finite(inv_freq),
                Frequencies::ByLength { short, long, .. } => finite(short) && finite(long),
                Frequencies::Dynamic { factor, .. } => (*factor as f32).is_finite(),
            };
        let message = "config.json: the rope parameters give frequencies that are not finite numbers";
        if all { Ok(()) } else { Err(BuildError::new(message)) }
    }
}

/// [T] -> [T, 1]
fn column(b: &mut Builder, x: Value) -> Value {
    b.reshape(x, [Dim::T(), Dim::from(1usize)])
}

/// 0/over, 2/over, 4/over, ... for a rotation of `dim` elements.
fn exponents(dim: usize, over: usize) -> Vec<f32> {
    (0..dim).step_by(2).map(|i| i as f32 / over as f32).collect()
}

/// f32 power. Through f64, since powf of f32 differs between C libraries.
fn pow(base: f32, exponent: f32) -> f32 {
    f64::from(base).powf(f64::from(exponent)) as f32
}

/// Parameters while they are read.
struct Reader<'a> {
    top: Fields<'a>,
    rope: Fields<'a>,
    kind: &'a str,
    theta: f64,
    /// How much of a head is rotated, and how many elements that is.
    partial: f64,
    dim: usize,
    model: RopeModel,
}

impl<'a> Reader<'a> {
    fn new(top: Fields<'a>, rope: Fields<'a>, model: RopeModel) -> Result<Reader<'a>, BuildError> {
        let kind = match rope.text("rope_type")? {
            Some(kind) => kind,
            None => rope.text("type")?.unwrap_or("default"),
        };
        let in_either = |name: &str| match rope.positive(name)? {
            Some(x) => Ok(Some(x)),
            None => top.positive(name),
        };
        let theta = in_either("rope_theta")?.unwrap_or(model.default_theta);
        let partial = in_either("partial_rotary_factor")?.unwrap_or(1.0);
        let holder = if rope.has("partial_rotary_factor") { &rope } else { &top };
        if partial > 1.0 {
            return Err(holder.wrong("partial_rotary_factor", "it must be above 0 and at most 1"));
        }
        // proportional rotates whole heads, with frequency 0 beyond the partial factor.
        let dim = if kind == "proportional" { model.head_dim } else { (model.head_dim as f64 * partial) as usize };
        if dim == 0 || dim.next_multiple_of(2) > model.head_dim {
            return Err(BuildError::new(format!(
                "config.json: heads of size {} with partial_rotary_factor {partial} rotate {dim} elements: \
                 it must be an even number of at least 2",
                model.head_dim
            )));
        }
        Ok(Reader { top, rope, kind, theta, partial, dim, model })
    }

    fn read(&self) -> Result<RopeConfig, BuildError> {
        let positions = self.model.max_positions;
        let (frequencies, attention_factor, context) = match self.kind {
            "default" => (Frequencies::Fixed(self.default()), 1.0, positions as f64),
            "linear" => {
                let factor = self.factor()?;
                let inv_freq = self.default().iter().map(|f| f / factor as f32).collect();
                (Frequencies::Fixed(inv_freq), 1.0, positions as f64 * factor)
            }
            "proportional" => (Frequencies::Fixed(self.proportional()?), 1.0, positions as f64),
            "dynamic" => (self.dynamic()?, 1.0, positions as f64 * self.factor()?),
            "llama3" => (Frequencies::Fixed(self.llama3()?), 1.0, positions as f64),
            "yarn" => {
                let factor = self.yarn_factor()?;
                let frequencies = Frequencies::Fixed(self.yarn(factor)?);
                (frequencies, self.yarn_attention(factor)?, self.original()? as f64 * factor)
            }
            "longrope" => (self.longrope()?, self.longrope_attention()?, positions as f64),
            _ => {
                let name = if self.rope.has("rope_type") { "rope_type" } else { "type" };
                return Err(self.rope.wrong(name, format!("known are {}", TYPES.join(", "))));
            }
        };
        if !(1.0..=(1u64 << 40) as f64).contains(&context) {
            return Err(self.rope.wrong("factor", format!("it gives a context of {context} tokens")));
        }
        Ok(RopeConfig { frequencies, attention_factor: attention_factor as f32, context_length: context as u64 })
    }

    /// theta ^ (2i / dim)
    fn wavelengths(&self) -> Vec<f32> {
        exponents(self.dim, self.dim).iter().map(|&e| pow(self.theta as f32, e)).collect()
    }

    fn default(&self) -> Vec<f32> {
        self.wavelengths().iter().map(|w| 1.0 / w).collect()
    }

    fn factor(&self) -> Result<f64, BuildError> {
        self.rope.need("factor", self.rope.positive("factor")?)
    }

    /// The context that the model was trained with before its frequencies were scaled.
    fn original(&self) -> Result<usize, BuildError> {
        let name = "original_max_position_embeddings";
        Ok(match self.top.size(name)? {
            Some(n) => n,
            None => self.rope.size(name)?.unwrap_or(self.model.max_positions),
        })
    }

    fn proportional(&self) -> Result<Vec<f32>, BuildError> {
        let factor = self.rope.positive("factor")?.unwrap_or(1.0) as f32;
        let rotated = (self.partial * self.dim as f64 / 2.0).floor() as usize;
        let turn = |(i, e): (usize, &f32)| if i < rotated { 1.0 / pow(self.theta as f32, *e) / factor } else { 0.0 };
        Ok(exponents(self.dim, self.dim).iter().enumerate().map(turn).collect())
    }

    fn dynamic(&self) -> Result<Frequencies, BuildError> {
        if self.dim <= 2 {
            return Err(self.rope.wrong(
                if self.rope.has("rope_type") { "rope_type" } else { "type" },
                format!("it needs more than 2 rotated elements per head, there are {}", self.dim),
            ));
        }
        let max_positions = self.model.max_positions;
        Ok(Frequencies::Dynamic { theta: self.theta as f32, factor: self.factor()?, max_positions, dim: self.dim })
    }

    /// Low frequencies are divided by the factor, high ones kept, those between interpolated (Llama 3.1).
    fn llama3(&self) -> Result<Vec<f32>, BuildError> {
        let required = |name: &str| self.rope.need(name, self.rope.positive(name)?);
        let (factor, low, high) = (self.factor()? as f32, required("low_freq_factor")?, required("high_freq_factor")?);
        if high <= low {
            return Err(self.rope.wrong("high_freq_factor", format!("it must be above low_freq_factor, {low}")));
        }
        let original = self.original()? as f64;
        let (longest, shortest) = ((original / low) as f32, (original / high) as f32);
        let scale = |inv_freq: f32| {
            // torch divides a number by a tensor as reciprocal and product.
            let wavelength = (1.0 / inv_freq) * std::f64::consts::TAU as f32;
            if wavelength > longest {
                inv_freq / factor
            } else if wavelength < shortest {
                inv_freq
            } else {
                let smooth = ((1.0 / wavelength) * original as f32 - low as f32) / (high - low) as f32;
                (1.0 - smooth) * inv_freq / factor + smooth * inv_freq
            }
        };
        Ok(self.default().into_iter().map(scale).collect())
    }

    fn yarn_factor(&self) -> Result<f64, BuildError> {
        match self.rope.positive("factor")? {
            Some(factor) => Ok(factor),
            // Written as null: the ratio of the two lengths.
            None if self.rope.has("factor") => Ok(self.model.max_positions as f64 / self.original()? as f64),
            None => self.factor(),
        }
    }

    /// Frequencies that turn often within the original context are kept, those that turn seldom divided by the factor,
    /// with a ramp between (Peng et al., arXiv:2309.00071).
    fn yarn(&self, factor: f64) -> Result<Vec<f32>, BuildError> {
        let nonzero = |name: &str, default: f64| -> Result<f64, BuildError> {
            Ok(self.rope.number(name)?.filter(|&x| x != 0.0).unwrap_or(default))
        };
        let (beta_fast, beta_slow) = (nonzero("beta_fast", 32.0)?, nonzero("beta_slow", 1.0)?);
        let (original, dim) = (self.original()? as f64, self.dim as f64);
        let turning = |turns: f64| dim * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (turning(beta_fast), turning(beta_slow));
        if !low.is_finite() || !high.is_finite() {
            return Err(self.rope.wrong("beta_fast", format!("it gives no ramp with beta_slow {beta_slow}")));
        }
        if self.rope.flag("truncate", true)? {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let blend = |(i, wavelength): (usize, &f32)| {
            let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let keep = 1.0 - ramp;
            (1.0 / (factor as f32 * wavelength)) * (1.0 - keep) + (1.0 / wavelength) * keep
        };
        Ok(self.wavelengths().iter().enumerate().map(blend).collect())
    }

    fn yarn_attention(&self, factor: f64) -> Result<f64, BuildError> {
        if let Some(given) = self.rope.positive("attention_factor")? {
            return Ok(given);
        }
        let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        let given = |name: &str| Ok::<_, BuildError>(self.rope.number(name)?.filter(|&x| x != 0.0));
        Ok(match (given("mscale")?, given("mscale_all_dim")?) {
            (Some(m), Some(all)) => mscale(m) / mscale(all),
            _ => mscale(1.0),
        })
    }

    /// One factor per frequency, in two sets (Ding et al., arXiv:2402.13753).
    fn longrope(&self) -> Result<Frequencies, BuildError> {
        let scaled = |name: &str| -> Result<Vec<f32>, BuildError> {
            let wavelengths = self.wavelengths();
            let factors = self.rope.need(name, self.rope.list(name)?)?;
            let factors: Option<Vec<f64>> = factors.iter().map(|f| f.as_f64().filter(|&x| x > 0.0)).collect();
            match factors {
                Some(f) if f.len() == wavelengths.len() => {
                    Ok(f.iter().zip(wavelengths).map(|(&f, w)| 1.0 / (f as f32 * w)).collect())
                }
                _ => Err(self.rope.wrong(name, format!("it must be {} numbers above 0", wavelengths.len()))),
            }
        };
        let original = self.original()?.min(MAX_SIZE) as i64;
        Ok(Frequencies::ByLength { short: scaled("short_factor")?, long: scaled("long_factor")?, original })
    }

    fn longrope_attention(&self) -> Result<f64, BuildError> {
        if let Some(given) = self.rope.positive("attention_factor")? {
            return Ok(given);
        }
        let original = self.original()? as f64;
        let factor = self.rope.positive("factor")?.unwrap_or(self.model.max_positions as f64 / original);
        Ok(if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() })
    }
}
