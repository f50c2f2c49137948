//! Checkpoints that come quantised: packed here as the formats' documentation says, read by both executors.

use std::path::Path;

use half::{bf16, f16};
use host::exec::cpu::{plan, quantised};
use host::exec::reference;
use host::exec::{Dtype, KvCacheDtype};
use host::hub::Weights;
use plugin_api::{Builder, Graph};
use serde_json::{Value as Json, json};

use super::support::*;

/// Rows and columns of the matrix.
const N: usize = 72;
const K: usize = 256;

/// Tensors by name: type, shape, bytes.
type Tensors = Vec<(&'static str, &'static str, Vec<usize>, Vec<u8>)>;

/// codes - zeros, times scales: `[N, K]`, `[N, groups]` each.
struct Matrix {
    codes: Vec<i32>,
    scales: Vec<f32>,
    zeros: Vec<i32>,
    /// The group of each column.
    order: Vec<usize>,
}

impl Matrix {
    /// Random codes below `2^bits`, groups of so many columns, and random zeros or the middle.
    fn new(bits: u32, group: usize, zeros: bool) -> Matrix {
        let (mut random, groups) = (Random(11), K.div_ceil(group));
        let codes = (0..N * K).map(|_| random.below(1 << bits) as i32).collect();
        // Scales that every type of float holds.
        let scales = (0..N * groups).map(|_| (1 + random.below(127)) as f32 / 8192.0).collect();
        let zeros =
            (0..N * groups).map(|_| if zeros { 1 + random.below(15) as i32 } else { 1 << (bits - 1) }).collect();
        Matrix { codes, scales, zeros, order: (0..K).map(|i| i / group).collect() }
    }

    fn groups(&self) -> usize {
        self.scales.len() / N
    }

    fn values(&self) -> Vec<f32> {
        let at = |i: usize| i / K * self.groups() + self.order[i % K];
        (0..N * K).map(|i| (self.codes[i] - self.zeros[at(i)]) as f32 * self.scales[at(i)]).collect()
    }
}

/// Packs an `[a, b]` matrix of small numbers into words, along its first or its last dimension, in this order.
fn pack(
    a: usize,
    b: usize,
    bits: usize,
    along_first: bool,
    order: &[usize],
    at: &dyn Fn(usize, usize) -> i32,
) -> Vec<u8> {
    let per = 32 / bits;
    let (rows, columns) = if along_first { (a / per, b) } else { (a, b / per) };
    let mut out = vec![];
    for r in 0..rows {
        for c in 0..columns {
            let mut word = 0u32;
            for (place, &which) in order.iter().take(per).enumerate() {
                let code = if along_first { at(r * per + which, c) } else { at(r, c * per + which) };
                word |= (code as u32 & ((1 << bits) - 1)) << (place * bits);
            }
            out.extend(word.to_le_bytes());
        }
    }
    out
}

const PLAIN: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
/// Nibble i of a word of AWQ is column `AWQ[i]` of eight.
const AWQ: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

fn f16s(x: impl IntoIterator<Item = f32>) -> Vec<u8> {
    x.into_iter().flat_map(|x| f16::from_f32(x).to_le_bytes()).collect()
}

