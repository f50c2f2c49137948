//! The header of a GGUF file: parsed and checked completely before any byte of a tensor is used.
//!
//! Written from the public description of the format (versions 2 and 3, little-endian). Every length is compared with
//! what is left of the file before anything is allocated for it. What metadata mean is not known here: `llm::gguf` reads
//! them.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::HubError;
use super::header::{Dtype, TensorInfo};
use super::packed::{self, BlockType};
use super::weights::{Source, Weights};

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// An integer of any size.
    Int(i64),
    /// A float of either size.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// Values of one type, none of them a list.
    List(Vec<GgufValue>),
}

/// Metadata by key.
pub type GgufMetadata = BTreeMap<String, GgufValue>;

/// A tensor: sizes outermost first, its data at `begin..end` of the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct GgufTensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) kind: BlockType,
    pub(super) begin: usize,
    pub(super) end: usize,
}

/// What a file says of itself.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: GgufMetadata,
    pub(super) tensors: Vec<GgufTensor>,
}

/// Most entries of the metadata; models have some dozens.
const MAX_ENTRIES: u64 = 1 << 16;

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Fault = String;

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| {
            let left = self.bytes.len() - self.at;
            format!("the file is cut off: {what} takes {n} bytes at byte {}, {left} are left; fetch it again", self.at)
        })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Fault> {
        Ok(self.take(N, what)?.first_chunk().copied().unwrap_or([0; N]))
    }

    fn u32(&mut self, what: &str) -> Result<u32, Fault> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, Fault> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things of at least `size` bytes each.
    fn count(&mut self, size: usize, what: &str) -> Result<usize, Fault> {
        let n = self.u64(what)?;
        let left = (self.bytes.len() - self.at) / size.max(1);
        usize::try_from(n).ok().filter(|&n| n <= left).ok_or_else(|| {
            format!("{what} is {n}, but the file has room for {left} at most: it is cut off or no GGUF file")
        })
    }

    fn text(&mut self, what: &str) -> Result<String, Fault> {
        let n = self.count(1, what)?;
        let bytes = self.take(n, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|e| format!("{what} is not UTF-8: {e}"))
    }

    /// A value of this type; lists hold no lists.
    fn value(&mut self, kind: u32, what: &str, nested: bool) -> Result<GgufValue, Fault> {
        use GgufValue::{Bool, Float, Int, List, Text};
        Ok(match kind {
            0 => Int(u8::from_le_bytes(self.array(what)?).into()),
            1 => Int(i8::from_le_bytes(self.array(what)?).into()),
            2 => Int(u16::from_le_bytes(self.array(what)?).into()),
            3 => Int(i16::from_le_bytes(self.array(what)?).into()),
            4 => Int(self.u32(what)?.into()),
            5 => Int(i32::from_le_bytes(self.array(what)?).into()),
            6 => Float(f32::from_le_bytes(self.array(what)?).into()),
            7 => Bool(self.take(1, what)? != [0]),
            8 => Text(self.text(what)?),
            9 if !nested => {
                let element = self.u32(what)?;
                let smallest = match element {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    _ => 8,
                };
                let n = self.count(smallest, what)?;
                List((0..n).map(|_| self.value(element, what, true)).collect::<Result<_, _>>()?)
            }
            10 => {
                let n = self.u64(what)?;
                Int(i64::try_from(n).map_err(|_| format!("{what} is {n}, which is too large"))?)
            }
            11 => Int(i64::from_le_bytes(self.array(what)?)),
            12 => Float(f64::from_le_bytes(self.array(what)?)),
            other => return Err(format!("{what} has type {other}, which is not supported here")),
        })
    }
}

