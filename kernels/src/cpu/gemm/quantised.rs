//! Weights as small integers: the layout that the inner loops of `integer` read, and how floats become it.
//!
//! A row of `k` weights is cut into groups along k; weight = row scale * group scale * (code - zero). Codes are signed
//! bytes (int8, no zero) or nibbles 0..=15 (int4, zero 8 unless the group has its own). Group scales are f16 and relative
//! to the row's f32 scale, which is a power of two then, so that f16 and bf16 scales of other programs are kept exactly.
//! Made once, at load, by `host::exec::cpu`; what a call reads is a [`QuantisedRef`].

use std::sync::Mutex;

use half::f16;

use crate::cpu::error::{check_eq, check_len};
use crate::cpu::{Cpu, KernelError, WeightDtype};

/// Codes that one step of the inner loops takes; rows are padded with zeros to a multiple of it.
pub(super) const BLOCK: usize = 32;

/// Rows of group scales are padded to a multiple of this: what one vector holds.
pub(super) const LANES: usize = 8;

/// Rows that one thread makes at a time. Reading some formats costs less for many rows at once.
const ROWS: usize = 32;

/// How a matrix is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuantFormat {
    /// The codes, and the groups along k in which rows of X are quantised: 32, 64 or 128 elements.
    pub codes: QuantCodes,
    /// Whether each group of a row has a scale of its own. Always so for int4.
    pub grouped: bool,
    /// Whether each group has a zero of its own. For int4 only.
    pub zeros: bool,
}

/// The type of the codes, with the elements of a group: 32, 64 or 128.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantCodes {
    /// Signed bytes.
    Int8(usize),
    /// Nibbles.
    Int4(usize),
}

impl QuantCodes {
    #[inline(always)]
    pub(super) fn group(self) -> usize {
        match self {
            QuantCodes::Int8(group) | QuantCodes::Int4(group) => group,
        }
    }
}

impl QuantFormat {
    /// int8 with one scale a row.
    pub const INT8: Self = QuantFormat { codes: QuantCodes::Int8(128), grouped: false, zeros: false };

    /// int8 with a scale for each group.
    pub fn int8(group: usize) -> Self {
        QuantFormat { codes: QuantCodes::Int8(group), grouped: true, zeros: false }
    }

    /// int4, with the groups' zeros at 8 or their own.
    pub fn int4(group: usize, zeros: bool) -> Self {
        QuantFormat { codes: QuantCodes::Int4(group), grouped: true, zeros }
    }

    /// The dtype of weights in this format.
    pub fn dtype(self) -> WeightDtype {
        match self.codes {
            QuantCodes::Int8(group) => WeightDtype::Int8 { group },
            QuantCodes::Int4(group) => WeightDtype::Int4 { group },
        }
    }

    /// Bytes of a matrix `[n, k]` in this format.
    pub fn bytes(self, n: usize, k: usize) -> usize {
        let layout = Layout { format: self, k };
        n * (layout.code_bytes() + 4 + 2 * (layout.scales() + layout.zeros()))
    }

    fn check(self) -> Result<(), KernelError> {
        let group = self.codes.group();
        if ![32, 64, 128].contains(&group) {
            let why = "a group has 32, 64 or 128 elements";
            return Err(KernelError::Option { argument: "format.codes", got: group.to_string(), why });
        }
        let int4 = matches!(self.codes, QuantCodes::Int4(_));
        if (int4 && !self.grouped) || (!int4 && self.zeros) {
            let why = "int4 has a scale for each group, int8 no zeros";
            return Err(KernelError::Option { argument: "format", got: format!("{self:?}"), why });
        }
        Ok(())
    }
}

/// Sizes of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) format: QuantFormat,
    pub(super) k: usize,
}

impl Layout {
    pub(super) fn blocks(self) -> usize {
        self.k.div_ceil(BLOCK)
    }

    pub(super) fn groups(self) -> usize {
        self.k.div_ceil(self.format.codes.group())
    }

    /// Bytes of the codes of a row.
    pub(super) fn code_bytes(self) -> usize {
        self.blocks() * if matches!(self.format.codes, QuantCodes::Int8(_)) { BLOCK } else { BLOCK / 2 }
    }

    /// Elements of a row of group scales, padding included.
    pub(super) fn scales(self) -> usize {
        if self.format.grouped { self.groups().next_multiple_of(LANES) } else { 0 }
    }

