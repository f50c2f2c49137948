//! Writes GGUF files, as the format's description says.

/// A value of the metadata.
#[derive(Debug, Clone)]
pub enum Entry {
    /// `uint32`
    Number(u32),
    /// `float32`
    Float(f32),
    /// `string`
    Text(String),
    /// `array` of strings.
    Texts(Vec<String>),
    /// `array` of `int32`
    Numbers(Vec<i32>),
}

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stored {
    /// As it is.
    F32,
    /// 32 int8 codes with an f16 scale.
    Q8_0,
}

/// A file of this metadata and these tensors: sizes outermost first.
pub fn file(metadata: &[(&str, Entry)], tensors: &[(String, Vec<usize>, Vec<f32>, Stored)]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, entry) in metadata {
        text(&mut out, key);
        write_entry(&mut out, entry);
    }
    let mut data = vec![];
    for (name, shape, values, stored) in tensors {
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&n| out.extend((n as u64).to_le_bytes()));
        out.extend(if *stored == Stored::F32 { 0u32 } else { 8 }.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        match stored {
            Stored::F32 => values.iter().for_each(|x| data.extend(x.to_le_bytes())),
            Stored::Q8_0 => values.chunks(32).for_each(|block| q8_0(&mut data, block)),
        }
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn write_entry(out: &mut Vec<u8>, entry: &Entry) {
    let start = |out: &mut Vec<u8>, kind: u32| out.extend(kind.to_le_bytes());
    let list = |out: &mut Vec<u8>, kind: u32, length: usize| {
        start(out, 9);
        start(out, kind);
        out.extend((length as u64).to_le_bytes());
    };
    match entry {
        Entry::Number(n) => {
            start(out, 4);
            out.extend(n.to_le_bytes());
        }
        Entry::Float(x) => {
            start(out, 6);
            out.extend(x.to_le_bytes());
        }
        Entry::Text(s) => {
            start(out, 8);
            text(out, s);
        }
        Entry::Texts(all) => {
            list(out, 8, all.len());
            all.iter().for_each(|s| text(out, s));
        }
        Entry::Numbers(all) => {
            list(out, 5, all.len());
            all.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
    }
}

fn q8_0(out: &mut Vec<u8>, block: &[f32]) {
    let scale = half::f16::from_f32(block.iter().fold(0f32, |m, x| x.abs().max(m)) / 127.0);
    out.extend(scale.to_le_bytes());
    let code =
        |x: &f32| if scale.to_f32() == 0.0 { 0 } else { (x / scale.to_f32()).round().clamp(-127.0, 127.0) as i8 };
    out.extend(block.iter().map(|x| code(x) as u8));
}
