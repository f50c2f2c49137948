//! Times the shapes of `tests/table`: `cargo bench -p kernels -- <part of a name>`. Throughput is in bytes read and
//! written in the group `GB`, in floating-point operations in the group `GFLOP`.

#[path = "../tests/table/mod.rs"]
mod table;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kernels::cpu::{Cpu, default_threads};

fn all(criterion: &mut Criterion) {
    let cpu = match Cpu::new(default_threads()) {
        Ok(cpu) => cpu,
        Err(error) => return eprintln!("{error}"),
    };
    for (unit, flops) in [("GB", false), ("GFLOP", true)] {
        let mut group = criterion.benchmark_group(unit);
        group.sample_size(20);
        for mut case in table::bench_cases() {
            // Rates of arithmetic say something for matrix products and attention only.
            if flops && !(case.name.starts_with("linear/") || case.name.starts_with("attention/")) {
                continue;
            }
            let mut out = vec![0.0; case.outputs];
            group.throughput(if flops {
                Throughput::Elements(case.flops as u64)
            } else {
                Throughput::Bytes(case.bytes as u64)
            });
            group.bench_function(&case.name, |bencher| bencher.iter(|| (case.run)(&table::On::Cpu(&cpu), &mut out)));
        }
        group.finish();
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
