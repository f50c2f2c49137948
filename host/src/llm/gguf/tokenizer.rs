//! `tokenizer.json` and `tokenizer_config.json` from the metadata: byte-level BPE (`gpt2`) and SentencePiece's BPE
//! (`llama`), as the Hugging Face tokenizers of such models are.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::Meta;
use crate::hub::GgufValue;

/// Types of tokens.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// How contractions, letters, digits and the rest are told apart; between digits and the end the families differ.
const LETTERS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|";
const REST: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What both kinds have.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i64>,
}

/// `tokenizer.json` and `tokenizer_config.json`.
pub(super) fn translate(meta: &Meta<'_>) -> Result<(Value, Value), String> {
    let tokens = meta.texts("tokenizer.ggml.tokens")?;
    let types = match meta.list("tokenizer.ggml.token_type")? {
        None => vec![1; tokens.len()],
        Some(all) if all.len() == tokens.len() => {
            all.iter().map(|v| if let GgufValue::Int(n) = v { *n } else { 1 }).collect()
        }
        Some(_) => {
            return Err(meta.wrong("tokenizer.ggml.token_type", &format!("it must have {} elements", tokens.len())));
        }
    };
    let vocabulary = Vocabulary { tokens, types };
    let mut tokenizer = match meta.text("tokenizer.ggml.model")? {
        Some("gpt2") => byte_level(meta, &vocabulary)?,
        Some("llama") => sentence_piece(meta, &vocabulary)?,
        _ => return Err(meta.wrong("tokenizer.ggml.model", "supported are gpt2 and llama")),
    };
    tokenizer["added_tokens"] = vocabulary.added();
    let starts = match meta.text("tokenizer.ggml.model")? {
        Some("llama") => true,
        _ => meta.text("tokenizer.ggml.pre")? == Some("llama-bpe"),
    };
    let token = |name: &str| -> Result<Option<(usize, &str)>, String> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = meta.size(&key)? else { return Ok(None) };
        let text = vocabulary.tokens.get(id).copied();
        text.map(|text| Some((id, text))).ok_or_else(|| meta.wrong(&key, "there is no such token"))
    };
    let (bos, eos) = (token("bos")?, token("eos")?);
    let starts = meta.flag("tokenizer.ggml.add_bos_token", starts)?;
    let ends = meta.flag("tokenizer.ggml.add_eos_token", false)?;
    let (begin, end) = (bos.filter(|_| starts), eos.filter(|_| ends));
    tokenizer["post_processor"] = template(begin, end);
    let mut config = json!({});
    let names =
        [("bos_token", bos), ("eos_token", eos), ("unk_token", token("unknown")?), ("pad_token", token("padding")?)];
    for (name, found) in names {
        if let Some((_, text)) = found {
            config[name] = text.into();
        }
    }
    if let Some(template) = meta.text("tokenizer.chat_template")? {
        config["chat_template"] = template.into();
    }
    Ok((tokenizer, config))
}

impl Vocabulary<'_> {
    fn ids(&self) -> Result<serde_json::Map<String, Value>, String> {
        let mut ids = serde_json::Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(other) = ids.insert((*token).to_owned(), id.into()) {
                return Err(format!("metadata \"tokenizer.ggml.tokens\": {token:?} is token {other} and token {id}"));
            }
        }
        Ok(ids)
    }

    /// Tokens that texts are cut at first.
    fn added(&self) -> Value {
        let one = |(id, (token, kind)): (usize, (&&str, &i64))| {
            let special = [CONTROL, UNKNOWN].contains(kind);
            (special || *kind == USER_DEFINED).then(|| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special})
            })
        };
        self.tokens.iter().zip(&self.types).enumerate().filter_map(one).collect()
    }
}

