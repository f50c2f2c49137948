//! Blocks of GGUF's tensor types: their layout, and the values of a row. Written from the public description of the types.

use half::{bf16, f16};

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::hub) enum BlockType {
    F32,
    F16,
    BF16,
    /// 32 int8 codes with an f16 scale.
    Q8_0,
    /// 32 codes of 4 bits with an f16 scale, zero 8.
    Q4_0,
    /// 256 codes of 4 bits; every 32 have a scale and a minimum of 6 bits.
    Q4K,
    /// The same with 5 bits.
    Q5K,
    /// 256 codes of 6 bits; every 16 have a scale of 8 bits.
    Q6K,
}

impl BlockType {
    const ALL: [(BlockType, u32, &str); 8] = [
        (BlockType::F32, 0, "F32"),
        (BlockType::F16, 1, "F16"),
        (BlockType::BF16, 30, "BF16"),
        (BlockType::Q8_0, 8, "Q8_0"),
        (BlockType::Q4_0, 2, "Q4_0"),
        (BlockType::Q4K, 12, "Q4_K"),
        (BlockType::Q5K, 13, "Q5_K"),
        (BlockType::Q6K, 14, "Q6_K"),
    ];

    pub(in crate::hub) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().find(|(_, n, _)| *n == number).map(|(kind, ..)| *kind)
    }

    pub(in crate::hub) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, ..)| *kind == self).map_or("", |(_, _, name)| *name)
    }

    pub(in crate::hub) fn names() -> String {
        Self::ALL.map(|(_, _, name)| name).join(", ")
    }

    /// Elements and bytes of a block.
    pub(in crate::hub) fn block(self) -> (usize, usize) {
        match self {
            BlockType::F32 => (1, 4),
            BlockType::F16 | BlockType::BF16 => (1, 2),
            BlockType::Q8_0 => (32, 34),
            BlockType::Q4_0 => (32, 18),
            BlockType::Q4K => (256, 144),
            BlockType::Q5K => (256, 176),
            BlockType::Q6K => (256, 210),
        }
    }

    /// The values of whole blocks.
    pub(super) fn values(self, bytes: &[u8], to: &mut [f32]) {
        let (elements, size) = self.block();
        for (block, to) in bytes.chunks_exact(size).zip(to.chunks_exact_mut(elements)) {
            match self {
                BlockType::F32 => to[0] = f32::from_le_bytes(block.first_chunk().copied().unwrap_or_default()),
                BlockType::F16 => to[0] = half_at(block, 0),
                BlockType::BF16 => to[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
                BlockType::Q8_0 | BlockType::Q4_0 => {
                    let (mut codes, scale) = ([0; 32], half_at(block, 0));
                    let zero = simple_codes(self, block, &mut codes);
                    to.iter_mut().zip(codes).for_each(|(to, code)| *to = scale * f32::from(code - zero));
                }
                BlockType::Q4K | BlockType::Q5K => {
                    let mut codes = [0; 256];
                    k_codes(self, block, &mut codes);
                    for (g, (to, codes)) in to.chunks_exact_mut(32).zip(codes.chunks_exact(32)).enumerate() {
                        let (scale, least) = k_scale(block, g);
                        to.iter_mut().zip(codes).for_each(|(to, &code)| *to = scale * f32::from(code) - least);
                    }
                }
                BlockType::Q6K => six_bits(block, to),
            }
        }
    }

    /// The codes of whole blocks of Q8_0, Q4_0 and Q4_K, and the scale and zero of every 32.
    pub(super) fn codes(self, bytes: &[u8], codes: &mut [i8], scales: &mut [f32], zeros: &mut [f32]) {
        let (elements, size) = self.block();
        let mut zeros = zeros.iter_mut();
        for (b, (block, codes)) in bytes.chunks_exact(size).zip(codes.chunks_exact_mut(elements)).enumerate() {
            if self == BlockType::Q4K {
                k_codes(self, block, codes);
                for (g, codes) in codes.chunks_exact_mut(32).enumerate() {
                    let (mut scale, least) = k_scale(block, g);
                    if scale == 0.0 && least != 0.0 {
                        // All are -least: as code 0 of another scale.
                        (scale, _) = (least / 8.0, codes.fill(0));
                    }
                    scales[b * 8 + g] = scale;
                    zeros.by_ref().take(1).for_each(|z| *z = if scale == 0.0 { 0.0 } else { least / scale });
                }
            } else {
                simple_codes(self, block, codes);
                scales[b] = half_at(block, 0);
            }
        }
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The codes of a block of Q8_0 or Q4_0; returns their zero.
fn simple_codes(kind: BlockType, block: &[u8], codes: &mut [i8]) -> i8 {
    let data = &block[2..];
    if kind == BlockType::Q8_0 {
        codes.iter_mut().zip(data).for_each(|(to, &byte)| *to = byte as i8);
        return 0;
    }
    for (i, byte) in data.iter().enumerate() {
        (codes[i], codes[i + 16]) = ((byte & 15) as i8, (byte >> 4) as i8);
    }
    8
}

/// The codes of a block of Q4_K or Q5_K: bytes hold two groups of 32, one in each half; fifth bits follow the scales.
fn k_codes(kind: BlockType, block: &[u8], codes: &mut [i8]) {
    let five = kind == BlockType::Q5K;
    let (high, low) = block[16..].split_at(if five { 32 } else { 0 });
    for (pair, bytes) in low.chunks_exact(32).enumerate() {
        for (i, byte) in bytes.iter().enumerate() {
            let fifth = |group: usize| if five { (high[i] >> group & 1) << 4 } else { 0 };
            codes[pair * 64 + i] = (byte & 15 | fifth(2 * pair)) as i8;
            codes[pair * 64 + 32 + i] = (byte >> 4 | fifth(2 * pair + 1)) as i8;
        }
    }
}

/// Scale and minimum of group `g` of eight of a block of Q4_K or Q5_K: 6 bits each, packed into twelve bytes.
fn k_scale(block: &[u8], g: usize) -> (f32, f32) {
    let packed = &block[4..16];
    let (scale, least) = if g < 4 {
        (packed[g] & 63, packed[g + 4] & 63)
    } else {
        (packed[g + 4] & 15 | packed[g - 4] >> 6 << 4, packed[g + 4] >> 4 | packed[g] >> 6 << 4)
    };
    (half_at(block, 0) * f32::from(scale), half_at(block, 2) * f32::from(least))
}

/// A block of Q6_K: lower four bits, upper two bits, scales of every 16, the block's scale.
fn six_bits(block: &[u8], to: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, whole) = rest.split_at(16);
    let whole = half_at(whole, 0);
    for half in 0..2 {
        for i in 0..32 {
            let (a, b, top) = (low[half * 64 + i], low[half * 64 + 32 + i], high[half * 32 + i]);
            let codes = [
                a & 15 | (top & 3) << 4,
                b & 15 | (top >> 2 & 3) << 4,
                a >> 4 | (top >> 4 & 3) << 4,
                b >> 4 | top >> 6 << 4,
            ];
            for (quarter, code) in codes.into_iter().enumerate() {
                let at = half * 128 + quarter * 32 + i;
                to[at] = whole * f32::from(scales[at / 16] as i8) * (f32::from(code) - 32.0);
            }
        }
    }
}
