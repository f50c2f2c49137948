//! `quantization_config` of a checkpoint: which of its tensors are parts of quantised matrices.
//!
//! What decides is the tensors; the configuration says the method, and is searched for options that would change the
//! meaning and are not known here. Every shape and type is checked, so that reading needs no checks.

use std::path::Path;

use serde_json::Value;

use super::super::HubError;
use super::super::header::Dtype;
use super::super::weights::Weights;
use super::{Integers, Kind, Packed, PackedSet, WordLayout, Words, Zeros};

/// What is wrong with a field of the configuration.
type Fault = String;

/// The quantised matrices of a checkpoint with this `quantization_config` (of the file `path`).
pub(in crate::hub) fn find(weights: &Weights, config: &Value, path: &Path) -> Result<PackedSet, HubError> {
    let fault = |message: String| HubError::File { file: path.into(), message };
    let method = config.get("quant_method").and_then(Value::as_str);
    let reader = match method {
        Some("gptq") => gptq(config),
        Some("awq") => awq(config),
        Some("compressed-tensors") => compressed(config),
        Some("fp8" | "fbgemm_fp8") => float8(config),
        _ => Err(format!(
            "\"quant_method\" is {}; supported are gptq, awq, compressed-tensors, fp8 and fbgemm_fp8: use another \
             checkpoint of the model, with --quantization int8 or int4 if it is too large",
            config.get("quant_method").unwrap_or(&Value::Null)
        )),
    };
    let reader = reader.map_err(|fault_of| fault(format!("quantization_config: {fault_of}")))?;
    let mut set = PackedSet::default();
    for (name, ..) in weights.describe() {
        let Some(base) = name.strip_suffix(reader.suffix) else { continue };
        let module = Module { weights, base };
        let packed = module.read(&reader);
        let packed = packed.map_err(|message| HubError::Tensor { file: path.into(), tensor: name.into(), message })?;
        let Some(packed) = packed else { continue };
        set.hidden.extend(packed.parts.iter().copied().filter(|&part| weights.name(part) != format!("{base}.weight")));
        set.matrices.insert(format!("{base}.weight"), packed);
    }
    Ok(set)
}

/// How to read a module.
struct Reader {
    /// What the name of its main tensor ends with.
    suffix: &'static str,
    method: Method,
}

enum Method {
    /// Bits, and what is missing from stored zeros.
    Gptq {
        bits: usize,
        group: Option<usize>,
        symmetric: bool,
        plus: i32,
    },
    Awq,
    Packed,
    /// One byte a weight.
    Bytes {
        block: Option<[usize; 2]>,
    },
}

/// The value of a field that must be one of some.
fn must(config: &Value, field: &str, allowed: &[Value], absent: bool) -> Result<(), Fault> {
    match config.get(field) {
        None | Some(Value::Null) if absent => Ok(()),
        Some(value) if allowed.contains(value) => Ok(()),
        other => {
            let list = allowed.iter().map(Value::to_string).collect::<Vec<_>>().join(", ");
            Err(format!("\"{field}\" is {}; supported: {list}", other.unwrap_or(&Value::Null)))
        }
    }
}

fn group_size(config: &Value) -> Result<Option<usize>, Fault> {
    match config.get("group_size").and_then(Value::as_i64) {
        Some(-1) => Ok(None),
        Some(size) if size > 0 && size % 32 == 0 => Ok(usize::try_from(size).ok()),
        _ => Err(format!(
            "\"group_size\" is {}; supported are -1 and multiples of 32",
            config.get("group_size").unwrap_or(&Value::Null)
        )),
    }
}

fn gptq(config: &Value) -> Result<Reader, Fault> {
    must(config, "bits", &[4.into(), 8.into()], false)?;
    must(config, "checkpoint_format", &["gptq".into(), "gptq_v2".into()], true)?;
    must(config, "desc_act", &[true.into(), false.into()], true)?;
    must(config, "sym", &[true.into(), false.into()], true)?;
    let bits = if config["bits"] == 8 { 8 } else { 4 };
    let symmetric = config["sym"] != false;
    if bits == 8 && !symmetric {
        return Err("\"sym\" is false with \"bits\" 8; supported with 4 bits only".into());
    }
    let plus = if config["checkpoint_format"] == "gptq_v2" { 0 } else { 1 };
    let group = group_size(config)?;
    Ok(Reader { suffix: ".qweight", method: Method::Gptq { bits, group, symmetric, plus } })
}

