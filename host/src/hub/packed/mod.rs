//! Matrices that a checkpoint stores quantised, presented as the `name.weight [n, k]` that they stand for.
//!
//! `config` finds them by `quantization_config` and the names of tensors; this file reads rows: as codes with scales, as
//! they are, for executors that compute with such, or as floats. weight = scale * (code - zero). Nothing is computed here
//! beyond that, and no plugin sees how a matrix is stored.
//!
//! The formats are those of the public documentation of AutoGPTQ and GPTQModel, AutoAWQ, compressed-tensors, and of
//! DeepSeek's and AutoFP8's FP8 checkpoints.

mod blocks;
mod config;

use std::collections::{BTreeMap, HashSet};

use half::{bf16, f16};

use super::header::Dtype;
use super::weights::Weights;

pub(super) use blocks::BlockType;
pub(super) use config::find;

/// What names of tensors begin with that are the bytes of a matrix of blocks.
pub(super) const PREFIX: &str = "bytes of ";

/// How the codes of a matrix are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackedFormat {
    /// int8 codes, one scale a row.
    Int8Rows,
    /// int8 codes, a scale for every so many columns: 32, 64 or 128.
    Int8Groups(usize),
    /// Codes 0..=15, a scale for every so many columns: 32, 64 or 128.
    Int4 {
        /// So many.
        group: usize,
        /// Whether each group has a zero of its own; else it is 8.
        zeros: bool,
    },
    /// Codes that no kernel computes with as they are: of 5 or 6 bits, or in groups of columns that are not adjacent. Only
    /// their values can be had.
    Other,
    /// Not integers: only the values.
    Floats,
}

/// The quantised matrices of a checkpoint.
#[derive(Debug, Default)]
pub(super) struct PackedSet {
    /// By the name of the tensor that each stands for.
    pub(super) matrices: BTreeMap<String, Packed>,
    /// Tensors that are parts of them.
    pub(super) hidden: HashSet<usize>,
}

/// One matrix: where its parts are, as numbers of tensors.
#[derive(Debug)]
pub(super) struct Packed {
    /// Rows and columns.
    pub(super) shape: [usize; 2],
    /// The type that it had, for the plugin.
    pub(super) dtype: Dtype,
    kind: Kind,
    parts: Vec<usize>,
}

#[derive(Debug)]
enum Kind {
    Integers(Integers),
    /// `weight` int8 `[n, k]`, scales one a row, or one.
    Int8 {
        weight: usize,
        scale: usize,
    },
    /// Blocks along the rows of a GGUF file's tensor.
    Blocks {
        tensor: usize,
        kind: BlockType,
        /// The rows of each head, of this size, are in the order of neighbours instead of halves.
        rotary_head: Option<usize>,
        /// The tensor is the transpose of the matrix.
        transposed: bool,
    },
    /// `weight` F8 `[n, k]`, scales of blocks.
    Float8 {
        weight: usize,
        scale: usize,
        block: [usize; 2],
    },
}

/// Codes packed into 32-bit words.
#[derive(Debug)]
struct Integers {
    codes: Words,
    /// `None`: in the middle of the codes.
    zeros: Option<Zeros>,
    /// Scale of row j and group g: at `j * step[0] + g * step[1]`.
    scales: usize,
    step: [usize; 2],
    /// Columns of a group, as stored: the whole row, if it has one scale.
    group: usize,
    /// The group of each column, where that is not its place.
    order: Option<usize>,
}

