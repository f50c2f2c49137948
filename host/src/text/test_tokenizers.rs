//! Small tokenizers of every kind, made in memory. For tests only.

use serde_json::json;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerImpl};

use super::Tokenizer;

const CORPUS: [&str; 6] = [
    "the quick brown fox jumps over the lazy dog and the other fox",
    "then they thought that the weather there was rather bothersome",
    "\u{4f60}\u{597d}\u{ff0c}\u{4e16}\u{754c} \u{4f60}\u{597d}\u{4f60}\u{597d} \u{1f600}\u{1f600}\u{1f680}\u{1f600}",
    "sch\u{f6}n gr\u{fc}\u{df} f\u{fc}r \u{fc}ber \u{e4}hnlich na\u{ef}ve caf\u{e9}",
    "    indent\n\n\tcode = {1: 2}\n  return None\n",
    "don't you're it's we'll \u{fffd} 12345 67890",
];

/// Byte-level BPE as in GPT-2, trained; merges cross the bytes of characters.
pub(super) fn byte_level_json() -> Vec<u8> {
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let trainer = BpeTrainer::builder()
        .vocab_size(420)
        .show_progress(false)
        .special_tokens(["<s>", "</s>", "<pad>"].map(|t| AddedToken::from(t, true)).to_vec())
        .initial_alphabet(alphabet.into_iter().collect())
        .build();
    let mut trainer = TrainerWrapper::from(trainer);
    let corpus = CORPUS.iter().flat_map(|line| std::iter::repeat_n(*line, 3));
    tokenizer.train(&mut trainer, corpus).unwrap();
    let text: &TokenizerImpl<_, _, _, _, _> = &tokenizer;
    serde_json::to_vec(text).unwrap()
}

pub(super) fn byte_level() -> Tokenizer {
    Tokenizer::from_bytes(&byte_level_json(), None, None).unwrap()
}

/// Sentencepiece pieces: special tokens, the 256 bytes if asked for, words, letters.
fn pieces(bytes: bool) -> Vec<(String, f64)> {
    let mut pieces: Vec<(String, f64)> = ["<unk>", "<s>", "</s>"].map(|t| (t.to_owned(), 0.0)).to_vec();
    if bytes {
        pieces.extend((0..=255).map(|b| (format!("<0x{b:02X}>"), -20.0)));
    }
    let words = [
        "\u{2581}the",
        "\u{2581}",
        "\u{2581}\u{2581}",
        "th",
        "er",
        "\u{2581}qu",
        "ick",
        "\u{4f60}\u{597d}",
        "\u{fffd}",
    ];
    pieces.extend(words.map(|w| (w.to_owned(), -3.0)));
    pieces.extend(('a'..='z').chain(['\u{e4}', '\u{f6}', '!', '\'', '.']).map(|c| (c.to_string(), -6.0)));
    if !bytes {
        pieces.extend(['\u{4f60}', '\u{1f600}', '\n'].map(|c| (c.to_string(), -6.0)));
    }
    pieces
}

/// Unigram in the manner of Llama 2: byte fallback, spaces as U+2581, a leading space stripped.
pub(super) fn byte_fallback() -> Tokenizer {
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
        ]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": true, "vocab": pieces(true)},
    });
    Tokenizer::from_bytes(json.to_string().as_bytes(), None, None).unwrap()
}

/// Unigram with the metaspace decoder of T5 and others.
pub(super) fn metaspace() -> Tokenizer {
    let metaspace = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": null, "pre_tokenizer": metaspace, "post_processor": null, "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": pieces(false)},
    });
    Tokenizer::from_bytes(json.to_string().as_bytes(), None, None).unwrap()
}

/// Whole words, and no decoder: words are joined by spaces.
pub(super) fn word_level() -> Tokenizer {
    let words = ["[UNK]", "[BOS]", "the", "quick", "fox", "\u{4f60}\u{597d}", "\u{fffd}", ","];
    let vocab: serde_json::Map<_, _> =
        words.iter().enumerate().map(|(id, word)| (word.to_string(), json!(id))).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "[UNK]"), added(1, "[BOS]")],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    });
    Tokenizer::from_bytes(json.to_string().as_bytes(), None, None).unwrap()
}

fn added(id: u32, content: &str) -> serde_json::Value {
    json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false})
}

/// All of them, made once.
pub(super) fn all() -> Vec<(&'static str, Tokenizer)> {
    static ALL: std::sync::OnceLock<Vec<(&'static str, Tokenizer)>> = std::sync::OnceLock::new();
    let make = || {
        vec![
            ("byte level", byte_level()),
            ("byte fallback", byte_fallback()),
            ("metaspace", metaspace()),
            ("word level", word_level()),
        ]
    };
    ALL.get_or_init(make).clone()
}
