//! The model zoo of `tests/data/zoo`: tiny checkpoints as recipes, with outputs of the reference implementation.
//!
//! It reads `weights.json` (format `zoo-weights-1`) and writes the checkpoint folder the recipe describes, bit for bit,
//! and it parses `golden.json` (format `zoo-golden-1`). It never runs a model and never compares logits: the end-to-end
//! tests that call it do. A file whose tensor bytes miss the recipe's checksum is an error and is not written.

pub mod transformers;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use half::{bf16, f16};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// Why an entry of the zoo could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ZooError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A JSON file does not have the expected form.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A `format` field that this helper does not know.
    #[error("{}: format \"{found}\", expected \"{expected}\"", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format it names.
        found: String,
        /// The format this helper reads.
        expected: &'static str,
    },
    /// A tensor's recipe cannot be followed.
    #[error("{entry}: tensor \"{tensor}\": {message}")]
    Tensor {
        /// The entry's name.
        entry: String,
        /// The tensor's name.
        tensor: String,
        /// What is wrong.
        message: String,
    },
    /// The bytes that were made are not the ones that the recipe promises.
    #[error("{entry}/{file}: crc32 {found}, the recipe says {expected}")]
    Checksum {
        /// The entry's name.
        entry: String,
        /// The safetensors file.
        file: String,
        /// The checksum of what was made.
        found: String,
        /// The checksum in the recipe.
        expected: String,
    },
}

/// One folder of the zoo.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The folder's name: a `model_type`, or `model_type__variant`.
    pub name: String,
    /// The folder with `config.json`, `weights.json` and `golden.json`.
    pub dir: PathBuf,
}

/// Reference outputs of one entry (`golden.json`).
#[derive(Debug, Clone, Deserialize)]
pub struct Golden {
    /// `zoo-golden-1`.
    pub format: String,
    /// The folder's name.
    pub name: String,
    /// `model_type` of the loaded configuration.
    pub model_type: String,
    /// The transformers class that made the outputs.
    pub class: String,
    /// `dense`, `sliding`, `moe`, ...
    pub category: String,
    /// Features of the model.
    pub tags: Vec<String>,
    /// Parameters of the model (tied ones once).
    pub num_params: u64,
    /// Parameters without influence on the logits.
    pub unused_params: Vec<String>,
    /// Generation does not stop at an end-of-sequence id.
    pub ignore_eos: bool,
    /// Generating with a cache equals recomputing every step; `None`: the reference cannot use a cache.
    pub cache_matches: Option<bool>,
    /// Logits of a position do not depend on later positions or on the total length.
    pub prefix_causal: bool,
    /// Absolute tolerance for float32 logits.
    pub atol: f32,
    /// Peculiarities.
    pub notes: Vec<String>,
    /// Three prompts, of 1, 7 and 40 ids.
    pub prompts: Vec<GoldenPrompt>,
}

/// One prompt and what the reference makes of it.
#[derive(Debug, Clone, Deserialize)]
pub struct GoldenPrompt {
    /// Input ids, positions from 0.
    pub prompt_ids: Vec<u32>,
    /// Logits of the last prompt position, over the whole vocabulary.
    pub last_logits: Vec<f32>,
    /// 16 greedy ids, generated with a cache.
    pub greedy_ids: Vec<u32>,
    /// Smallest distance between the best and the second logit over the 16 steps.
    pub min_margin: f32,
    /// Ids when every step is recomputed, where the reference's cache changes the result.
    pub greedy_ids_no_cache: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct Recipe {
    format: String,
    model: String,
    #[serde(default)]
    salt: String,
    crc32: BTreeMap<String, String>,
    files: BTreeMap<String, Vec<Tensor>>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    fill: Fill,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Fill {
    Raw { base64: String },
    Const { value: f64 },
    Uniform { mean: f64, scale: f64 },
}

/// The folder that holds the zoo's entries.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/zoo")
}

/// Every entry, sorted by name. Empty only if the data folder is missing.
pub fn entries() -> Vec<Entry> {
    let mut found: Vec<Entry> = fs::read_dir(root())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|item| item.path().join("weights.json").is_file())
        .map(|item| Entry { name: item.file_name().to_string_lossy().into_owned(), dir: item.path() })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// The entry of that name.
pub fn entry(name: &str) -> Option<Entry> {
    entries().into_iter().find(|e| e.name == name)
}

impl Entry {
    /// The reference outputs.
    pub fn golden(&self) -> Result<Golden, ZooError> {
        let path = self.dir.join("golden.json");
        let golden: Golden = read_json(&path)?;
        check_format(&path, &golden.format, "zoo-golden-1")?;
        Ok(golden)
    }