fn awq(config: &Value) -> Result<Reader, Fault> {
    let bits = if config.get("bits").is_some() { "bits" } else { "w_bit" };
    must(config, bits, &[4.into()], false)?;
    must(config, "version", &["gemm".into(), "GEMM".into()], true)?;
    must(config, "zero_point", &[true.into()], true)?;
    Ok(Reader { suffix: ".qweight", method: Method::Awq })
}

fn compressed(config: &Value) -> Result<Reader, Fault> {
    must(config, "kv_cache_scheme", &[], true)?;
    if let Some(format) = config.get("sparsity_config").and_then(|c| c.get("format")).filter(|f| *f != "dense") {
        return Err(format!("\"sparsity_config\" has \"format\" {format}; supported: \"dense\""));
    }
    let empty = serde_json::Map::new();
    for (name, group) in config.get("config_groups").and_then(Value::as_object).unwrap_or(&empty) {
        let of = |fault: String| format!("\"config_groups\".\"{name}\".\"weights\": {fault}");
        let weights = group.get("weights").unwrap_or(&Value::Null);
        must(weights, "type", &["int".into(), "float".into()], true).map_err(of)?;
        must(weights, "num_bits", &[4.into(), 8.into()], false).map_err(of)?;
        must(weights, "actorder", &["static".into(), "weight".into()], true).map_err(of)?;
        let strategies = ["channel", "group", "tensor", "block"].map(Value::from);
        must(weights, "strategy", &strategies, true).map_err(of)?;
    }
    let formats = ["pack-quantized", "int-quantized", "float-quantized", "naive-quantized"].map(Value::from);
    must(config, "format", &formats, false)?;
    Ok(match config["format"] == "pack-quantized" {
        true => Reader { suffix: ".weight_packed", method: Method::Packed },
        false => Reader { suffix: ".weight", method: Method::Bytes { block: None } },
    })
}

fn float8(config: &Value) -> Result<Reader, Fault> {
    let block = match config.get("weight_block_size") {
        None | Some(Value::Null) => None,
        Some(value) => {
            let sizes: Option<Vec<usize>> = serde_json::from_value(value.clone()).ok();
            let sizes = sizes.and_then(|s| <[usize; 2]>::try_from(s).ok()).filter(|s| !s.contains(&0));
            Some(sizes.ok_or_else(|| format!("\"weight_block_size\" is {value}; it must be two numbers"))?)
        }
    };
    must(config, "fmt", &["e4m3".into()], true)?;
    Ok(Reader { suffix: ".weight", method: Method::Bytes { block } })
}

/// The tensors whose names begin with `base`.
struct Module<'a> {
    weights: &'a Weights,
    base: &'a str,
}

/// Types that scales may have.
const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

