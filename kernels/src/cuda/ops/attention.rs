//! Kernels of `attention.cu`.

use super::*;
use crate::cpu::{BLOCK, KvShape};

/// Positions that are gathered before they are joined with those before them.
pub const PART: usize = 256;

/// Queries of a block.
const QUERIES: usize = 16;

/// The widest value that there is a kernel for.
const MAX_VALUE: usize = 512;

/// Shared memory that every device has which kernels are compiled for. Not more is used where there is more: the size of a
/// tile, and with it the order of sums, is the same on all.
const SHARED: usize = 96 << 10;

/// One layer's cache: `k` is `[blocks, kv_heads, 16, head_dim]`, `v` is `[blocks, kv_heads, 16, value_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct KvCache<'a> {
    /// Its sizes.
    pub shape: KvShape,
    /// Keys.
    pub k: &'a Memory,
    /// Values.
    pub v: &'a Memory,
    /// Whether elements are bf16 instead of f32.
    pub bf16: bool,
}

impl KvCache<'_> {
    /// Checks that the blocks of a step are there.
    fn check(&self, batch: &Batch) -> Result<(), CudaError> {
        let KvShape { kv_heads, head_dim, value_dim } = self.shape;
        if kv_heads == 0 || head_dim == 0 || value_dim == 0 {
            return Err(option("cache.shape", format!("{:?}", self.shape), "all sizes must be positive"));
        }
        let size = if self.bf16 { 2 } else { 4 };
        for (name, dim, memory) in [("cache.k", head_dim, self.k), ("cache.v", value_dim, self.v)] {
            let block = kv_heads.saturating_mul(dim).saturating_mul(BLOCK * size);
            check_len(name, batch.block_limit().saturating_mul(block), memory.bytes())?;
        }
        Ok(())
    }

    fn push(&self, args: Args) -> Args {
        args.address(self.k.address()).address(self.v.address())
    }
}

/// Writes `k`, `[T, kv_heads * head_dim]`, and `v`, `[T, kv_heads * value_dim]`, to the positions of the batch.
pub fn write_kv(
    cuda: &Cuda,
    k: View<'_, f32>,
    v: View<'_, f32>,
    batch: &Batch,
    cache: KvCache<'_>,
) -> Result<(), CudaError> {
    let KvShape { kv_heads, head_dim, value_dim } = cache.shape;
    cache.check(batch)?;
    k.check_shape("k", batch.rows(), kv_heads * head_dim)?;
    v.check_shape("v", batch.rows(), kv_heads * value_dim)?;
    let [positions, row_tables, tables] = batch.paged();
    let args = push(push(Args::default(), &k), &v).address(positions).address(row_tables).address(tables);
    let args = cache.push(args).int(int("kv_heads", kv_heads)?);
    let args = args.int(int("head_dim", head_dim)?).int(int("value_dim", value_dim)?);
    let kernel = if cache.bf16 { "write_kv_bf16" } else { "write_kv_f32" };
    let threads = threads_for(k.cols.max(v.cols));
    let launch = Launch { module: Module::Attention, kernel, grid: [batch.rows(), 1, 1], threads, shared: 0, args };
    // SAFETY: k and v have a row for each of the batch; the batch has a block for each position, which the cache has.
    unsafe { cuda.launch(launch) }
}

/// The rows of a sequence that a block takes together, if so many query heads share a kv head.
pub fn query_rows(heads: usize, kv_heads: usize) -> usize {
    let group = (heads / kv_heads.max(1)).clamp(1, QUERIES);
    QUERIES / group
}

/// Bytes of `parts` with which a step of `rows` rows may be cut along contexts of `context` positions.
pub fn parts_bytes(rows: usize, heads: usize, value_dim: usize, context: usize) -> usize {
    let parts = rows.saturating_mul(heads).saturating_mul(context.div_ceil(PART));
    parts.saturating_mul(value_dim + 2).saturating_mul(4)
}

/// The largest tile of keys that fits, and its shared memory.
fn tile(shape: KvShape, bf16: bool) -> Result<(usize, usize), CudaError> {
    let size = if bf16 { 2 } else { 4 };
    let line = 16 / size;
    let pitch = |dim: usize| dim.next_multiple_of(line) + line;
    let bytes = |tile: usize| {
        let queries = QUERIES * shape.head_dim.next_multiple_of(line) * 4;
        queries + 2 * tile * (pitch(shape.head_dim) + pitch(shape.value_dim)) * size
    };
    let fits = [32, 16, 8, 4].into_iter().find(|&t| bytes(t) <= SHARED);
    match fits.filter(|_| shape.value_dim <= MAX_VALUE) {
        Some(t) => Ok((t, bytes(t))),
        None => Err(option(
            "cache.shape",
            format!("{shape:?}"),
            "CUDA attention takes values of at most 512 elements, and keys of which four fit into shared memory",
        )),
    }
}

