//! From the hidden states of a prompt's tokens to one vector. Rows come in order, in as many steps as the prompt takes;
//! the sum is kept in f64 and in that order, so that chunking changes no bit. Fed by the step loop.

/// How the hidden states of a prompt become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// That of the last token, which has seen all others.
    Last,
    /// The mean over all tokens.
    Mean,
}

impl Pooling {
    /// vLLM's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Last => "LAST",
            Self::Mean => "MEAN",
        }
    }

    /// Whether the rows of all tokens are wanted, not of the last alone.
    pub fn wants_all(self) -> bool {
        self == Self::Mean
    }
}

/// The vector of one prompt, as far as its rows are there.
#[derive(Debug)]
pub(super) struct Pool {
    pooling: Pooling,
    sum: Vec<f64>,
    rows: usize,
}

impl Pool {
    pub(super) fn new(pooling: Pooling) -> Self {
        Self { pooling, sum: Vec::new(), rows: 0 }
    }

    /// Takes the rows of one step.
    pub(super) fn push(&mut self, rows: &[f32], width: usize) {
        self.sum.resize(width, 0.0);
        for row in rows.chunks_exact(width) {
            match self.pooling {
                Pooling::Last => self.sum.iter_mut().zip(row).for_each(|(to, &x)| *to = f64::from(x)),
                Pooling::Mean => self.sum.iter_mut().zip(row).for_each(|(to, &x)| *to += f64::from(x)),
            }
            self.rows += 1;
        }
    }

    /// The vector.
    pub(super) fn finish(&self) -> Vec<f32> {
        let count = if self.pooling == Pooling::Mean { self.rows.max(1) as f64 } else { 1.0 };
        self.sum.iter().map(|x| (x / count) as f32).collect()
    }
}
