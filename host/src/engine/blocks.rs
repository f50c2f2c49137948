//! The KV cache's bookkeeping: which block belongs to whom and what it holds. Pure: no executor, no time,
//! no threads; the memory itself is the executor's. Called by the scheduler.
//!
//! A block is *held* (one or more sequences have it in their table) or *free*. A full block is known by a
//! hash over everything up to its end, so that a later sequence with the same beginning can share it.
//! Freed blocks keep their content until they are needed: those without a hash are handed out first, then
//! the least recently used.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use crate::exec::{BLOCK_SIZE, BlockId};

/// Names the content of a block and of everything before it. SHA-256, because whoever finds two prompts
/// with one hash would read another client's cache.
pub type BlockHash = [u8; 32];

/// A table entry for a block that was freed because no window reaches it any more.
pub const FREED: BlockId = BlockId::MAX;
const NONE: u32 = u32::MAX;

/// The hash of a full block of `tokens` after `parent`.
pub fn block_hash(parent: Option<&BlockHash>, tokens: &[u32], salt: u64) -> BlockHash {
    let mut sha = Sha256::new();
    sha.update(parent.unwrap_or(&[0; 32]));
    sha.update(salt.to_le_bytes());
    for token in tokens {
        sha.update(token.to_le_bytes());
    }
    sha.finalize().into()
}

/// The first block that a token at or after `position` can read: with a window, those wholly before
/// `position - window` are out of reach.
pub fn first_block(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| position.saturating_sub(window) / BLOCK_SIZE)
}

#[derive(Debug, Clone)]
struct Block {
    refs: u32,
    hash: Option<BlockHash>,
    // Neighbours in the list of free blocks; meaningless while held.
    prev: u32,
    next: u32,
}

/// All blocks of the KV cache.
#[derive(Debug, Clone)]
pub struct BlockPool {
    blocks: Vec<Block>,
    cached: HashMap<BlockHash, BlockId>,
    // Free blocks, next to be handed out first.
    head: u32,
    tail: u32,
    free: usize,
}

impl BlockPool {
    /// A pool of `count` free blocks.
    pub fn new(count: usize) -> Self {
        let block = Block {
            refs: 0,
            hash: None,
            prev: NONE,
            next: NONE,
        };
        let mut pool = Self {
            blocks: vec![block; count],
            cached: HashMap::new(),
            head: NONE,
            tail: NONE,
            free: 0,
        };
        for id in 0..count as u32 {
            pool.push_back(id);
        }
        pool
    }

    /// How many blocks there are.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// How many blocks no sequence holds (cached content or not).
    pub fn free(&self) -> usize {
        self.free
    }

    /// How many sequences hold `id`.
    pub fn refs(&self, id: BlockId) -> u32 {
        self.blocks[id as usize].refs
    }

    /// Takes a free block, forgetting what it held. None if there is none.
    pub fn take(&mut self) -> Option<BlockId> {
        let id = self.head;
        if id == NONE {
            return None;
        }
        self.unlink(id);
        let block = &mut self.blocks[id as usize];
        block.refs = 1;
        if let Some(hash) = block.hash.take() {
            self.cached.remove(&hash);
        }
        Some(id)
    }

    /// One more sequence holds the cached block `id`.
    pub fn share(&mut self, id: BlockId) {
        if self.blocks[id as usize].refs == 0 {
            self.unlink(id);
        }
        self.blocks[id as usize].refs += 1;
    }

    /// One sequence less holds `id`.
    pub fn release(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        block.refs -= 1;
        if block.refs == 0 {
            if block.hash.is_some() {
                self.push_back(id)
            } else {
                self.push_front(id)
            }
        }
    }

    /// Releases a table. The end goes first, so that it is forgotten before the beginning, which more
    /// prompts have in common.
    pub fn release_all(&mut self, table: &mut Vec<BlockId>) {
        while let Some(id) = table.pop() {
            if id != FREED {
                self.release(id);
            }
        }
    }

    /// Block `id` is full and holds what `hash` says. If another block holds the same, that one stays the
    /// one to share.
    pub fn remember(&mut self, id: BlockId, hash: BlockHash) {
        let known = *self.cached.entry(hash).or_insert(id);
        if known == id {
            self.blocks[id as usize].hash = Some(hash);
        }
    }

    /// The longest beginning of `hashes` from which a sequence can go on: the table for it, empty if there
    /// is none. With a window only the blocks that the next token can reach need to be there; those
    /// before are [`FREED`].
    pub fn lookup(&self, hashes: &[BlockHash], window: Option<usize>) -> Vec<BlockId> {
        let Some(_) = window else {
            return hashes
                .iter()
                .map_while(|hash| self.cached.get(hash).copied())
                .collect();
        };
        // From the right: `end` is the candidate, `table[at..end]` is known to be there.
        let mut table = vec![FREED; hashes.len()];
        let mut end = hashes.len();
        for at in (0..hashes.len()).rev() {
            match self.cached.get(&hashes[at]) {
                None => end = at,
                Some(&id) => {
                    table[at] = id;
                    if at <= first_block(end * BLOCK_SIZE, window) {
                        table[..at].fill(FREED);
                        table.truncate(end);
                        return table;
                    }
                }
            }
        }
        Vec::new()
    }

