//! Where the sequences of a step are: positions, block tables, wanted rows, slots of running states. Checked when it is
//! filled, so that kernels can follow the numbers in it.

use super::*;
use crate::cpu::{BLOCK, KernelError, NO_BLOCK, StateSpan};

/// One sequence of a step: consecutive positions.
#[derive(Debug, Clone, Copy)]
pub struct BatchSeq<'a> {
    /// How many rows, after those of the sequences before.
    pub rows: usize,
    /// Position of the first row in the sequence.
    pub first_position: usize,
    /// Block `i` holds positions `16 i .. 16 i + 16`. May be longer than needed.
    pub blocks: &'a [u32],
}

/// The numbers of one step, in device memory.
#[derive(Debug)]
pub struct Batch {
    cuda: Cuda,
    memory: Memory,
    /// What is copied to it.
    staged: Vec<i32>,
    rows: usize,
    selected: usize,
    /// One more than the largest.
    selected_limit: usize,
    block_limit: usize,
    max_context: usize,
    slot_limit: usize,
    spans: usize,
    /// By rows of a tile: where the list of tiles begins, and how many there are.
    tiles: Vec<(usize, [usize; 2])>,
    /// Where each part begins.
    starts: Starts,
}

#[derive(Debug, Default, Clone, Copy)]
struct Starts {
    positions: usize,
    row_tables: usize,
    tables: usize,
    selected: usize,
    spans: usize,
}

impl Batch {
    /// An empty step. `tile_rows` are the numbers of rows that attention takes together, see `query_rows`.
    pub fn new(cuda: &Cuda, tile_rows: &[usize]) -> Result<Batch, CudaError> {
        let mut tiles: Vec<(usize, [usize; 2])> = tile_rows.iter().map(|&rows| (rows.max(1), [0, 0])).collect();
        tiles.sort_unstable();
        tiles.dedup();
        Ok(Batch {
            cuda: cuda.clone(),
            memory: cuda.allocate(1 << 12)?,
            staged: vec![],
            rows: 0,
            selected: 0,
            selected_limit: 0,
            block_limit: 0,
            max_context: 0,
            slot_limit: 0,
            spans: 0,
            tiles,
            starts: Starts::default(),
        })
    }