fn f32s(x: impl IntoIterator<Item = f32>) -> Vec<u8> {
    x.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// `[groups, N]` from `[N, groups]`.
fn turned<E: Copy>(m: &Matrix, x: &[E]) -> Vec<E> {
    (0..m.groups() * N).map(|i| x[i % N * m.groups() + i / N]).collect()
}

fn gptq(m: &Matrix, bits: usize, plus: i32) -> Tensors {
    let (groups, per) = (m.groups(), 32 / bits);
    let order = m.order.iter().flat_map(|&g| (g as i32).to_le_bytes()).collect();
    vec![
        ("w.qweight", "I32", vec![K / per, N], pack(K, N, bits, true, &PLAIN, &|i, j| m.codes[j * K + i])),
        (
            "w.qzeros",
            "I32",
            vec![groups, N / per],
            pack(groups, N, bits, false, &PLAIN, &|g, j| m.zeros[j * groups + g] - plus),
        ),
        ("w.scales", "F16", vec![groups, N], f16s(turned(m, &m.scales))),
        ("w.g_idx", "I32", vec![K], order),
    ]
}

fn awq(m: &Matrix) -> Tensors {
    let groups = m.groups();
    vec![
        ("w.qweight", "I32", vec![K, N / 8], pack(K, N, 4, false, &AWQ, &|i, j| m.codes[j * K + i])),
        ("w.qzeros", "I32", vec![groups, N / 8], pack(groups, N, 4, false, &AWQ, &|g, j| m.zeros[j * groups + g])),
        ("w.scales", "F16", vec![groups, N], f16s(turned(m, &m.scales))),
    ]
}

fn pack_quantized(m: &Matrix, bits: usize, zeros: bool) -> Tensors {
    let (groups, per) = (m.groups(), 32 / bits);
    let shape = [N as i64, K as i64].iter().flat_map(|n| n.to_le_bytes()).collect();
    let scales = m.scales.iter().flat_map(|&s| bf16::from_f32(s).to_le_bytes()).collect();
    let mut all: Tensors = vec![
        ("w.weight_packed", "I32", vec![N, K / per], pack(N, K, bits, false, &PLAIN, &|j, i| m.codes[j * K + i])),
        ("w.weight_scale", "BF16", vec![N, groups], scales),
        ("w.weight_shape", "I64", vec![2], shape),
    ];
    if zeros {
        let packed = pack(N, groups, bits, true, &PLAIN, &|j, g| m.zeros[j * groups + g]);
        all.push(("w.weight_zero_point", "I32", vec![N / per, groups], packed));
    }
    all
}

fn int8(m: &Matrix) -> Tensors {
    let codes = m.codes.iter().map(|c| (c - 128) as u8).collect();
    vec![("w.weight", "I8", vec![N, K], codes), ("w.weight_scale", "F32", vec![N, 1], f32s(m.scales.iter().copied()))]
}

/// The values of e4m3 bytes, written out from the definition.
fn e4m3(byte: u8) -> f32 {
    let (sign, exponent, mantissa) = (byte >> 7, i32::from(byte >> 3 & 15), f32::from(byte & 7) / 8.0);
    let size = if exponent == 0 { mantissa / 64.0 } else { (1.0 + mantissa) * 2f32.powi(exponent - 7) };
    if sign == 1 { -size } else { size }
}

/// Bytes, and scales of blocks of so many rows and columns; and the values that they mean.
fn float8(block: [usize; 2], scale_shape: Vec<usize>, name: &'static str) -> (Tensors, Vec<f32>) {
    let mut random = Random(12);
    // All but the two that are NaN.
    let bytes: Vec<u8> = (0..N * K).map(|_| [0, 128][random.below(2)] + random.below(127) as u8).collect();
    let across = K.div_ceil(block[1]);
    let scales: Vec<f32> =
        (0..N.div_ceil(block[0]) * across).map(|_| (1 + random.below(100)) as f32 / 65536.0).collect();
    let at = |i: usize| scales[i / K / block[0] * across + i % K / block[1]];
    let values = (0..N * K).map(|i| e4m3(bytes[i]) * at(i)).collect();
    let tensors = vec![("w.weight", "F8_E4M3", vec![N, K], bytes), (name, "F32", scale_shape, f32s(scales.clone()))];
    (tensors, values)
}

fn graph() -> Graph {
    let mut b = Builder::new();
    let (ids, table) = (b.token_ids(), b.weight("embed", [9, K]));
    let x = b.embedding(ids, table);
    let w = b.weight("w.weight", [N, K]);
    let x = b.linear(x, w);
    let x = b.select_outputs(x);
    b.output("logits", x);
    b.finish().unwrap()
}

fn open(tensors: &Tensors) -> Weights {
    let mut random = Random(13);
    let embed = (0..9 * K).map(|_| random.float()).collect::<Vec<_>>();
    let mut all = tensors.clone();
    all.push(("embed", "F32", vec![9, K], f32s(embed)));
    let (mut header, mut data) = (serde_json::Map::new(), vec![]);
    for (name, dtype, shape, bytes) in all {
        let begin = data.len();
        data.extend(bytes);
        header.insert(name.into(), json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    weights_of(header, &data)
}

/// The checkpoint's matrix has these values, and the CPU executor computes with it.
fn check(what: &str, tensors: &Tensors, config: &Json, values: &[f32], is_quantised: bool) {
    let weights = open(tensors);
    weights.unpack(config, Path::new("config.json")).unwrap_or_else(|e| panic!("{what}: {e}"));
    let names: Vec<&str> = weights.describe().map(|(name, ..)| name).collect();
    assert_eq!(names, ["embed", "w.weight"], "{what}");
    let read = reference::checkpoint(&weights)("w.weight").unwrap();
    assert_eq!(read.shape, [N, K], "{what}");
    for (i, (got, want)) in read.as_f32().unwrap().iter().zip(values).enumerate() {
        assert!((got - want).abs() <= want.abs() * 1e-6, "{what} [{i}]: {got} for {want}");
    }
    let graph = graph();
    weights.check(&[("embed".into(), vec![9, K]), ("w.weight".into(), vec![N, K])]).unwrap();
    let seqs = vec![vec![1, 2, 3, 4, 5, 6, 7, 8], vec![0]];
    for dtype in [Dtype::Float32, Dtype::Bfloat16] {
        let (of, plan) = plan(&graph, &weights, dtype, None).unwrap();
        let summary = quantised(&of, &plan, &weights, dtype, None);
        assert_eq!(summary.matrices, usize::from(is_quantised), "{what}");
        let options = options(dtype, KvCacheDtype::Float32);
        check_executor(what, &graph, &weights, (&options, 0.02), &seqs).unwrap();
    }
}

#[test]
fn gptq_is_read() {
    for (bits, group, zeros) in
        [(4, 128, true), (4, 64, true), (4, 32, false), (4, K, false), (8, 128, false), (8, K, false)]
    {
        let m = Matrix::new(bits, group, zeros);
        for (format, plus) in [("gptq", 1), ("gptq_v2", 0)] {
            let size = if group == K { -1 } else { group as i64 };
            let config = json!({"quant_method": "gptq", "bits": bits, "group_size": size, "sym": !zeros,
                "desc_act": false, "checkpoint_format": format});
            check(&config.to_string(), &gptq(&m, bits as usize, plus), &config, &m.values(), true);
        }
    }
}

#[test]
fn gptq_with_columns_in_another_order_is_read() {
    let mut m = Matrix::new(4, 64, true);
    let shuffled = Random(4).shuffled(K);
    m.order = shuffled.iter().map(|&i| i as usize / 64).collect();
    let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": false, "desc_act": true});
    check("desc_act", &gptq(&m, 4, 1), &config, &m.values(), true);
}

#[test]
fn awq_is_read() {
    for group in [128, 64] {
        let m = Matrix::new(4, group, true);
        let config =
            json!({"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": true, "version": "gemm"});
        check("awq", &awq(&m), &config, &m.values(), true);
    }
}

#[test]
fn compressed_tensors_are_read() {
    let config = |format: &str, bits: u32, strategy: &str| {
        json!({"quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"], "config_groups": {"group_0": {
            "targets": ["Linear"], "weights": {"num_bits": bits, "type": "int", "strategy": strategy, "symmetric": true}}}})
    };
    for (bits, group, zeros) in [(4, 128, false), (4, 32, true), (8, 128, false), (8, K, false)] {
        let m = Matrix::new(bits, group, zeros);
        let tensors = pack_quantized(&m, bits as usize, zeros);
        check("pack-quantized", &tensors, &config("pack-quantized", bits, "group"), &m.values(), true);
    }
    let m = Matrix::new(8, K, false);
    check("int-quantized", &int8(&m), &config("int-quantized", 8, "channel"), &m.values(), true);
    let (tensors, values) = float8([1, K], vec![N, 1], "w.weight_scale");
    let mut config = config("float-quantized", 8, "channel");
    config["config_groups"]["group_0"]["weights"]["type"] = "float".into();
    check("float-quantized", &tensors, &config, &values, false);
}

#[test]
fn fp8_is_read() {
    let (tensors, values) = float8([128, 128], vec![N.div_ceil(128), K / 128], "w.weight_scale_inv");
    let config = json!({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"});
    check("blocks", &tensors, &config, &values, false);
    let (tensors, values) = float8([32, 64], vec![N.div_ceil(32), K / 64], "w.weight_scale_inv");
    let config = json!({"quant_method": "fp8", "weight_block_size": [32, 64], "fmt": "e4m3"});
    check("smaller blocks", &tensors, &config, &values, false);
    let (mut tensors, values) = float8([N, K], vec![], "w.weight_scale");
    tensors.push(("w.input_scale", "F32", vec![], f32s([0.5])));
    check("a scale", &tensors, &json!({"quant_method": "fp8", "activation_scheme": "static"}), &values, false);
    let (tensors, values) = float8([1, K], vec![N, 1], "w.weight_scale");
    check("a scale a row", &tensors, &json!({"quant_method": "fbgemm_fp8"}), &values, false);
}

#[test]
fn what_is_not_supported_is_named() {
    let m = Matrix::new(4, 64, true);
    let gptq_config = |field: &str, value: Json| {
        let mut config = json!({"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": false});
        config[field] = value;
        config
    };
    let compressed = |field: &str, value: Json| {
        let weights = json!({"num_bits": 4, "type": "int", "strategy": "group"});
        let mut config = json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": {"group_0": {"weights": weights}}});
        match field {
            "format" | "kv_cache_scheme" | "sparsity_config" => config[field] = value,
            _ => config["config_groups"]["group_0"]["weights"][field] = value,
        }
        config
    };
    let cases: Vec<(Json, &[&str])> = vec![
        (json!({"quant_method": "bitsandbytes"}), &["\"quant_method\" is \"bitsandbytes\"", "gptq, awq"]),
        (json!({"bits": 4}), &["\"quant_method\" is null"]),
        (json!(7), &["\"quant_method\" is null"]),
        (gptq_config("bits", 3.into()), &["\"bits\" is 3", "4, 8"]),
        (gptq_config("group_size", 48.into()), &["\"group_size\" is 48", "multiples of 32"]),
        (gptq_config("group_size", Json::Null), &["\"group_size\" is null"]),
        (gptq_config("checkpoint_format", "marlin".into()), &["\"checkpoint_format\" is \"marlin\""]),
        (gptq_config("bits", 8.into()), &["\"sym\" is false with \"bits\" 8"]),
        (gptq_config("group_size", 128.into()), &["w.scales has shape [4, 72] instead of [2, 72]"]),
        (json!({"quant_method": "awq", "bits": 4, "version": "gemv"}), &["\"version\" is \"gemv\"", "gemm"]),
        (json!({"quant_method": "awq", "bits": 4, "zero_point": false}), &["\"zero_point\" is false"]),
        (json!({"quant_method": "awq", "bits": 8}), &["\"bits\" is 8"]),
        (json!({"quant_method": "awq", "bits": 4}), &["w.scales has shape [4, 72] instead of [4, 576]"]),
        (json!({"quant_method": "fp8", "weight_block_size": [0, 1]}), &["\"weight_block_size\" is [0,1]"]),
        (compressed("format", "marlin-24".into()), &["\"format\" is \"marlin-24\""]),
        (compressed("kv_cache_scheme", json!({"num_bits": 8})), &["\"kv_cache_scheme\""]),
        (compressed("sparsity_config", json!({"format": "sparse-24"})), &["sparsity_config", "sparse-24"]),
        (compressed("num_bits", 2.into()), &["group_0", "\"num_bits\" is 2"]),
        (compressed("actorder", "group".into()), &["\"actorder\" is \"group\""]),
        (compressed("strategy", "token".into()), &["\"strategy\" is \"token\""]),
    ];
    for (config, parts) in cases {
        let weights = open(&gptq(&m, 4, 1));
        let error = weights.unpack(&config, Path::new("config.json")).unwrap_err().to_string();
        assert!(error.contains("config.json") && parts.iter().all(|part| error.contains(part)), "{config}: {error}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let m = Matrix::new(4, 64, true);
    let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": false});
    let fails = |what: &str, change: &dyn Fn(&mut Tensors), parts: &[&str]| {
        let mut tensors = gptq(&m, 4, 1);
        change(&mut tensors);
        let error = open(&tensors).unpack(&config, Path::new("config.json")).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{what}: {error}");
    };
    fails("no zeros", &|t| drop(t.remove(1)), &["w.qweight", "needs w.qzeros"]);
    fails("a type", &|t| t[0].1 = "U32", &["w.qweight is U32", "I32"]);
    fails("a shape", &|t| t[1].2 = vec![N / 8, 4], &["w.qzeros has shape [9, 4] instead of [4, 9]"]);
    fails("a group", &|t| t[3].3[0] = 9, &["w.g_idx holds group 9 of 4"]);
    let config = json!({"quant_method": "fp8"});
    let (mut tensors, _) = float8([1, K], vec![N, 1], "w.weight_scale");
    tensors[1].2 = vec![N];
    assert!(open(&tensors).unpack(&config, Path::new("c")).is_ok());
    tensors.remove(1);
    let error = open(&tensors).unpack(&config, Path::new("c")).unwrap_err().to_string();
    assert!(error.contains("needs w.weight_scale"), "{error}");
    let (tensors, _) = float8([36, K], vec![2, 1], "w.weight_scale");
    let error = open(&tensors).unpack(&config, Path::new("c")).unwrap_err().to_string();
    assert!(error.contains("w.weight_scale has shape [2, 1]"), "{error}");
}
