//! Writing keys and values of a step into their blocks.

use half::bf16;

use super::super::{Cpu, KernelError, Rows, split};
use super::{BLOCK, KvCacheMut, KvMut, KvShape, SeqSpan, check_spans};

/// From this many elements on, writing is worth a hand-over to other threads.
const PARALLEL: usize = 1 << 14;

/// Writes `k`, `[T, kv_heads * head_dim]`, and `v`, `[T, kv_heads * value_dim]`, to the positions that `seqs` gives.
pub fn write_kv(
    cpu: &Cpu,
    k: Rows<'_>,
    v: Rows<'_>,
    seqs: &[SeqSpan<'_>],
    cache: KvCacheMut<'_>,
) -> Result<(), KernelError> {
    let shape = cache.shape;
    match (cache.k, cache.v) {
        (KvMut::F32(to_k), KvMut::F32(to_v)) => write(cpu, shape, k, v, seqs, (to_k, None), (to_v, None)),
        (KvMut::Bf16(to_k), KvMut::Bf16(to_v)) => write(cpu, shape, k, v, seqs, (to_k, None), (to_v, None)),
        (KvMut::Int8 { codes: to_k, scales: k_scales }, KvMut::Int8 { codes: to_v, scales: v_scales }) => {
            write(cpu, shape, k, v, seqs, (to_k, Some(k_scales)), (to_v, Some(v_scales)))
        }
        _ => {
            let why = "K and V have the same dtype";
            Err(KernelError::Dtype { argument: "cache.v", got: "another dtype than cache.k", why })
        }
    }
}

/// An element of the cache, from f32.
trait Stored: Copy + Send + Sync {
    /// The scale of a key or value; 1 for what is stored as it is.
    fn scale(_row: &[f32]) -> f32 {
        1.0
    }
    /// `x` in units of a scale, of which the inverse is given.
    fn from_f32(x: f32, inverse: f32) -> Self;
}

impl Stored for f32 {
    #[inline(always)]
    fn from_f32(x: f32, _inverse: f32) -> Self {
        x
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn from_f32(x: f32, _inverse: f32) -> Self {
        bf16::from_f32(x)
    }
}

impl Stored for i8 {
    /// The largest magnitude becomes 127. What is too small for that becomes 0; what is not finite makes the whole key or
    /// value NaN, as a score with it would be.
    #[inline(always)]
    fn scale(row: &[f32]) -> f32 {
        let largest = row.iter().fold(0.0f32, |max, x| if x.abs() > max { x.abs() } else { max });
        let scale = largest / 127.0;
        if !row.iter().all(|x| x.is_finite()) {
            f32::NAN
        } else if scale < f32::MIN_POSITIVE {
            0.0
        } else {
            scale
        }
    }

    #[inline(always)]
    fn from_f32(x: f32, inverse: f32) -> Self {
        // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits.
        (x * inverse + 12_582_912.0).to_bits() as i8
    }
}

/// Pointers to K or V for several threads, each of which writes heads of its own.
struct Shared<E> {
    data: *mut E,
    /// `[blocks][kv_heads][16]`; null where elements have none.
    scales: *mut f32,
}

// SAFETY: only pointers; whoever uses them answers for disjointness.
unsafe impl<E: Send> Sync for Shared<E> {}

impl<E: Stored> Shared<E> {
    fn new((data, scales): (&mut [E], Option<&mut [f32]>)) -> Self {
        let scales = scales.map_or(std::ptr::null_mut(), <[f32]>::as_mut_ptr);
        Shared { data: data.as_mut_ptr(), scales }
    }

    /// Writes `row` from element `at` on, `stride` elements apart, with its scale at `scale_at`.
    ///
    /// # Safety
    /// All of them are inside of the slices that this was made from, and nobody else uses them.
    #[inline(always)]
    unsafe fn write(&self, row: &[f32], at: usize, stride: usize, scale_at: usize) {
        let scale = E::scale(row);
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        // SAFETY: in range by the caller's promise.
        unsafe {
            if !self.scales.is_null() {
                self.scales.add(scale_at).write(scale);
            }
            for (d, &x) in row.iter().enumerate() {
                self.data.add(at + d * stride).write(E::from_f32(x, inverse));
            }
        }
    }
}

fn write<E: Stored>(
    cpu: &Cpu,
    shape: KvShape,
    k: Rows<'_>,
    v: Rows<'_>,
    seqs: &[SeqSpan<'_>],
    to_k: (&mut [E], Option<&mut [f32]>),
    to_v: (&mut [E], Option<&mut [f32]>),
) -> Result<(), KernelError> {
    let lengths = |to: &(&mut [E], Option<&mut [f32]>)| (to.0.len(), to.1.as_ref().map(|scales| scales.len()));
    let blocks = shape.blocks(lengths(&to_k), lengths(&to_v))?;
    k.check_shape("k", k.rows, shape.kv_heads * shape.head_dim)?;
    v.check_shape("v", k.rows, shape.kv_heads * shape.value_dim)?;
    check_spans(seqs, k.rows)?;
    for seq in seqs {
        seq.check_blocks(seq.first_position, blocks)?;
    }
    let (to_k, to_v) = (Shared::new(to_k), Shared::new(to_v));
    // By heads: should two sequences be given the same block, no two threads write the same element even then.
    let part = |part, parts| {
        for head in split(shape.kv_heads, part, parts) {
            for seq in seqs {
                // SAFETY: every block of the step's positions was checked, rows and heads are in range, and this thread
                // alone writes this head.
                unsafe { write_head(shape, head, k, v, seq, &to_k, &to_v) }
            }
        }
    };
    let rows: usize = seqs.iter().map(|s| s.rows).sum();
    if rows * (k.cols + v.cols) < PARALLEL {
        part(0, 1)
    } else {
        cpu.pool().run(&part)
    }
    Ok(())
}

/// # Safety
/// The blocks of the sequence's new positions are inside of `to_k` and `to_v`; nobody else uses this head of them.
unsafe fn write_head<E: Stored>(
    shape: KvShape,
    head: usize,
    k: Rows<'_>,
    v: Rows<'_>,
    seq: &SeqSpan<'_>,
    to_k: &Shared<E>,
    to_v: &Shared<E>,
) {
    let (dim, value_dim) = (shape.head_dim, shape.value_dim);
    for row in 0..seq.rows {
        let position = seq.first_position + row;
        let block = seq.blocks[position / BLOCK] as usize;
        let slot = position % BLOCK;
        let key = &k.row(seq.first_row + row)[head * dim..][..dim];
        let value = &v.row(seq.first_row + row)[head * value_dim..][..value_dim];
        let scale_at = (block * shape.kv_heads + head) * BLOCK + slot;
        // SAFETY: in range by the caller's promise; the layouts are those of the module's head.
        unsafe {
            to_k.write(key, block * shape.k_block() + head * dim * BLOCK + slot, BLOCK, scale_at);
            to_v.write(value, block * shape.v_block() + (head * BLOCK + slot) * value_dim, 1, scale_at);
        }
    }
}