/// What is put before and after a text.
fn template(begin: Option<(usize, &str)>, end: Option<(usize, &str)>) -> Value {
    if begin.is_none() && end.is_none() {
        return Value::Null;
    }
    let special = |token: Option<(usize, &str)>, part: usize| {
        token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": part}}))
    };
    let text = |name: &str, part: usize| {
        let all = [special(begin, part), Some(json!({"Sequence": {"id": name, "type_id": part}})), special(end, part)];
        all.into_iter().flatten().collect::<Vec<_>>()
    };
    let mut tokens = serde_json::Map::new();
    for (id, text) in [begin, end].into_iter().flatten() {
        tokens.insert(text.into(), json!({"id": text, "ids": [id], "tokens": [text]}));
    }
    let pair = [text("A", 0), text("B", 1)].concat();
    json!({"type": "TemplateProcessing", "single": text("A", 0), "pair": pair,
        "special_tokens": tokens})
}

fn byte_level(meta: &Meta<'_>, vocabulary: &Vocabulary<'_>) -> Result<Value, String> {
    let mut merges = vec![];
    for merge in meta.texts("tokenizer.ggml.merges")? {
        let pair = merge.split_once(' ');
        let (a, b) = pair.ok_or_else(|| format!("metadata \"tokenizer.ggml.merges\": {merge:?} is no pair"))?;
        merges.push(json!([a, b]));
    }
    let split = |digits: &str| {
        let regex = format!("{LETTERS}{digits}{REST}");
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]})
    };
    let plain = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let (normalizer, pre_tokenizer, ignore_merges) = match meta.text("tokenizer.ggml.pre")? {
        Some("gpt-2") => (Value::Null, plain, false),
        // Files from before there was a choice.
        None if meta.text("general.architecture")? == Some("gpt2") => (Value::Null, plain, false),
        Some("llama-bpe") => (Value::Null, split(r"\p{N}{1,3}"), true),
        Some("qwen2") => (json!({"type": "NFC"}), split(r"\p{N}"), false),
        _ => return Err(meta.wrong("tokenizer.ggml.pre", "supported are gpt-2, llama-bpe and qwen2")),
    };
    Ok(json!({
        "version": "1.0",
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "unk_token": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": ignore_merges, "vocab": vocabulary.ids()?, "merges": merges},
    }))
}

fn sentence_piece(meta: &Meta<'_>, vocabulary: &Vocabulary<'_>) -> Result<Value, String> {
    let scores = meta.list("tokenizer.ggml.scores")?.unwrap_or_default();
    if scores.len() != vocabulary.tokens.len() {
        let wanted = format!("it must have {} elements, one a token", vocabulary.tokens.len());
        return Err(meta.wrong("tokenizer.ggml.scores", &wanted));
    }
    let unknown = vocabulary.types.iter().position(|kind| *kind == UNKNOWN).map(|id| vocabulary.tokens[id]);
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", "▁")];
    let mut decoders = vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if meta.flag("tokenizer.ggml.add_space_prefix", true)? {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
            "vocab": vocabulary.ids()?, "merges": merges_of(vocabulary, scores)},
    }))
}

/// SentencePiece joins the neighbours whose join has the best score: every token is a merge of each pair that it can be
/// cut into, in the order of scores.
fn merges_of(vocabulary: &Vocabulary<'_>, scores: &[GgufValue]) -> Vec<Value> {
    let ids: HashMap<&str, usize> = vocabulary.tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let mut all: Vec<(f64, &str, &str)> = vec![];
    for ((token, kind), score) in vocabulary.tokens.iter().zip(&vocabulary.types).zip(scores) {
        let GgufValue::Float(score) = score else { continue };
        if [UNKNOWN, CONTROL].contains(kind) {
            continue;
        }
        let cut = |(at, _): (usize, char)| token.split_at(at);
        let cuts = token.char_indices().skip(1).map(cut);
        all.extend(cuts.filter(|(a, b)| ids.contains_key(a) && ids.contains_key(b)).map(|(a, b)| (*score, a, b)));
    }
    // The longer left part first, as the conversion in transformers has it.
    all.sort_by(|x, y| y.0.total_cmp(&x.0).then_with(|| y.1.chars().count().cmp(&x.1.chars().count())));
    all.into_iter().map(|(_, a, b)| json!([a, b])).collect()
}
