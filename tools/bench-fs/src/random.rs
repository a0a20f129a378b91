//! Deterministic random numbers, and a random order of `0..n` that needs no memory.

/// SplitMix64's finaliser: a bijection that looks random.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(mix(seed))
    }

    pub fn next(&mut self) -> u64 {
        let result = mix(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        result
    }

    /// A number in `0..bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `(0, 1]`.
    fn fraction(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// A log-normal number: its logarithm has the median's as mean, and this deviation.
    pub fn log_normal(&mut self, median: f64, deviation: f64) -> f64 {
        let radius = (-2.0 * self.fraction().ln()).sqrt();
        let normal = radius * (self.fraction() * std::f64::consts::TAU).cos();
        median * (deviation * normal).exp()
    }
}

/// A permutation of `0..len`: a Feistel network over the next even number of bits, walked until it lands inside.
pub struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Permutation {
    pub fn new(len: u64, seed: u64) -> Self {
        let bits = 64 - len.saturating_sub(1).leading_zeros();
        let keys = [0, 1, 2, 3].map(|round| mix(seed ^ mix(round)));
        Permutation { len, half_bits: bits.div_ceil(2).max(1), keys }
    }

    /// Where `x` goes.
    pub fn of(&self, x: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let mut x = x;
        loop {
            let (mut left, mut right) = (x >> self.half_bits, x & mask);
            for key in self.keys {
                (left, right) = (right, left ^ (mix(right ^ key) >> (64 - self.half_bits)));
            }
            x = (left << self.half_bits) | right;
            if x < self.len {
                return x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_visits_everything_once() {
        for len in [1, 2, 3, 100, 4097] {
            let order = Permutation::new(len, 7);
            let mut seen: Vec<u64> = (0..len).map(|x| order.of(x)).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..len));
        }
    }
}