    /// `config.json`, parsed.
    pub fn config(&self) -> Result<Value, ZooError> {
        read_json(&self.dir.join("config.json"))
    }

    /// Name, dtype and shape of every tensor of the checkpoint.
    pub fn tensors(&self) -> Result<Vec<(String, String, Vec<usize>)>, ZooError> {
        let recipe: Recipe = read_json(&self.dir.join("weights.json"))?;
        Ok(recipe.files.into_values().flatten().map(|t| (t.name, t.dtype, t.shape)).collect())
    }

    /// The entry's own Python files, where the model brings its code; sorted.
    pub fn code(&self) -> Result<Vec<PathBuf>, ZooError> {
        let items = fs::read_dir(&self.dir).map_err(io_error(&self.dir))?;
        let names = items.flatten().map(|item| PathBuf::from(item.file_name()));
        let mut files: Vec<PathBuf> = names.filter(|name| name.extension().is_some_and(|e| e == "py")).collect();
        files.sort();
        Ok(files)
    }

    /// Writes the checkpoint into the folder `out/<name>` (made if need be) and returns that folder.
    pub fn materialize(&self, out: &Path) -> Result<PathBuf, ZooError> {
        let path = self.dir.join("weights.json");
        let recipe: Recipe = read_json(&path)?;
        check_format(&path, &recipe.format, "zoo-weights-1")?;
        let target = out.join(&self.name);
        fs::create_dir_all(&target).map_err(io_error(&target))?;
        let config = target.join("config.json");
        fs::copy(self.dir.join("config.json"), &config).map_err(io_error(&config))?;
        for file in self.code()? {
            fs::copy(self.dir.join(&file), target.join(&file)).map_err(io_error(&target.join(&file)))?;
        }
        let mut weight_map = Map::new();
        let mut total = 0;
        for (file, tensors) in &recipe.files {
            total += self.write_file(&recipe, file, tensors, &target.join(file))?;
            for tensor in tensors {
                weight_map.insert(tensor.name.clone(), json!(file));
            }
        }
        if recipe.files.len() > 1 {
            let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
            let path = target.join("model.safetensors.index.json");
            fs::write(&path, format!("{index:#}")).map_err(io_error(&path))?;
        }
        Ok(target)
    }

    /// Makes one safetensors file, checks it against the recipe, writes it; returns the bytes of its tensors.
    fn write_file(&self, recipe: &Recipe, file: &str, tensors: &[Tensor], path: &Path) -> Result<usize, ZooError> {
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut body = Vec::new();
        for tensor in tensors {
            let begin = body.len();
            tensor.append(&recipe.model, &recipe.salt, &mut body).map_err(|message| ZooError::Tensor {
                entry: self.name.clone(),
                tensor: tensor.name.clone(),
                message,
            })?;
            let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, body.len()]});
            header.insert(tensor.name.clone(), entry);
        }
        let found = format!("{:08x}", crc32fast::hash(&body));
        // A file without a checksum in the recipe is as suspect as one with the wrong checksum.
        let expected = recipe.crc32.get(file).cloned().unwrap_or_else(|| "nothing".into());
        if found != expected {
            return Err(ZooError::Checksum { entry: self.name.clone(), file: file.into(), found, expected });
        }
        let mut head = Value::Object(header).to_string();
        head.extend(std::iter::repeat_n(' ', head.len().next_multiple_of(8) - head.len()));
        let mut out = fs::File::create(path).map_err(io_error(path))?;
        for part in [&(head.len() as u64).to_le_bytes()[..], head.as_bytes(), &body] {
            out.write_all(part).map_err(io_error(path))?;
        }
        Ok(body.len())
    }
}

impl Tensor {
    /// Appends the tensor's bytes.
    fn append(&self, model: &str, salt: &str, out: &mut Vec<u8>) -> Result<(), String> {
        let size = element_size(&self.dtype).ok_or_else(|| format!("unknown dtype \"{}\"", self.dtype))?;
        let count: usize = self.shape.iter().product();
        let begin = out.len();
        match &self.fill {
            Fill::Raw { base64 } => {
                out.extend(STANDARD.decode(base64).map_err(|e| format!("base64: {e}"))?);
            }
            Fill::Const { value } => {
                for _ in 0..count {
                    self.push(*value, out)?;
                }
            }
            Fill::Uniform { mean, scale } => {
                let seed = fnv1a64(format!("{model}/{}{salt}", self.name).as_bytes());
                for index in 0..count as u64 {
                    self.push(f64::from(uniform(seed, index, *mean as f32, *scale as f32)), out)?;
                }
            }
        }
        let (made, wanted) = (out.len() - begin, count * size);
        if made == wanted { Ok(()) } else { Err(format!("{made} bytes instead of {wanted}")) }
    }