/// Where codes stand in a tensor of 32-bit words.
#[derive(Debug, Clone, Copy)]
struct Words {
    tensor: usize,
    bits: usize,
    /// Words of a row of the tensor.
    width: usize,
    layout: WordLayout,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WordLayout {
    /// `[k / c, n]`: words hold adjacent columns of one row of the matrix.
    DownColumns,
    /// `[k, n / c]`: adjacent rows of one column.
    Across,
    /// The same, in AWQ's order.
    AcrossInterleaved,
    /// `[n, k / c]`: adjacent columns of one row.
    AlongRows,
    /// `[n / c, k]`: adjacent rows of one column.
    DownRows,
}

#[derive(Debug, Clone, Copy)]
struct Zeros {
    words: Words,
    /// What is missing from what is stored.
    plus: i32,
}

impl Words {
    /// The code of row j, column i of the matrix.
    fn at(&self, words: &[u8], j: usize, i: usize) -> i32 {
        let per = 32 / self.bits;
        let (word, place) = match self.layout {
            WordLayout::DownColumns => (i / per * self.width + j, i % per),
            WordLayout::Across => (i * self.width + j / per, j % per),
            WordLayout::AcrossInterleaved => (i * self.width + j / per, [0, 4, 1, 5, 2, 6, 3, 7][j % per]),
            WordLayout::AlongRows => (j * self.width + i / per, i % per),
            WordLayout::DownRows => (j / per * self.width + i, j % per),
        };
        let bytes = words[word * 4..].first_chunk().copied().unwrap_or_default();
        (u32::from_le_bytes(bytes) >> (place * self.bits) & ((1 << self.bits) - 1)) as i32
    }
}

/// A matrix of blocks: its name, that of its bytes, rows and columns as stored, and how.
pub(super) type BlockMatrix = (String, String, [usize; 2], BlockType, Option<usize>, bool);

impl PackedSet {
    /// The matrices of a GGUF file; its tensors are in `weights`.
    pub(super) fn of_blocks(weights: &Weights, matrices: Vec<BlockMatrix>) -> Self {
        let mut set = PackedSet::default();
        for (name, bytes, [n, k], kind, rotary_head, transposed) in matrices {
            let Some(tensor) = weights.index_of(&bytes) else { continue };
            let shape = if transposed { [k, n] } else { [n, k] };
            let dtype = if kind == BlockType::F32 { Dtype::F32 } else { Dtype::F16 };
            let kind = Kind::Blocks { tensor, kind, rotary_head, transposed };
            set.hidden.insert(tensor);
            set.matrices.insert(name, Packed { shape, dtype, kind, parts: vec![tensor] });
        }
        set
    }
}

/// A matrix with the weights that hold it.
#[derive(Clone, Copy)]
pub struct PackedView<'a> {
    pub(super) weights: &'a Weights,
    pub(super) packed: &'a Packed,
}

