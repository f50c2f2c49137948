//! A run allocates nothing, on any thread, whether threads spin or were parked. A program of its own: its allocator counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use kernels::cpu::Pool;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What is allocated while `f` runs. The harness has threads too: the least of several times is what `f` does.
fn allocations(f: impl Fn()) -> usize {
    let count = || {
        let before = ALLOCATIONS.load(Relaxed);
        f();
        ALLOCATIONS.load(Relaxed) - before
    };
    (0..20).map(|_| count()).min().unwrap()
}

#[test]
fn a_run_allocates_nothing() {
    for pin in [false, true] {
        let pool = Pool::new(3, pin).unwrap();
        let ran = AtomicUsize::new(0);
        let run = || {
            pool.run(&|part, _| {
                ran.fetch_add(part, Relaxed);
            })
        };
        run();
        assert_eq!(allocations(|| (0..100).for_each(|_| run())), 0);
        // Parked threads are woken.
        assert_eq!(
            allocations(|| [(); 3].iter().for_each(|()| (std::thread::sleep(Duration::from_millis(2)), run()).1)),
            0
        );
        assert_eq!(ran.load(Relaxed) % 3, 0);
        // It does count.
        assert!(allocations(|| drop(std::hint::black_box(Box::new(7)))) > 0);
    }
}
