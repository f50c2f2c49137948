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
        (KvMut::F32(to_k), KvMut::F32(to_v)) => write(cpu, shape, k, v, seqs, to_k, to_v),
        (KvMut::Bf16(to_k), KvMut::Bf16(to_v)) => write(cpu, shape, k, v, seqs, to_k, to_v),
        _ => {
            let why = "K and V have the same dtype";
            Err(KernelError::Dtype { argument: "cache.v", got: "another dtype than cache.k", why })
        }
    }
}

/// An element of the cache, from f32.
trait Stored: Copy + Send + Sync {
    fn from_f32(x: f32) -> Self;
}

impl Stored for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
}

/// A pointer to the cache for several threads, each of which writes heads of its own.
struct Shared<E>(*mut E);

// SAFETY: only a pointer; whoever uses it answers for disjointness.
unsafe impl<E: Send> Sync for Shared<E> {}

impl<E> Shared<E> {
    fn get(&self) -> *mut E {
        self.0
    }
}

fn write<E: Stored>(
    cpu: &Cpu,
    shape: KvShape,
    k: Rows<'_>,
    v: Rows<'_>,
    seqs: &[SeqSpan<'_>],
    to_k: &mut [E],
    to_v: &mut [E],
) -> Result<(), KernelError> {
    let blocks = shape.blocks(to_k.len(), to_v.len())?;
    k.check_shape("k", k.rows, shape.kv_heads * shape.head_dim)?;
    v.check_shape("v", k.rows, shape.kv_heads * shape.value_dim)?;
    check_spans(seqs, k.rows)?;
    for seq in seqs {
        seq.check_blocks(seq.first_position, blocks)?;
    }
    let (to_k, to_v) = (Shared(to_k.as_mut_ptr()), Shared(to_v.as_mut_ptr()));
    // By heads: should two sequences be given the same block, no two threads write the same element even then.
    let part = |part, parts| {
        for head in split(shape.kv_heads, part, parts) {
            for seq in seqs {
                // SAFETY: every block of the step's positions was checked, rows and heads are in range, and this thread
                // alone writes this head.
                unsafe { write_head(shape, head, k, v, seq, to_k.get(), to_v.get()) }
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
/// The blocks of the sequence's new positions are inside the cache that starts at `to_k` and `to_v`; nobody else uses
/// this head of them.
unsafe fn write_head<E: Stored>(
    shape: KvShape,
    head: usize,
    k: Rows<'_>,
    v: Rows<'_>,
    seq: &SeqSpan<'_>,
    to_k: *mut E,
    to_v: *mut E,
) {
    let (dim, value_dim) = (shape.head_dim, shape.value_dim);
    for row in 0..seq.rows {
        let position = seq.first_position + row;
        let block = seq.blocks[position / BLOCK] as usize;
        let slot = position % BLOCK;
        let key = &k.row(seq.first_row + row)[head * dim..][..dim];
        let value = &v.row(seq.first_row + row)[head * value_dim..][..value_dim];
        // SAFETY: in range by the caller's promise; the layouts are those of the module's head.
        unsafe {
            let to_k = to_k.add(block * shape.k_block() + head * dim * BLOCK + slot);
            for (d, &x) in key.iter().enumerate() {
                to_k.add(d * BLOCK).write(E::from_f32(x));
            }
            let to_v = to_v.add(block * shape.v_block() + (head * BLOCK + slot) * value_dim);
            for (d, &x) in value.iter().enumerate() {
                to_v.add(d).write(E::from_f32(x));
            }
        }
    }
}