/// Reads and checks the header. The fault names the entry or tensor.
pub(super) fn parse(bytes: &[u8]) -> Result<Header, Fault> {
    let mut r = Reader { bytes, at: 0 };
    if r.take(4, "the magic number")? != b"GGUF" {
        return Err("this is no GGUF file: it does not begin with GGUF".into());
    }
    let version = r.u32("the version")?;
    if ![2, 3].contains(&version) {
        return Err(format!("GGUF version {version} is not supported (2 and 3 are; big-endian files are not)"));
    }
    // A name's length, rank, a size, a type and an offset.
    let tensors = r.count(8 + 4 + 4 + 8, "the number of tensors")?;
    let entries = r.u64("the number of metadata entries")?;
    if entries > MAX_ENTRIES {
        return Err(format!("the number of metadata entries is {entries}, the limit is {MAX_ENTRIES}"));
    }
    let mut metadata = GgufMetadata::new();
    for i in 0..entries {
        let key = r.text(&format!("the key of metadata entry {i}"))?;
        let what = format!("metadata \"{key}\"");
        let kind = r.u32(&what)?;
        let value = r.value(kind, &what, false)?;
        if metadata.insert(key, value).is_some() {
            return Err(format!("{what} appears twice"));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(GgufValue::Int(n)) if *n > 0 && *n % 8 == 0 && *n <= 1 << 20 => *n as usize,
        Some(other) => return Err(format!("metadata \"general.alignment\" is {other:?}; it must be a multiple of 8")),
    };
    let mut infos = Vec::with_capacity(tensors);
    let mut names = HashSet::new();
    for i in 0..tensors {
        let info = tensor(&mut r, i)?;
        if !names.insert(info.name.clone()) {
            return Err(format!("tensor \"{}\" appears twice", info.name));
        }
        infos.push(info);
    }
    let start = r.at.next_multiple_of(alignment);
    for t in &mut infos {
        let name = &t.name;
        if !t.begin.is_multiple_of(alignment) {
            return Err(format!("tensor \"{name}\" begins at {}, which is no multiple of {alignment}", t.begin));
        }
        let place = start.checked_add(t.begin).zip(start.checked_add(t.end)).filter(|(_, end)| *end <= bytes.len());
        (t.begin, t.end) = place.ok_or_else(|| {
            let data = bytes.len().saturating_sub(start);
            format!(
                "tensor \"{name}\" ends at byte {} of the data, the file has {data}: it is cut off; fetch it again",
                t.end
            )
        })?;
    }
    Ok(Header { metadata, tensors: infos })
}

/// One tensor; offsets are still those in the data.
fn tensor(r: &mut Reader<'_>, i: usize) -> Result<GgufTensor, Fault> {
    let name = r.text(&format!("the name of tensor {i}"))?;
    let what = format!("tensor \"{name}\"");
    let rank = r.u32(&what)?;
    if !(1..=4).contains(&rank) {
        return Err(format!("{what} has {rank} dimensions; 1 to 4 are possible"));
    }
    let mut shape = vec![];
    for _ in 0..rank {
        let n = r.u64(&what)?;
        shape.push(usize::try_from(n).map_err(|_| format!("{what} has a dimension of {n}"))?);
    }
    // The innermost comes first in the file.
    shape.reverse();
    let number = r.u32(&what)?;
    let kind = BlockType::from_number(number).ok_or_else(|| {
        format!("{what} has type {number}, which is not supported (supported: {})", BlockType::names())
    })?;
    let begin = usize::try_from(r.u64(&what)?).unwrap_or(usize::MAX);
    let columns = shape.last().copied().unwrap_or(0);
    let (elements, size) = kind.block();
    if !columns.is_multiple_of(elements) {
        return Err(format!("{what} has rows of {columns} elements, {} takes them by {elements}", kind.name()));
    }
    let blocks = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).map(|n| n / elements);
    let end = blocks.and_then(|n| n.checked_mul(size)).and_then(|n| n.checked_add(begin));
    let end = end.ok_or_else(|| format!("{what} has shape {shape:?}, which overflows"))?;
    Ok(GgufTensor { name, shape, kind, begin, end })
}

/// An opened file.
pub struct GgufFile {
    source: Source,
    header: Header,
}

impl std::fmt::Debug for GgufFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GgufFile").field("path", &self.source.path()).field("header", &self.header).finish()
    }
}

/// Where a tensor goes in the checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufPlace {
    /// Its name there.
    pub name: String,
    /// The rows of each head, of this size, are in the order of neighbours instead of halves.
    pub rotary_head: Option<usize>,
    /// It is the transpose of the checkpoint's.
    pub transposed: bool,
}

impl GgufFile {
    /// Maps a file and checks its header.
    pub fn open(path: &Path) -> Result<Self, HubError> {
        let source = Source::map(path.into())?;
        let header = parse(source.bytes()).map_err(|message| HubError::File { file: path.into(), message })?;
        Ok(GgufFile { source, header })
    }

    /// Its metadata.
    pub fn metadata(&self) -> &GgufMetadata {
        &self.header.metadata
    }

    /// Names and sizes of its tensors, outermost dimension first.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.header.tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice()))
    }

    /// Where the data of the last tensor ends.
    #[cfg(test)]
    pub(crate) fn end(&self) -> usize {
        self.header.tensors.iter().map(|t| t.end).max().unwrap_or(0)
    }

    /// The values of a tensor that is stored as f32.
    pub fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let t = self.header.tensors.iter().find(|t| t.name == name && t.kind == BlockType::F32)?;
        let data = &self.source.bytes()[t.begin..t.end];
        Some(data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// Its tensors as those of a checkpoint. What goes nowhere is left out.
    pub fn into_weights(self, place: &dyn Fn(&str) -> Option<GgufPlace>) -> Result<Weights, HubError> {
        let GgufFile { source, header } = self;
        let (mut infos, mut matrices) = (vec![], vec![]);
        for t in header.tensors {
            let Some(GgufPlace { name, rotary_head, transposed }) = place(&t.name) else { continue };
            let plain = match t.kind {
                BlockType::F32 => Some(Dtype::F32),
                BlockType::F16 => Some(Dtype::F16),
                BlockType::BF16 => Some(Dtype::BF16),
                _ => None,
            };
            let (begin, end) = (t.begin, t.end);
            if let (Some(dtype), None, false) = (plain, rotary_head, transposed) {
                infos.push(TensorInfo { name, dtype, shape: t.shape, begin, end });
                continue;
            }
            let fault =
                |message: String| HubError::Tensor { file: source.path().into(), tensor: t.name.clone(), message };
            let &[n, k] = t.shape.as_slice() else {
                return Err(fault(format!("has shape {:?}; supported are matrices of {}", t.shape, t.kind.name())));
            };
            if rotary_head.is_some_and(|head| head < 2 || head % 2 != 0 || n % head != 0) {
                return Err(fault(format!("has {n} rows, which are no heads of {rotary_head:?}")));
            }
            let bytes = format!("{}{name}", packed::PREFIX);
            matrices.push((name, bytes.clone(), [n, k], t.kind, rotary_head, transposed));
            infos.push(TensorInfo { name: bytes, dtype: Dtype::U8, shape: vec![end - begin], begin, end });
        }
        let weights = Weights::of_tensors(vec![source], vec![infos])?;
        weights.set_blocks(matrices);
        Ok(weights)
    }
}
