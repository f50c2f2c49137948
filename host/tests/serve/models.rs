//! Model folders, good and damaged.
#![allow(dead_code)] // no test program needs all of it

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// A model folder that a test may damage.
pub struct Folder {
    pub dir: PathBuf,
}

impl Folder {
    /// The zoo's entry `llama`, written into `parent`: no tokenizer, 256 tokens, 512 positions.
    pub fn llama(parent: &Path) -> Folder {
        let entry = host_zoo::entry("llama").unwrap();
        Folder { dir: entry.materialize(parent).unwrap() }
    }

    /// A model of this configuration and of these tensors, filled with small numbers.
    pub fn made(dir: PathBuf, config: &Value, tensors: &[(&str, &[usize])]) -> Folder {
        std::fs::create_dir_all(&dir).unwrap();
        let (mut header, mut body) = (Map::new(), Vec::new());
        for (name, shape) in tensors {
            let begin = body.len();
            for i in 0..shape.iter().product::<usize>() {
                // Norms are near one, other weights on both sides of zero.
                let value = if shape.len() == 1 { 1.0 } else { ((i * 37 + begin) % 101) as f32 / 101.0 - 0.5 };
                body.extend(value.to_le_bytes());
            }
            header.insert((*name).into(), json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, body.len()]}));
        }
        let folder = Folder { dir };
        folder.put("config.json", config.to_string());
        folder.put_weights(&Value::Object(header), &body);
        folder
    }

    pub fn arg(&self) -> &str {
        self.dir.to_str().unwrap()
    }

    pub fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.dir.join(name), bytes).unwrap();
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.dir.join(name)).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.join(name)).unwrap()
    }

    /// Sets a field of config.json.
    pub fn set(&self, field: &str, value: Value) {
        self.config(|config| {
            config.insert(field.into(), value);
        });
    }

    /// Changes config.json.
    pub fn config(&self, change: impl FnOnce(&mut Map<String, Value>)) {
        let mut config: Map<String, Value> = serde_json::from_slice(&self.read("config.json")).unwrap();
        change(&mut config);
        self.put("config.json", Value::Object(config).to_string());
    }

    /// Changes the header of model.safetensors.
    pub fn header(&self, change: impl FnOnce(&mut Map<String, Value>)) {
        let bytes = self.read("model.safetensors");
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        change(&mut header);
        self.put_weights(&Value::Object(header), &bytes[8 + length..]);
    }

    /// Stores a tensor as zeros of another type.
    pub fn retype(&self, tensor: &str, dtype: &str, element_size: usize) {
        let bytes = self.read("model.safetensors");
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        header.remove("__metadata__");
        let mut body = Vec::new();
        for (name, info) in &mut header {
            let begin = body.len();
            if name == tensor {
                let shape = info["shape"].as_array().unwrap();
                let count: usize = shape.iter().map(|d| d.as_u64().unwrap() as usize).product();
                body.resize(begin + count * element_size, 0);
                info["dtype"] = json!(dtype);
            } else {
                let at = |i: usize| 8 + length + info["data_offsets"][i].as_u64().unwrap() as usize;
                body.extend(&bytes[at(0)..at(1)]);
            }
            info["data_offsets"] = json!([begin, body.len()]);
        }
        self.put_weights(&Value::Object(header), &body);
    }

    /// The elements of a tensor stored as F32.
    pub fn floats(&self, tensor: &str) -> Vec<f32> {
        let bytes = self.read("model.safetensors");
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let at = |i: usize| 8 + length + header[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
        let four = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
        bytes[at(0)..at(1)].chunks_exact(4).map(four).collect()
    }

    /// Gives tensors other names; those without one are dropped.
    pub fn rename(&self, name_of: impl Fn(&str) -> Option<String>) {
        let bytes = self.read("model.safetensors");
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let (mut new, mut body) = (Map::new(), Vec::new());
        for (name, mut info) in header {
            let Some(renamed) = name_of(&name).filter(|_| name != "__metadata__") else { continue };
            let at = |i: usize| 8 + length + info["data_offsets"][i].as_u64().unwrap() as usize;
            let (begin, end) = (at(0), at(1));
            let offset = body.len();
            body.extend(&bytes[begin..end]);
            info["data_offsets"] = json!([offset, body.len()]);
            new.insert(renamed, info);
        }
        self.put_weights(&Value::Object(new), &body);
    }

    fn put_weights(&self, header: &Value, body: &[u8]) {
        let mut head = header.to_string();
        head.extend(std::iter::repeat_n(' ', head.len().next_multiple_of(8) - head.len()));
        self.put("model.safetensors", [&(head.len() as u64).to_le_bytes()[..], head.as_bytes(), body].concat());
    }

    /// A tokenizer of four words.
    pub fn add_tokenizer(&self) {
        let tokenizer = json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2, "[UNK]": 3}, "unk_token": "[UNK]"},
        });
        self.put("tokenizer.json", tokenizer.to_string());
    }
}