    fn zeros(self) -> usize {
        if self.format.zeros { self.scales() } else { 0 }
    }
}

/// A quantised matrix `[n, k]`.
#[derive(Clone)]
pub struct Quantised {
    layout: Layout,
    codes: Vec<u8>,
    /// One a row.
    row_scales: Vec<f32>,
    /// [`Layout::scales`] a row.
    scales: Vec<f16>,
    /// As many, or none.
    zeros: Vec<f16>,
}

impl std::fmt::Debug for Quantised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Layout { format, k } = self.layout;
        f.debug_struct("Quantised").field("n", &self.row_scales.len()).field("k", &k).field("format", &format).finish()
    }
}

/// Some rows of a [`Quantised`].
#[derive(Debug, Clone, Copy)]
pub struct QuantisedRef<'a> {
    pub(super) layout: Layout,
    pub(super) codes: &'a [u8],
    pub(super) row_scales: &'a [f32],
    pub(super) scales: &'a [f16],
    pub(super) zeros: &'a [f16],
}

/// One row that is already quantised, for [`Quantised::from_codes`] to fill in.
#[derive(Debug)]
pub struct CodeRow<'a> {
    /// `[k]`: int8 codes, or int4 codes 0..=15.
    pub codes: &'a mut [i8],
    /// The scale of each group (weight = scale * (code - zero)), or a single one of the whole row.
    pub scales: &'a mut [f32],
    /// The zero of each group, for formats with zeros: otherwise empty.
    pub zeros: &'a mut [f32],
}

/// The places of a few rows.
struct Chunk<'a> {
    first: usize,
    codes: &'a mut [u8],
    row_scales: &'a mut [f32],
    scales: &'a mut [f16],
    zeros: &'a mut [f16],
}

