//! Means, medians and percentiles, computed as numpy does, so that they compare with those of `vllm bench`.

use serde_json::{Map, Value, json};

/// Samples, sorted.
#[derive(Debug, Clone)]
pub(super) struct Figures(Vec<f64>);

impl Figures {
    pub(super) fn new(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        Self(samples)
    }

    pub(super) fn mean(&self) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.iter().sum::<f64>() / self.0.len() as f64 }
    }

    pub(super) fn std(&self) -> f64 {
        let mean = self.mean();
        let squares: f64 = self.0.iter().map(|x| (x - mean) * (x - mean)).sum();
        if self.0.is_empty() { 0.0 } else { (squares / self.0.len() as f64).sqrt() }
    }

    /// Linear between the two nearest samples.
    pub(super) fn percentile(&self, percent: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return 0.0 };
        let at = percent.clamp(0.0, 100.0) / 100.0 * last as f64;
        let (below, above) = (self.0[at.floor() as usize], self.0[at.ceil() as usize]);
        below + (above - below) * at.fract()
    }

    /// Adds `mean_NAME_ms`, `median_…`, `std_…` and `pNN_…` in milliseconds.
    pub(super) fn add_to(&self, object: &mut Map<String, Value>, name: &str, percentiles: &[f64]) {
        let mut put = |kind: &str, seconds: f64| {
            object.insert(format!("{kind}_{name}_ms"), json!(seconds * 1e3));
        };
        put("mean", self.mean());
        put("median", self.percentile(50.0));
        put("std", self.std());
        for percent in percentiles {
            put(&format!("p{percent}"), self.percentile(*percent));
        }
    }

    /// The lines of a table.
    pub(super) fn lines(&self, title: &str, short: &str, percentiles: &[f64]) -> String {
        let mut out = format!("{title:-^50}\n");
        let mut line = |kind: &str, seconds: f64| {
            out.push_str(&format!("{:<40} {:<10.2}\n", format!("{kind} {short} (ms):"), seconds * 1e3));
        };
        line("Mean", self.mean());
        line("Median", self.percentile(50.0));
        for percent in percentiles {
            line(&format!("P{percent}"), self.percentile(*percent));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_numpy_has_them() {
        let figures = Figures::new(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!(figures.mean(), 2.5);
        assert!((figures.std() - 1.118_033_988_749_895).abs() < 1e-12);
        assert_eq!(figures.percentile(50.0), 2.5);
        assert!((figures.percentile(99.0) - 3.97).abs() < 1e-12);
        assert_eq!((figures.percentile(0.0), figures.percentile(100.0)), (1.0, 4.0));
        assert_eq!(Figures::new(vec![]).percentile(50.0), 0.0);
    }
}