    fn unlink(&mut self, id: u32) {
        let Block { prev, next, .. } = self.blocks[id as usize];
        if prev == NONE {
            self.head = next
        } else {
            self.blocks[prev as usize].next = next
        }
        if next == NONE {
            self.tail = prev
        } else {
            self.blocks[next as usize].prev = prev
        }
        self.free -= 1;
    }

    fn push_back(&mut self, id: u32) {
        let tail = self.tail;
        if tail == NONE {
            self.head = id
        } else {
            self.blocks[tail as usize].next = id
        }
        self.blocks[id as usize].prev = tail;
        self.blocks[id as usize].next = NONE;
        self.tail = id;
        self.free += 1;
    }

    fn push_front(&mut self, id: u32) {
        let head = self.head;
        if head == NONE {
            self.tail = id
        } else {
            self.blocks[head as usize].prev = id
        }
        self.blocks[id as usize].next = head;
        self.blocks[id as usize].prev = NONE;
        self.head = id;
        self.free += 1;
    }

    /// Panics unless exactly the blocks of `tables` are held, as often as they appear there, and the list
    /// of free blocks and the index of hashes agree with the blocks.
    #[cfg(test)]
    pub(crate) fn check<'a>(&self, tables: impl Iterator<Item = &'a [BlockId]>) {
        let mut refs = vec![0; self.blocks.len()];
        for &id in tables.flatten().filter(|&&id| id != FREED) {
            refs[id as usize] += 1;
        }
        for (id, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.refs, refs[id], "references of block {id}");
            if let Some(hash) = &block.hash {
                assert_eq!(
                    self.cached.get(hash),
                    Some(&(id as u32)),
                    "hash of block {id}"
                );
            }
        }
        let hashed = self
            .blocks
            .iter()
            .filter(|block| block.hash.is_some())
            .count();
        assert_eq!(hashed, self.cached.len());
        let (mut at, mut prev, mut free) = (self.head, NONE, 0);
        while at != NONE {
            assert_eq!(
                refs[at as usize], 0,
                "block {at} is in the free list and in a table"
            );
            assert_eq!(self.blocks[at as usize].prev, prev);
            (prev, at, free) = (at, self.blocks[at as usize].next, free + 1);
        }
        assert_eq!((prev, free), (self.tail, self.free));
        assert_eq!(
            free,
            refs.iter().filter(|&&refs| refs == 0).count(),
            "leaked blocks"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(count: u32) -> Vec<BlockHash> {
        let mut out: Vec<BlockHash> = Vec::new();
        for i in 0..count {
            let hash = block_hash(out.last(), &[i; BLOCK_SIZE], 0);
            out.push(hash);
        }
        out
    }

    #[test]
    fn hash_depends_on_parent_tokens_and_salt() {
        let base = block_hash(None, &[1; 16], 0);
        assert_eq!(base, block_hash(None, &[1; 16], 0));
        assert_ne!(base, block_hash(None, &[2; 16], 0));
        assert_ne!(base, block_hash(None, &[1; 16], 7));
        assert_ne!(base, block_hash(Some(&base), &[1; 16], 0));
    }

    #[test]
    fn least_recently_used_goes_first_and_uncached_before_cached() {
        let hashes = hashes(3);
        let mut pool = BlockPool::new(4);
        let mut table: Vec<_> = (0..4).filter_map(|_| pool.take()).collect();
        for (&id, &hash) in table.iter().zip(&hashes) {
            pool.remember(id, hash);
        }
        let (first, plain) = (table[0], table[3]);
        pool.release_all(&mut table);
        assert_eq!(pool.lookup(&hashes, None).len(), 3);
        assert_eq!(pool.take(), Some(plain));
        pool.take();
        assert_eq!(
            pool.lookup(&hashes, None).len(),
            2,
            "the end of the chain is forgotten first"
        );
        // A hit keeps a block from being handed out.
        pool.share(first);
        pool.take();
        assert_eq!(pool.take(), None);
        assert_eq!(pool.lookup(&hashes, None), vec![first]);
    }

    #[test]
    fn one_block_a_hash() {
        let hash = hashes(1)[0];
        let mut pool = BlockPool::new(2);
        let (Some(a), Some(b)) = (pool.take(), pool.take()) else {
            panic!("two blocks")
        };
        pool.remember(a, hash);
        pool.remember(b, hash);
        pool.release(b);
        assert_eq!(pool.lookup(&[hash], None), vec![a]);
        pool.check([&[a][..]].into_iter());
    }

    #[test]
    fn window_needs_only_reachable_blocks() {
        let hashes = hashes(6);
        let mut pool = BlockPool::new(8);
        let ids: Vec<_> = (0..6).filter_map(|_| pool.take()).collect();
        for at in [2, 3, 4] {
            pool.remember(ids[at], hashes[at]);
        }
        assert!(pool.lookup(&hashes, None).is_empty());
        // Going on after block 4 (position 80) with a window of 32 reaches blocks 3 and 4.
        assert_eq!(
            pool.lookup(&hashes, Some(32)),
            [FREED, FREED, FREED, ids[3], ids[4]]
        );
        // A window of 33 reaches block 2 too, one of 64 block 1, which is not there.
        assert_eq!(
            pool.lookup(&hashes, Some(33)),
            [FREED, FREED, ids[2], ids[3], ids[4]]
        );
        assert!(pool.lookup(&hashes, Some(64)).is_empty());
        pool.remember(ids[0], hashes[0]);
        assert_eq!(pool.lookup(&hashes, Some(64)), [ids[0]]);
    }
}
