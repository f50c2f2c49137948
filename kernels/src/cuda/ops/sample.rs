//! Kernels of `sample.cu`.

use super::*;

/// The most columns of a row: more, and the sum of their probabilities could overflow.
pub const MAX_VOCAB: usize = 1 << 23;

/// Threads of a block, and its shared memory, as `sample.cu` has them.
const THREADS: usize = 256;
const SHARED: usize = (2 * 256 + THREADS / 32 + 1) * 8 + 8;

/// How a token is chosen from a row of logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw {
    /// Where in the probabilities, as a fraction of 2^64.
    pub random: u64,
    /// 0: the most likely token, the first of equals.
    pub temperature: f32,
    /// Only so many of the most likely tokens; 0: all.
    pub top_k: usize,
    /// The most likely tokens that hold this much of the probability; 1: all.
    pub top_p: f32,
    /// Tokens with this share of the most likely one's probability; 0: all.
    pub min_p: f32,
    /// Divides positive logits of seen tokens, and multiplies others.
    pub repetition_penalty: f32,
    /// Taken from the logit of a token as often as it was seen.
    pub frequency_penalty: f32,
    /// Taken from it once, if it was seen at least once.
    pub presence_penalty: f32,
    /// Tokens that the penalties are for, each once, and how often each was seen: 0 for the repetition penalty alone.
    pub seen: Vec<(u32, u32)>,
}

/// What came of a draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Drawn {
    /// This token.
    Token(u32),
    /// A logit is NaN or infinite; nothing was chosen.
    NotFinite {
        /// The first such token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// All logits are minus infinity.
    NothingLeft,
}

/// Chooses a token for each draw, from the row of `rows` that comes with it; each row has one draw at most. Penalties change
/// the rows. Waits for the device.
pub fn sample(cuda: &Cuda, rows: View<'_, f32>, draws: &[(usize, &Draw)]) -> Result<Vec<Drawn>, CudaError> {
    rows.check_out("rows", rows.rows, rows.cols)?;
    if rows.cols == 0 || rows.cols > MAX_VOCAB {
        return Err(option("rows.cols", rows.cols, "must be positive, and at most 2^23"));
    }
    if draws.is_empty() {
        return Ok(vec![]);
    }
    let (mut packed, mut seen, mut taken) = (vec![], vec![], vec![false; rows.rows]);
    for (row, draw) in draws {
        if taken.get(*row).is_none_or(|taken| *taken) {
            return Err(option("draws", row, "must be a row that there is, each once"));
        }
        taken[*row] = true;
        pack(*row, draw, seen.len(), &mut packed)?;
        for &(token, count) in &draw.seen {
            // Tokens that the row does not have are left out by the kernel.
            seen.push([i32::try_from(token).unwrap_or(i32::MAX), int("draw.seen", count as usize)?]);
        }
    }
    let (seen, packed) = (cuda.upload(&bytes(seen.as_flattened()))?, cuda.upload(&packed)?);
    let out = cuda.allocate(draws.len() * 12)?;
    let args = push(Args::default(), &rows).int(rows.cols as i32);
    let args = args.address(packed.address()).address(seen.address()).address(out.address());
    let grid = [draws.len(), 1, 1];
    let launch = Launch { module: Module::Sample, kernel: "sample", grid, threads: THREADS, shared: SHARED, args };
    // SAFETY: every draw names a row of its own and a part of `seen`, the kernel compares tokens with the row's length.
    unsafe { cuda.launch(launch)? }
    let mut chosen = vec![0; draws.len() * 12];
    out.read(0, &mut chosen)?;
    let numbers = chosen.as_chunks::<4>().0;
    let drawn = |n: &[[u8; 4]]| {
        let token = u32::from_ne_bytes(n[1]);
        match u32::from_ne_bytes(n[0]) {
            0 => Drawn::Token(token),
            1 => Drawn::NotFinite { token: token as usize, value: f32::from_ne_bytes(n[2]) },
            _ => Drawn::NothingLeft,
        }
    };
    Ok(numbers.chunks_exact(3).map(drawn).collect())
}

fn bytes(numbers: &[i32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_ne_bytes()).collect()
}

/// As the kernel reads it.
fn pack(row: usize, draw: &Draw, first: usize, to: &mut Vec<u8>) -> Result<(), CudaError> {
    let Draw { temperature, top_p, min_p, .. } = *draw;
    for (name, x) in [("draw.temperature", temperature), ("draw.top_p", top_p), ("draw.min_p", min_p)] {
        // Infinity would be an undefined quotient, NaN would compare with nothing.
        if !(0.0..=f32::MAX).contains(&x) {
            return Err(option(name, x, "must be a number from 0 on"));
        }
    }
    let top_k = draw.top_k.min(MAX_VOCAB) as i32;
    to.extend(draw.random.to_ne_bytes());
    to.extend(bytes(&[int("row", row)?, int("draw.seen", first)?, int("draw.seen", draw.seen.len())?, top_k]));
    let penalties = [draw.repetition_penalty, draw.frequency_penalty, draw.presence_penalty];
    to.extend([temperature, top_p, min_p].into_iter().chain(penalties).flat_map(f32::to_ne_bytes));
    Ok(())
}