/// Attention for all rows of the batch: `q` is `[T, heads * head_dim]`, `out` is `[T, heads * value_dim]`. `parts` is room
/// for sums of parts of contexts; with less than [`parts_bytes`], contexts are walked through by one block each.
pub fn attention(
    cuda: &Cuda,
    params: &AttentionParams<'_>,
    q: View<'_, f32>,
    batch: &Batch,
    cache: KvCache<'_>,
    parts: &Memory,
    out: View<'_, f32>,
) -> Result<(), CudaError> {
    let KvShape { kv_heads, head_dim, value_dim } = cache.shape;
    cache.check(batch)?;
    if params.heads == 0 || !params.heads.is_multiple_of(kv_heads) {
        return Err(option("params.heads", params.heads, "must be a positive multiple of kv_heads"));
    }
    for (name, value) in [("params.window", params.window), ("params.chunk", params.chunk)] {
        if value == Some(0) {
            return Err(option(name, 0, "must be at least 1"));
        }
    }
    if let Some(cap) = params.softcap.filter(|cap| !(*cap > 0.0 && cap.is_finite())) {
        return Err(option("params.softcap", cap, "must be positive and finite"));
    }
    q.check_shape("q", batch.rows(), params.heads * head_dim)?;
    out.check_out("out", batch.rows(), params.heads * value_dim)?;
    let sinks = optional("params.sinks", params.sinks, params.heads)?;
    let slopes = optional("params.alibi_slopes", params.alibi_slopes, params.heads)?;
    let (tile, shared) = tile(cache.shape, cache.bf16)?;
    let (tiles, count) = batch.tiles_of(query_rows(params.heads, kv_heads))?;
    let group_pieces = (params.heads / kv_heads).div_ceil(QUERIES);
    // Few queries and a long context: several blocks for each. The bits are the same either way.
    let splits = match batch.max_context().div_ceil(PART) {
        several
            if several > 1
                && count * kv_heads * group_pieces < 2 * cuda.properties().multiprocessors
                && parts_bytes(batch.rows(), params.heads, value_dim, batch.max_context()) <= parts.bytes() =>
        {
            several
        }
        _ => 0,
    };
    let [positions, row_tables, tables] = batch.paged();
    let args = push(cache.push(Args::default()), &q).address(positions).address(row_tables).address(tables);
    let args = args.address(tiles).int(int("heads", params.heads)?).int(kv_heads as i32);
    let args = args.int(head_dim as i32).int(value_dim as i32).float(params.scale);
    // What no position reaches is as good as none.
    let limit = |n: Option<usize>| n.map_or(0, |n| i32::try_from(n).unwrap_or(0));
    let args = args.int(limit(params.window)).int(limit(params.chunk)).float(params.softcap.unwrap_or(0.0));
    let args = args.address(sinks).address(slopes).int(tile as i32).int(splits as i32).address(parts.address());
    let kernel = kernel(cache.bf16, value_dim);
    let grid = [count, kv_heads * group_pieces, splits.max(1)];
    let launch = Launch { module: Module::Attention, kernel, grid, threads: 256, shared, args: push(args, &out) };
    // SAFETY: q and out have a row for each of the batch; the batch has a block for each position, which the cache has.
    unsafe { cuda.launch(launch)? }
    if splits == 0 {
        return Ok(());
    }
    let args = Args::default().address(parts.address()).int(splits as i32).int(params.heads as i32);
    let args = push(args.int(value_dim as i32).address(sinks), &out);
    let (kernel, grid, threads) = ("attention_join", [batch.rows(), params.heads, 1], threads_for(value_dim));
    // SAFETY: the kernel before has written these parts.
    unsafe { cuda.launch(Launch { module: Module::Attention, kernel, grid, threads, shared: 0, args }) }
}

fn kernel(bf16: bool, value_dim: usize) -> &'static str {
    match (bf16, value_dim) {
        (false, ..=64) => "attention_f32_2",
        (false, ..=128) => "attention_f32_4",
        (false, ..=256) => "attention_f32_8",
        (false, _) => "attention_f32_16",
        (true, ..=64) => "attention_bf16_2",
        (true, ..=128) => "attention_bf16_4",
        (true, ..=256) => "attention_bf16_8",
        (true, _) => "attention_bf16_16",
    }
}

/// How attention is computed; as `cpu::AttentionParams`.
#[derive(Debug, Clone, Copy)]
pub struct AttentionParams<'a> {
    /// Query heads: a multiple of kv_heads.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// A query at position p sees keys j with `p - window < j` only.
    pub window: Option<usize>,
    /// A query sees keys of its own chunk of this size only.
    pub chunk: Option<usize>,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f32>,
    /// For each query head one more logit that takes part in the softmax and has no value.
    pub sinks: Option<Vector<'a, f32>>,
    /// For each query head: `slope * (j - p)` is added to the score of key j.
    pub alibi_slopes: Option<Vector<'a, f32>>,
}
