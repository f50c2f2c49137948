//! Zeroed memory that the system provides page by page when it is first written: buffers, KV caches and running states are as
//! large as what may ever run, and most servers never fill them. Always mapped afresh, never taken from the allocator, which
//! clears what it has used before and so touches every page of it. Knows nothing of what is kept in it.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

/// A slice of zeros, at first.
pub(super) struct Zeroed<E> {
    map: MmapMut,
    len: usize,
    elements: PhantomData<E>,
}

impl<E: Pod> Zeroed<E> {
    /// `len` elements, or why there is no room for them.
    pub(super) fn new(len: usize) -> Result<Zeroed<E>, String> {
        // A mapping of no bytes is an error.
        let bytes = len.checked_mul(size_of::<E>()).ok_or("the size overflows")?.max(1);
        let map = MmapMut::map_anon(bytes).map_err(|e| format!("not enough memory ({e})"))?;
        Ok(Zeroed { map, len, elements: PhantomData })
    }
}

impl<E: Pod> Deref for Zeroed<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        // A page is aligned for every element.
        bytemuck::cast_slice(&self.map[..self.len * size_of::<E>()])
    }
}

impl<E: Pod> DerefMut for Zeroed<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        bytemuck::cast_slice_mut(&mut self.map[..self.len * size_of::<E>()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of this process that are in memory.
    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
        text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number of pages")
    }

    #[test]
    fn memory_is_zero_and_not_touched_before_it_is_used() {
        const PIECES: usize = 64;
        const LEN: usize = 4 << 20;
        let before = resident();
        // Taken, given back and taken again: the second time too it costs nothing.
        for _ in 0..2 {
            let mut all: Vec<Zeroed<f32>> = (0..PIECES).map(|_| Zeroed::new(LEN).expect("memory")).collect();
            assert_eq!((all[1].len(), all[1][0], all[1][LEN - 1]), (LEN, 0.0, 0.0));
            all[1][LEN - 1] = 2.5;
            assert_eq!(all[1][LEN - 1], 2.5);
        }
        let all: Vec<Zeroed<f32>> = (0..PIECES).map(|_| Zeroed::new(LEN).expect("memory")).collect();
        // Other tests run in this process too: far from the 1 GiB is what counts.
        assert!(resident().saturating_sub(before) < PIECES * LEN * 4 / 4096 / 2, "{} pages", resident());
        assert!(all.iter().all(|piece| piece.len() == LEN));
        assert!(Zeroed::<u16>::new(0).expect("nothing").is_empty());
        assert!(Zeroed::<f32>::new(usize::MAX / 2).is_err_and(|e| e.contains("overflows")));
        assert!(Zeroed::<f32>::new(1 << 60).is_err());
    }
}
