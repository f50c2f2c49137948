//! `host bench`: the figures of `vllm bench`, under the same names, of this engine (`latency`, `throughput`) and of any
//! server with the OpenAI API (`serve`).

mod figures;
mod load;
mod offline;
mod serve;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Time of one batch, from prompts to the last token
    Latency(Box<offline::LatencyArgs>),
    /// Requests and tokens a second, all prompts at once
    Throughput(Box<offline::ThroughputArgs>),
    /// Load on a running server: throughput, time to the first token, time between tokens
    Serve(Box<serve::Args>),
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Latency(args) => offline::latency(*args),
        Command::Throughput(args) => offline::throughput(*args),
        Command::Serve(args) => serve::run(*args),
    }
}

/// Random numbers from a seed: SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Between 0 and 1, never 0.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 1.0) / (1u64 << 53) as f64
    }

    /// Around `length`, by at most this share of it; at least 1.
    fn length(&mut self, length: usize, ratio: f64) -> usize {
        let low = ((length as f64 * (1.0 - ratio)).floor() as usize).max(1);
        let high = ((length as f64 * (1.0 + ratio)).ceil() as usize).max(low);
        low + self.below(high - low + 1)
    }
}