    /// The sequences of a step, laid end to end; the rows whose logits are wanted; the states of the sequences.
    pub fn fill(&mut self, seqs: &[BatchSeq<'_>], selected: &[u32], states: &[StateSpan]) -> Result<(), CudaError> {
        self.rows = seqs.iter().map(|s| s.rows).fold(0, usize::saturating_add);
        let ends = seqs.iter().map(|s| s.first_position.saturating_add(s.rows));
        self.max_context = ends.max().unwrap_or(0);
        int("seqs", self.rows)?;
        int("seqs.first_position", self.max_context)?;
        (self.block_limit, self.selected, self.spans) = (0, selected.len(), states.len());
        self.selected_limit = selected.iter().map(|&r| r as usize + 1).max().unwrap_or(0);
        check_len("selected", self.selected_limit, self.rows)?;
        self.staged.clear();
        // Spans first: they are read 16 bytes at a time.
        self.states(states)?;
        self.starts.positions = self.staged.len();
        seqs.iter().for_each(|s| self.staged.extend((s.first_position..s.first_position + s.rows).map(|p| p as i32)));
        self.starts.row_tables = self.staged.len();
        let mut table = 0;
        for seq in seqs {
            self.staged.extend(std::iter::repeat_n(int("seqs.blocks", table)?, seq.rows));
            table += blocks_of(seq)?.len();
        }
        self.starts.tables = self.staged.len();
        for seq in seqs {
            for &block in blocks_of(seq)? {
                // A block that was freed is before every window: nothing reads it.
                let known = block != NO_BLOCK;
                self.block_limit = self.block_limit.max(if known { block as usize + 1 } else { 0 });
                self.staged.push(if known { int("seqs.blocks", block as usize)? } else { -1 });
            }
        }
        self.starts.selected = self.staged.len();
        self.staged.extend(selected.iter().map(|&r| r as i32));
        self.tiles(seqs);
        self.upload()
    }

    fn states(&mut self, states: &[StateSpan]) -> Result<(), CudaError> {
        self.starts.spans = 0;
        self.slot_limit = states.iter().map(|s| s.slot + 1).max().unwrap_or(0);
        let mut end = 0;
        for (index, s) in states.iter().enumerate() {
            if s.first_row < end {
                return Err(KernelError::Overlap { argument: "states", first: index - 1, second: index }.into());
            }
            end = s.first_row.saturating_add(s.rows);
            check_len("states", end, self.rows)?;
            if let Some(first) = states[..index].iter().position(|other| other.slot == s.slot) {
                return Err(KernelError::Overlap { argument: "states.slot", first, second: index }.into());
            }
            let slot = int("states.slot", s.slot)?;
            self.staged.extend([s.first_row as i32, s.rows as i32, slot, s.fresh.into()]);
        }
        Ok(())
    }

    /// The rows of each sequence, cut into tiles.
    fn tiles(&mut self, seqs: &[BatchSeq<'_>]) {
        for (rows_each, place) in &mut self.tiles {
            // Pairs of 8 bytes.
            self.staged.resize(self.staged.len().next_multiple_of(2), 0);
            let (start, mut first_row) = (self.staged.len(), 0);
            for seq in seqs {
                for first in (0..seq.rows).step_by(*rows_each) {
                    let rows = (*rows_each).min(seq.rows - first);
                    self.staged.extend([(first_row + first) as i32, rows as i32]);
                }
                first_row += seq.rows;
            }
            *place = [start, (self.staged.len() - start) / 2];
        }
    }

    fn upload(&mut self) -> Result<(), CudaError> {
        let bytes: Vec<u8> = self.staged.iter().flat_map(|x| x.to_ne_bytes()).collect();
        if bytes.len() > self.memory.bytes() {
            self.memory = self.cuda.allocate(bytes.len().next_power_of_two())?;
        }
        self.memory.write(0, &bytes)
    }

    fn at(&self, start: usize) -> u64 {
        self.memory.address() + 4 * start as u64
    }

    /// Rows of the step.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of rows whose logits are wanted.
    pub fn selected(&self) -> usize {
        self.selected
    }

    pub(super) fn selected_limit(&self) -> usize {
        self.selected_limit
    }

    pub(super) fn selected_address(&self) -> u64 {
        self.at(self.starts.selected)
    }

    /// The number of blocks that a cache needs.
    pub(super) fn block_limit(&self) -> usize {
        self.block_limit
    }

    /// The length of the longest sequence after this step.
    pub(super) fn max_context(&self) -> usize {
        self.max_context
    }

    /// Addresses of positions, of places of block tables by row, and of the tables.
    pub(super) fn paged(&self) -> [u64; 3] {
        [self.starts.positions, self.starts.row_tables, self.starts.tables].map(|start| self.at(start))
    }

    /// The address of the tiles of so many rows, and how many there are.
    pub(super) fn tiles_of(&self, rows: usize) -> Result<(u64, usize), CudaError> {
        match self.tiles.iter().find(|(each, _)| *each == rows) {
            Some((_, [start, count])) => Ok((self.at(*start), *count)),
            None => Err(option("batch", rows, "was not made for tiles of so many rows")),
        }
    }

    /// The address of the states' spans, how many there are, and the number of slots that they need.
    pub(super) fn spans(&self) -> (u64, usize, usize) {
        (self.at(self.starts.spans), self.spans, self.slot_limit)
    }
}

/// The blocks that the sequence's positions need.
fn blocks_of<'a>(seq: &BatchSeq<'a>) -> Result<&'a [u32], CudaError> {
    let needed = (seq.first_position + seq.rows).div_ceil(BLOCK);
    check_len("seqs.blocks", needed, seq.blocks.len())?;
    let blocks = &seq.blocks[..needed];
    let first = (seq.first_position / BLOCK).min(needed);
    match blocks[first..].iter().position(|&b| b == NO_BLOCK) {
        Some(at) if seq.rows > 0 => {
            let place = first + at;
            Err(KernelError::Index { argument: "seqs.blocks", place, index: NO_BLOCK.into(), limit: NO_BLOCK as usize }
                .into())
        }
        _ => Ok(blocks),
    }
}