    /// Appends one element, rounded to float32 first (floats), then to the dtype with ties to even.
    fn push(&self, value: f64, out: &mut Vec<u8>) -> Result<(), String> {
        match self.dtype.as_str() {
            "F64" => out.extend(f64::from(value as f32).to_le_bytes()),
            "F32" => out.extend((value as f32).to_le_bytes()),
            "F16" => out.extend(f16::from_f32(value as f32).to_le_bytes()),
            "BF16" => out.extend(bf16::from_f32(value as f32).to_le_bytes()),
            "I64" => out.extend((value as i64).to_le_bytes()),
            "I32" => out.extend((value as i32).to_le_bytes()),
            "I16" => out.extend((value as i16).to_le_bytes()),
            "I8" => out.extend((value as i8).to_le_bytes()),
            "U8" => out.push(value as u8),
            "BOOL" => out.push(u8::from(value != 0.0)),
            other => return Err(format!("unknown dtype \"{other}\"")),
        }
        Ok(())
    }
}

/// Element `index` of a `uniform` fill: counter-based splitmix64, then two float32 roundings without fused multiply-add.
fn uniform(seed: u64, index: u64, mean: f32, scale: f32) -> f32 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    let unit = ((z >> 40) as f32 - 8_388_608.0) / 8_388_608.0;
    unit * scale + mean
}

fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

fn element_size(dtype: &str) -> Option<usize> {
    Some(match dtype {
        "F64" | "I64" => 8,
        "F32" | "I32" => 4,
        "F16" | "BF16" | "I16" => 2,
        "I8" | "U8" | "BOOL" => 1,
        _ => return None,
    })
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ZooError> {
    let text = fs::read(path).map_err(io_error(path))?;
    serde_json::from_slice(&text).map_err(|source| ZooError::Json { path: path.into(), source })
}

fn check_format(path: &Path, found: &str, expected: &'static str) -> Result<(), ZooError> {
    if found == expected {
        return Ok(());
    }
    Err(ZooError::Format { path: path.into(), found: found.into(), expected })
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> ZooError {
    let path = path.to_path_buf();
    move |source| ZooError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_materialises_with_its_checksum() {
        let out = tempfile::tempdir().unwrap();
        let entries = entries();
        assert!(entries.len() >= 20, "only {} entries", entries.len());
        for entry in entries {
            let dir = entry.materialize(out.path()).unwrap();
            assert!(dir.join("config.json").is_file());
            assert!(
                fs::read_dir(&dir).unwrap().flatten().any(|f| f.path().extension() == Some("safetensors".as_ref()))
            );
        }
    }

    #[test]
    fn every_golden_has_three_prompts() {
        for entry in entries() {
            let golden = entry.golden().unwrap();
            assert_eq!(golden.name, entry.name);
            let lengths: Vec<usize> = golden.prompts.iter().map(|p| p.prompt_ids.len()).collect();
            assert_eq!(lengths, [1, 7, 40], "{}", entry.name);
            for prompt in &golden.prompts {
                assert_eq!(prompt.greedy_ids.len(), 16);
                // A head may be narrower than the padded vocabulary of the embedding; the configuration says so.
                let config = entry.config().unwrap();
                let width = config["unpadded_vocab_size"].as_u64().or(config["vocab_size"].as_u64()).unwrap_or(256);
                assert_eq!(prompt.last_logits.len() as u64, width, "{}", entry.name);
            }
        }
    }

    #[test]
    fn a_changed_recipe_misses_its_checksum() {
        let copy = tempfile::tempdir().unwrap();
        let source = entry("llama").unwrap();
        fs::copy(source.dir.join("config.json"), copy.path().join("config.json")).unwrap();
        let recipe = fs::read_to_string(source.dir.join("weights.json")).unwrap();
        fs::write(copy.path().join("weights.json"), recipe.replacen("\"scale\":0.26", "\"scale\":0.27", 1)).unwrap();
        let changed = Entry { name: "llama".into(), dir: copy.path().into() };
        let out = tempfile::tempdir().unwrap();
        let error = changed.materialize(out.path()).unwrap_err();
        assert!(matches!(error, ZooError::Checksum { .. }), "{error}");
        assert!(!out.path().join("llama/model.safetensors").exists());
    }

    #[test]
    fn fill_follows_the_published_recurrence() {
        // Independent value: splitmix64 with state 0 yields 0xE220A8397B1DCDAF first.
        let z = 0xE220_A839_7B1D_CDAF_u64;
        let expected = ((z >> 40) as f32 - 8_388_608.0) / 8_388_608.0;
        assert_eq!(uniform(0, 0, 0.0, 1.0), expected);
        assert_eq!(fnv1a64(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