impl Quantised {
    /// Quantises `n` rows of `k` floats to the nearest codes, on all threads. `source` writes the rows from the given one
    /// on, as many as there is room for. Groups that hold a value that is not finite become NaN.
    pub fn from_rows(
        cpu: &Cpu,
        n: usize,
        k: usize,
        format: QuantFormat,
        source: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Result<Self, KernelError> {
        format.check()?;
        if format.zeros {
            let why = "floats are quantised around the zero that all groups have";
            return Err(KernelError::Option { argument: "format.zeros", got: "true".into(), why });
        }
        let group = if format.grouped { format.codes.group() } else { k.max(1) };
        Self::make(cpu, n, k, format, &|chunk| {
            let rows = chunk.row_scales.len();
            let mut values = vec![0.0; rows * k];
            source(chunk.first, &mut values);
            let (mut codes, mut scales) = (vec![0; k], vec![0.0; k.div_ceil(group)]);
            for (row, values) in values.chunks_exact(k.max(1)).enumerate() {
                values.chunks(group).zip(&mut scales).for_each(|(of, to)| *to = nearest_scale(format.codes, of));
                let common = chunk.put_scales(row, format, &scales);
                for ((values, to), &scale) in values.chunks(group).zip(codes.chunks_mut(group)).zip(&scales) {
                    round_to(format.codes, stored(format, scale, common), values, to);
                }
                chunk.put_codes(row, k, format, &codes);
            }
        })
    }

    /// Takes `n` rows that are quantised already, on all threads. `source` fills in the rows from the given one on.
    pub fn from_codes(
        cpu: &Cpu,
        n: usize,
        k: usize,
        format: QuantFormat,
        source: &(dyn Fn(usize, &mut [CodeRow<'_>]) + Sync),
    ) -> Result<Self, KernelError> {
        let groups = if format.grouped { Layout { format, k }.groups() } else { 1 };
        Self::make(cpu, n, k, format, &|chunk| {
            let rows = chunk.row_scales.len();
            let zero_count = if format.zeros { groups } else { 0 };
            let mut codes = vec![0; rows * k.max(1)];
            let (mut scales, mut zeros) = (vec![0.0; rows * groups.max(1)], vec![0.0; rows * zero_count.max(1)]);
            let parts = codes.chunks_exact_mut(k.max(1)).zip(scales.chunks_exact_mut(groups.max(1)));
            let mut all: Vec<CodeRow<'_>> = parts
                .zip(zeros.chunks_exact_mut(zero_count.max(1)))
                .map(|((codes, scales), zeros)| CodeRow {
                    codes: &mut codes[..k],
                    scales: &mut scales[..groups],
                    zeros: &mut zeros[..zero_count],
                })
                .collect();
            source(chunk.first, &mut all);
            for (row, from) in all.iter().enumerate() {
                chunk.put_scales(row, format, from.scales);
                chunk.put_codes(row, k, format, from.codes);
                chunk.put_zeros(row, from.zeros);
            }
        })
    }

    fn make(
        cpu: &Cpu,
        n: usize,
        k: usize,
        format: QuantFormat,
        fill: &(dyn Fn(&mut Chunk<'_>) + Sync),
    ) -> Result<Self, KernelError> {
        format.check()?;
        let layout = Layout { format, k };
        let mut all = Quantised {
            layout,
            codes: vec![0; n * layout.code_bytes()],
            row_scales: vec![0.0; n],
            scales: vec![f16::ZERO; n * layout.scales()],
            zeros: vec![f16::ZERO; n * layout.zeros()],
        };
        // Empty slices have chunks too: as many as there are rows.
        let mut codes = all.codes.chunks_mut((ROWS * layout.code_bytes()).max(1));
        let mut scales = all.scales.chunks_mut((ROWS * layout.scales()).max(1));
        let mut zeros = all.zeros.chunks_mut((ROWS * layout.zeros()).max(1));
        let chunks = all.row_scales.chunks_mut(ROWS).enumerate().map(|(index, row_scales)| Chunk {
            first: index * ROWS,
            row_scales,
            codes: codes.next().unwrap_or_default(),
            scales: scales.next().unwrap_or_default(),
            zeros: zeros.next().unwrap_or_default(),
        });
        let chunks = Mutex::new(chunks);
        cpu.pool().run(&|_, _| {
            loop {
                // A thread that panicked has left the iterator as it is between two chunks.
                let next = chunks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                let Some(mut chunk) = next else { break };
                fill(&mut chunk);
            }
        });
        Ok(all)
    }

    /// What calls read.
    pub fn view(&self) -> QuantisedRef<'_> {
        let Quantised { layout, codes, row_scales, scales, zeros } = self;
        QuantisedRef { layout: *layout, codes, row_scales, scales, zeros }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.layout.format.bytes(self.row_scales.len(), self.layout.k)
    }
}

impl<'a> QuantisedRef<'a> {
    /// Its dtype: what weights of one call have in common.
    pub fn dtype(&self) -> WeightDtype {
        self.layout.format.dtype()
    }

    /// Elements of a row.
    pub fn k(&self) -> usize {
        self.layout.k
    }

    /// Rows.
    pub fn n(&self) -> usize {
        self.row_scales.len()
    }

    /// The rows that hold elements `from .. from + len`: whole ones.
    pub fn elements(&self, from: usize, len: usize) -> Result<Self, KernelError> {
        let k = self.layout.k.max(1);
        check_eq("weight", "start within a row", 0, from % k)?;
        check_eq("weight", "length beyond whole rows", 0, len % k)?;
        let (from, rows) = (from / k, len / k);
        check_len("weight", from.saturating_add(rows), self.n())?;
        let (codes, scales, zeros) = (self.layout.code_bytes(), self.layout.scales(), self.layout.zeros());
        Ok(QuantisedRef {
            layout: self.layout,
            codes: &self.codes[from * codes..][..rows * codes],
            row_scales: &self.row_scales[from..][..rows],
            scales: &self.scales[from * scales..][..rows * scales],
            zeros: &self.zeros[from * zeros..][..rows * zeros],
        })
    }

    /// The weights of a row, in order: row scale * group scale * (code - zero), exactly.
    pub fn row(&self, row: usize) -> impl Iterator<Item = f64> + use<'a> {
        let Self { layout, codes, row_scales, scales, zeros } = *self;
        let group = layout.format.codes.group();
        let codes = &codes[row * layout.code_bytes()..][..layout.code_bytes()];
        (0..layout.k).map(move |i| {
            let (code, zero) = match layout.format.codes {
                QuantCodes::Int8(_) => (f64::from(codes[i] as i8), 0.0),
                QuantCodes::Int4(_) => {
                    let byte = codes[i / BLOCK * (BLOCK / 2) + i % (BLOCK / 2)];
                    let code = if i % BLOCK < BLOCK / 2 { byte & 15 } else { byte >> 4 };
                    let own = zeros.get(row * layout.zeros() + i / group).filter(|_| layout.format.zeros);
                    (code.into(), own.map_or(8.0, |z| z.to_f64()))
                }
            };
            let scale = if layout.format.grouped { scales[row * layout.scales() + i / group].to_f64() } else { 1.0 };
            f64::from(row_scales[row]) * scale * (code - zero)
        })
    }
}

impl Chunk<'_> {
    /// Stores the scales of a row; returns the one that is the row's.
    fn put_scales(&mut self, row: usize, format: QuantFormat, scales: &[f32]) -> f32 {
        let rows = self.row_scales.len();
        let common = if format.grouped {
            power_above(scales.iter().fold(0.0, |max, s| s.abs().max(max)))
        } else {
            scales.first().copied().unwrap_or(0.0)
        };
        self.row_scales[row] = common;
        if format.grouped {
            let each = self.scales.len() / rows;
            let to = &mut self.scales[row * each..][..each];
            to.iter_mut().zip(scales).for_each(|(to, scale)| *to = f16::from_f32(scale / common));
        }
        common
    }

    fn put_zeros(&mut self, row: usize, zeros: &[f32]) {
        let each = self.zeros.len() / self.row_scales.len();
        let to = &mut self.zeros[row * each..][..each];
        to.iter_mut().zip(zeros).for_each(|(to, zero)| *to = f16::from_f32(*zero));
    }

    fn put_codes(&mut self, row: usize, k: usize, format: QuantFormat, codes: &[i8]) {
        let bytes = Layout { format, k }.code_bytes();
        let to = &mut self.codes[row * bytes..][..bytes];
        match format.codes {
            QuantCodes::Int8(_) => to.iter_mut().zip(codes).for_each(|(to, &code)| *to = code as u8),
            QuantCodes::Int4(_) => {
                for (to, codes) in to.chunks_exact_mut(BLOCK / 2).zip(codes.chunks(BLOCK)) {
                    for (i, &code) in codes.iter().enumerate() {
                        to[i % (BLOCK / 2)] |= (code as u8 & 15) << (i / (BLOCK / 2) * 4);
                    }
                }
            }
        }
    }
}

/// The least power of two that is not below `x`; 1 for 0 and what is not finite.
fn power_above(x: f32) -> f32 {
    if x == 0.0 || !x.is_finite() {
        return 1.0;
    }
    // Between these, its inverse and the scales beside it are normal numbers.
    x.log2().ceil().clamp(-100.0, 100.0).exp2()
}

/// The scale that a group has in fact, in a row whose own is `common`.
fn stored(format: QuantFormat, scale: f32, common: f32) -> f32 {
    if format.grouped { f16::from_f32(scale / common).to_f32() * common } else { common }
}

/// The scale with which the codes of a group are nearest to its values.
fn nearest_scale(codes: QuantCodes, values: &[f32]) -> f32 {
    // NaN is the largest of all magnitudes by its bits.
    let extreme = values.iter().copied().max_by_key(|x| x.abs().to_bits()).unwrap_or(0.0);
    if !extreme.is_finite() {
        return f32::NAN;
    }
    match codes {
        QuantCodes::Int8(_) => extreme.abs() / 127.0,
        // There is one negative code more than positive ones, for the extreme whatever its sign; but cutting it off, or
        // leaving that code to others, may be better for all together.
        QuantCodes::Int4(_) => {
            let scales = [-8.0, -8.75, -7.5, -7.0, 7.0, 7.75].map(|code| extreme / code);
            let errors = scales.map(|scale| squared_error(scale, values));
            let best = (1..scales.len()).fold(0, |best, i| if errors[i] < errors[best] { i } else { best });
            scales[best]
        }
    }
}

/// What int4 codes with this scale miss.
fn squared_error(scale: f32, values: &[f32]) -> f32 {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let miss = |x: &f32| (x * inverse).round_ties_even().clamp(-8.0, 7.0) * scale - x;
    values.iter().map(miss).map(|e| e * e).sum()
}

/// The nearest codes.
fn round_to(codes: QuantCodes, scale: f32, values: &[f32], to: &mut [i8]) {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let (least, most, zero) = match codes {
        QuantCodes::Int8(_) => (-127.0, 127.0, 0.0),
        QuantCodes::Int4(_) => (-8.0, 7.0, 8.0),
    };
    for (to, x) in to.iter_mut().zip(values) {
        *to = ((x * inverse).round_ties_even().clamp(least, most) + zero) as i8;
    }
}