impl Module<'_> {
    fn read(&self, reader: &Reader) -> Result<Option<Packed>, String> {
        match &reader.method {
            Method::Gptq { bits, group, symmetric, plus } => self.gptq(*bits, *group, *symmetric, *plus).map(Some),
            Method::Awq => self.awq().map(Some),
            Method::Packed => self.packed().map(Some),
            Method::Bytes { block } => self.bytes(*block),
        }
    }

    fn find(&self, part: &str) -> Option<usize> {
        self.weights.index_of(&format!("{}.{part}", self.base))
    }

    /// A tensor that must be there with one of these types and this rank.
    fn tensor(&self, part: &str, dtypes: &[Dtype], rank: usize) -> Result<(usize, Vec<usize>), String> {
        let name = format!("{}.{part}", self.base);
        let index = self.find(part).ok_or_else(|| format!("needs {name}, which is missing"))?;
        let view = self.weights.at(index);
        if !dtypes.contains(&view.dtype) || view.shape.len() != rank {
            let types = dtypes.iter().map(|d| d.name()).collect::<Vec<_>>().join(" or ");
            return Err(format!("{name} is {} {:?} instead of {types} of rank {rank}", view.dtype, view.shape));
        }
        Ok((index, view.shape.to_vec()))
    }

    fn must_be(&self, part: &str, got: &[usize], want: &[usize]) -> Result<(), String> {
        if got == want { Ok(()) } else { Err(format!("{}.{part} has shape {got:?} instead of {want:?}", self.base)) }
    }

    fn gptq(&self, bits: usize, group: Option<usize>, symmetric: bool, plus: i32) -> Result<Packed, String> {
        let per = 32 / bits;
        let (codes, shape) = self.tensor("qweight", &[Dtype::I32], 2)?;
        let (k, n) = (shape[0].saturating_mul(per), shape[1]);
        let group = group.unwrap_or(k).min(k);
        let groups = k.div_ceil(group.max(1));
        let (scales, scale_shape) = self.tensor("scales", &FLOATS, 2)?;
        self.must_be("scales", &scale_shape, &[groups, n])?;
        let (zeros, zero_shape) = self.tensor("qzeros", &[Dtype::I32], 2)?;
        self.must_be("qzeros", &zero_shape, &[groups, n.div_ceil(per)])?;
        let mut parts = vec![codes, scales, zeros];
        let mut order = None;
        if let Some(index) = self.find("g_idx") {
            let (_, order_shape) = self.tensor("g_idx", &[Dtype::I32], 1)?;
            self.must_be("g_idx", &order_shape, &[k])?;
            let all = self.weights.at(index).data.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b) as usize);
            if let Some(outside) = all.clone().find(|g| *g >= groups) {
                return Err(format!("{}.g_idx holds group {outside} of {groups}", self.base));
            }
            order = Some(index).filter(|_| !all.enumerate().all(|(i, g)| g == i / group));
            parts.push(index);
        }
        let words = Words { tensor: codes, bits, width: n, layout: WordLayout::DownColumns };
        let zero_words = Words { tensor: zeros, bits, width: n.div_ceil(per), layout: WordLayout::Across };
        let middle = (1 << (bits - 1)) - plus;
        let data = self.weights.at(zeros).data;
        let all_middle = || (0..groups).all(|g| (0..n).all(|j| zero_words.at(data, j, g) == middle));
        if bits == 8 && !all_middle() {
            return Err(format!("{}.qzeros are not all {middle}, as \"sym\" with 8 bits says", self.base));
        }
        // Nothing to store where all are alike.
        let zeros = Some(Zeros { words: zero_words, plus }).filter(|_| !(symmetric && all_middle()));
        let integers = Integers { codes: words, zeros, scales, step: [1, n], group, order };
        Ok(Packed { shape: [n, k], dtype: self.weights.at(scales).dtype, kind: Kind::Integers(integers), parts })
    }

    fn awq(&self) -> Result<Packed, String> {
        let (codes, shape) = self.tensor("qweight", &[Dtype::I32], 2)?;
        let (k, width) = (shape[0], shape[1]);
        let n = width.saturating_mul(8);
        let (scales, scale_shape) = self.tensor("scales", &FLOATS, 2)?;
        let groups = scale_shape[0];
        self.must_be("scales", &scale_shape, &[groups, n])?;
        let group = self.group("scales", k, groups)?;
        let (zeros, zero_shape) = self.tensor("qzeros", &[Dtype::I32], 2)?;
        self.must_be("qzeros", &zero_shape, &[groups, width])?;
        let words = |tensor| Words { tensor, bits: 4, width, layout: WordLayout::AcrossInterleaved };
        let zero_words = Some(Zeros { words: words(zeros), plus: 0 });
        let integers = Integers { codes: words(codes), zeros: zero_words, scales, step: [1, n], group, order: None };
        let parts = vec![codes, scales, zeros];
        Ok(Packed { shape: [n, k], dtype: self.weights.at(scales).dtype, kind: Kind::Integers(integers), parts })
    }

    /// The columns of a group, if there are so many groups.
    fn group(&self, part: &str, k: usize, groups: usize) -> Result<usize, String> {
        let fits = groups > 0 && k.is_multiple_of(groups) && (groups == 1 || (k / groups).is_multiple_of(32));
        if fits {
            Ok((k / groups).max(1))
        } else {
            let base = self.base;
            Err(format!("{base}.{part} has {groups} groups for {k} columns; groups must be equal, of multiples of 32"))
        }
    }

    fn packed(&self) -> Result<Packed, String> {
        let (codes, shape) = self.tensor("weight_packed", &[Dtype::I32], 2)?;
        let (shape_tensor, _) = self.tensor("weight_shape", &[Dtype::I64, Dtype::I32], 1)?;
        let [n, k] = self.stored_shape(shape_tensor)?;
        let bits = [4, 8].into_iter().find(|bits| k.div_ceil(32 / bits) == shape[1]);
        let bits = bits.filter(|_| shape[0] == n).ok_or_else(|| {
            format!("{}.weight_packed has shape {shape:?}, which does not hold [{n}, {k}] of 4 or 8 bits", self.base)
        })?;
        let (scales, scale_shape) = self.tensor("weight_scale", &FLOATS, 2)?;
        let groups = scale_shape[1];
        self.must_be("weight_scale", &scale_shape, &[n, groups])?;
        let group = self.group("weight_scale", k, groups)?;
        let words = Words { tensor: codes, bits, width: shape[1], layout: WordLayout::AlongRows };
        let mut parts = vec![codes, scales, shape_tensor];
        let mut zeros = None;
        if self.find("weight_zero_point").is_some() {
            let (tensor, shape) = self.tensor("weight_zero_point", &[Dtype::I32], 2)?;
            self.must_be("weight_zero_point", &shape, &[n.div_ceil(32 / bits), groups])?;
            if bits != 4 {
                return Err(format!("{}.weight_zero_point: zeros are supported with 4 bits only", self.base));
            }
            zeros = Some(Zeros { words: Words { tensor, bits, width: groups, layout: WordLayout::DownRows }, plus: 0 });
            parts.push(tensor);
        }
        if self.find("weight_g_idx").is_some() {
            let why = "the order of columns by activation (\"actorder\": \"group\") is not supported";
            return Err(format!("{}.weight_g_idx: {why}", self.base));
        }
        let integers = Integers { codes: words, zeros, scales, step: [groups, 1], group, order: None };
        Ok(Packed { shape: [n, k], dtype: self.weights.at(scales).dtype, kind: Kind::Integers(integers), parts })
    }

    fn stored_shape(&self, tensor: usize) -> Result<[usize; 2], String> {
        let view = self.weights.at(tensor);
        let numbers: Vec<i64> = match view.dtype {
            Dtype::I64 => view.data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            _ => view.data.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
        };
        let sizes: Option<Vec<usize>> = numbers.iter().map(|&n| usize::try_from(n).ok()).collect();
        let sizes = sizes.and_then(|s| <[usize; 2]>::try_from(s).ok());
        sizes.ok_or_else(|| format!("{}.weight_shape is {numbers:?} instead of two sizes", self.base))
    }

    /// A matrix of bytes; `None` if it is one of floats, which is not quantised.
    fn bytes(&self, block: Option<[usize; 2]>) -> Result<Option<Packed>, String> {
        let Some(weight) = self.find("weight") else { return Ok(None) };
        let view = self.weights.at(weight);
        if ![Dtype::I8, Dtype::F8E4M3, Dtype::F8E5M2].contains(&view.dtype) {
            return Ok(None);
        }
        let &[n, k] = view.shape else {
            return Err(format!("{} {:?} is quantised, but no matrix", view.dtype, view.shape));
        };
        let part = if self.find("weight_scale_inv").is_some() { "weight_scale_inv" } else { "weight_scale" };
        let scale = self.find(part).ok_or_else(|| format!("needs {}.weight_scale, which is missing", self.base))?;
        let (dtype, shape) = (self.weights.at(scale).dtype, self.weights.at(scale).shape);
        let elements: usize = shape.iter().product();
        if !FLOATS.contains(&dtype) {
            return Err(format!("{}.{part} is {dtype}; supported are F32, F16 and BF16", self.base));
        }
        let blocks = block.map(|[a, b]| n.div_ceil(a).saturating_mul(k.div_ceil(b)));
        let int8 = view.dtype == Dtype::I8;
        let kind = match (elements, block) {
            (1, _) if int8 => Kind::Int8 { weight, scale },
            (rows, _) if int8 && rows == n => Kind::Int8 { weight, scale },
            (1, _) => Kind::Float8 { weight, scale, block: [n.max(1), k.max(1)] },
            (_, Some(block)) if !int8 && Some(elements) == blocks && shape.len() == 2 => {
                Kind::Float8 { weight, scale, block }
            }
            (rows, None) if rows == n => Kind::Float8 { weight, scale, block: [1, k.max(1)] },
            _ => {
                let wanted = block.map_or(String::new(), |block| format!(", or one for each block of {block:?}"));
                let base = self.base;
                return Err(format!("{base}.{part} has shape {shape:?}; supported are one scale, one a row{wanted}"));
            }
        };
        let mut parts = vec![weight, scale];
        if self.find("weight_zero_point").is_some() {
            return Err(format!("{}.weight_zero_point: zeros are not supported with int8 weights", self.base));
        }
        // Scales of activations, which are found anew for every row.
        parts.extend(["input_scale", "input_zero_point"].iter().filter_map(|part| self.find(part)));
        Ok(Some(Packed { shape: [n, k], dtype: if dtype == Dtype::F32 { Dtype::BF16 } else { dtype }, kind, parts }))
    }
}
