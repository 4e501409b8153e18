//! Medians and percentiles.

/// The value below which `percent` of the samples lie; `None` of no samples. Sorts them.
pub(crate) fn percentile(samples: &mut [u64], percent: usize) -> Option<u64> {
    samples.sort_unstable();
    let last = samples.len().checked_sub(1)?;
    samples.get((samples.len() * percent / 100).min(last)).copied()
}

/// The middle one of the values; `None` of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// A count as a figure; those measured here are far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "counts and times of a benchmark")]
pub(crate) fn figure(count: u64) -> f64 {
    count as f64
}

/// A length as a figure.
pub(crate) fn size(length: usize) -> f64 {
    figure(u64::try_from(length).unwrap_or(u64::MAX))
}

/// Nanoseconds as microseconds.
pub(crate) fn us(nanoseconds: u64) -> f64 {
    figure(nanoseconds) / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::{median, percentile};

    #[test]
    fn middles_and_ends() {
        let mut samples: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(percentile(&mut samples, 50), Some(51));
        assert_eq!(percentile(&mut samples, 99), Some(100));
        assert_eq!(percentile(&mut [], 50), None);
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([]), None);
    }
}