impl PackedView<'_> {
    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.packed.shape
    }

    /// How its codes are shared out.
    pub fn format(&self) -> PackedFormat {
        match &self.packed.kind {
            Kind::Float8 { .. } | Kind::Blocks { transposed: true, .. } => PackedFormat::Floats,
            Kind::Blocks { kind, .. } => match kind {
                BlockType::Q8_0 => PackedFormat::Int8Groups(32),
                BlockType::Q4_0 => PackedFormat::Int4 { group: 32, zeros: false },
                BlockType::Q4K => PackedFormat::Int4 { group: 32, zeros: true },
                BlockType::Q5K | BlockType::Q6K => PackedFormat::Other,
                BlockType::F32 | BlockType::F16 | BlockType::BF16 => PackedFormat::Floats,
            },
            Kind::Int8 { .. } => PackedFormat::Int8Rows,
            Kind::Integers(Integers { order: Some(_), .. }) => PackedFormat::Other,
            Kind::Integers(all) => {
                let group = [128, 64, 32].into_iter().find(|g| all.group.is_multiple_of(*g)).unwrap_or(128);
                match all.codes.bits {
                    4 => PackedFormat::Int4 { group, zeros: all.zeros.is_some() },
                    _ if all.group >= self.packed.shape[1] => PackedFormat::Int8Rows,
                    _ => PackedFormat::Int8Groups(group),
                }
            }
        }
    }

    /// A row's codes and, for each group of [`PackedView::format`], scale and zero (those of int8 are 0, and not written).
    /// Not for formats of which only the values can be had.
    pub fn codes(&self, row: usize, codes: &mut [i8], scales: &mut [f32], zeros: &mut [f32]) {
        match &self.packed.kind {
            Kind::Int8 { weight, scale } => {
                let all = self.weights.at(*weight);
                let own = &all.data[row * codes.len()..][..codes.len()];
                codes.iter_mut().zip(own).for_each(|(to, &byte)| *to = byte as i8);
                scales.fill(self.float(*scale, row));
            }
            Kind::Integers(all) => {
                let middle = 1 << (all.codes.bits - 1);
                let words = self.weights.at(all.codes.tensor).data;
                // int8 codes are signed, nibbles are not.
                let offset = if all.codes.bits == 8 { middle } else { 0 };
                for (i, to) in codes.iter_mut().enumerate() {
                    *to = (all.codes.at(words, row, i) - offset) as i8;
                }
                let width = match self.format() {
                    PackedFormat::Int4 { group, .. } | PackedFormat::Int8Groups(group) => group,
                    _ => all.group,
                };
                for (g, to) in scales.iter_mut().enumerate() {
                    *to = self.scale(all, row, g * width / all.group);
                }
                for (g, to) in zeros.iter_mut().enumerate() {
                    *to = self.zero(all, row, g * width / all.group) as f32;
                }
            }
            Kind::Blocks { kind, .. } => kind.codes(self.block_row(row), codes, scales, zeros),
            Kind::Float8 { .. } => {}
        }
    }

    /// All values, row by row.
    pub fn values(&self) -> Vec<f32> {
        let [n, k] = self.packed.shape;
        let mut out = vec![0.0; n * k];
        match self.packed.kind {
            Kind::Blocks { kind, transposed: true, .. } => {
                let mut stored = vec![0.0; n];
                for column in 0..k {
                    kind.values(self.block_row(column), &mut stored);
                    stored.iter().enumerate().for_each(|(row, x)| out[row * k + column] = *x);
                }
            }
            _ => out.chunks_exact_mut(k.max(1)).enumerate().for_each(|(row, to)| self.floats(row, to)),
        }
        out
    }

    /// The bytes of a row of a tensor of blocks: of the stored tensor, if that is the transpose.
    fn block_row(&self, row: usize) -> &[u8] {
        let Kind::Blocks { tensor, kind, rotary_head, transposed } = self.packed.kind else { return &[] };
        let [n, k] = self.packed.shape;
        let columns = if transposed { n } else { k };
        let (elements, size) = kind.block();
        let bytes = columns / elements * size;
        let row = rotary_head.map_or(row, |head| {
            let (half, i) = (row % head / (head / 2), row % (head / 2));
            row / head * head + 2 * i + half
        });
        &self.weights.at(tensor).data[row * bytes..][..bytes]
    }

    /// The values of a row. Those of a matrix whose transpose is stored: see [`PackedView::values`].
    pub fn floats(&self, row: usize, to: &mut [f32]) {
        match &self.packed.kind {
            Kind::Int8 { weight, scale } => {
                let all = self.weights.at(*weight);
                let scale = self.float(*scale, row);
                let own = &all.data[row * to.len()..][..to.len()];
                to.iter_mut().zip(own).for_each(|(to, &byte)| *to = f32::from(byte as i8) * scale);
            }
            Kind::Float8 { weight, scale, block } => {
                let all = self.weights.at(*weight);
                let blocks = to.len().div_ceil(block[1]);
                let own = &all.data[row * to.len()..][..to.len()];
                for (b, (to, own)) in to.chunks_mut(block[1]).zip(own.chunks(block[1])).enumerate() {
                    let scale = self.float(*scale, row / block[0] * blocks + b);
                    let value = |byte| if all.dtype == Dtype::F8E5M2 { e5m2(byte) } else { e4m3(byte) };
                    to.iter_mut().zip(own).for_each(|(to, &byte)| *to = value(byte) * scale);
                }
            }
            Kind::Blocks { transposed: true, .. } => {
                let k = to.len();
                to.copy_from_slice(&self.values()[row * k..][..k]);
            }
            Kind::Blocks { kind, .. } => kind.values(self.block_row(row), to),
            Kind::Integers(all) => {
                let words = self.weights.at(all.codes.tensor).data;
                let order = all.order.map(|tensor| self.weights.at(tensor).data);
                let (mut group, mut scale, mut zero) = (usize::MAX, 0.0, 0);
                for (i, to) in to.iter_mut().enumerate() {
                    let own = order.map_or(i / all.group, |order| {
                        u32::from_le_bytes(order[i * 4..].first_chunk().copied().unwrap_or_default()) as usize
                    });
                    if own != group {
                        (group, scale, zero) = (own, self.scale(all, row, own), self.zero(all, row, own));
                    }
                    *to = scale * (all.codes.at(words, row, i) - zero) as f32;
                }
            }
        }
    }

    /// Says that all was read: see [`Weights::release`].
    pub fn release(&self) {
        self.packed.parts.iter().for_each(|&part| self.weights.release(part));
    }

    fn scale(&self, all: &Integers, row: usize, group: usize) -> f32 {
        self.float(all.scales, row * all.step[0] + group * all.step[1])
    }

    fn zero(&self, all: &Integers, row: usize, group: usize) -> i32 {
        let Some(Zeros { words, plus }) = &all.zeros else { return 1 << (all.codes.bits - 1) };
        plus + words.at(self.weights.at(words.tensor).data, row, group)
    }

    /// An element of a tensor of floats; the only one, if it has no more.
    fn float(&self, tensor: usize, index: usize) -> f32 {
        let view = self.weights.at(tensor);
        let size = view.dtype.size();
        let index = if view.data.len() == size { 0 } else { index };
        let bytes = &view.data[index * size..][..size];
        match (view.dtype, bytes) {
            (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Dtype::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            // `config` admits no others.
            _ => f32::NAN,
        }
    }
}

/// The upper half of an IEEE half.
pub(crate) fn e5m2(byte: u8) -> f32 {
    f16::from_le_bytes([0, byte]).to_f32()
}

/// Sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, all ones are NaN (arXiv:2209.05433).
pub(crate) fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 != 0 { -size } else { size }
}
