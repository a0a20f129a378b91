//! Deterministic random numbers, a random order of `0..n` that needs no memory, and the Zipf distribution.

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
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Random(mix(seed))
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        let result = mix(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        result
    }

    /// A number in `0..bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(bound)) >> 64) as u64
    }

    /// A log-normal number: its logarithm has the median's as mean, and this deviation.
    pub fn log_normal(&mut self, median: f64, deviation: f64) -> f64 {
        let radius = (-2.0 * (1.0 - self.fraction()).ln()).sqrt();
        let normal = radius * (self.fraction() * std::f64::consts::TAU).cos();
        median * (deviation * normal).exp()
    }

    /// A number in `[0, 1)`.
    fn fraction(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A permutation of `0..len`: a Feistel network over the next even number of bits, walked until it lands inside.
pub struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Permutation {
    /// The order of `0..len` of this seed.
    pub fn new(len: u64, seed: u64) -> Self {
        let bits = 64 - len.saturating_sub(1).leading_zeros();
        let keys = [0, 1, 2, 3].map(|round| mix(seed ^ mix(round)));
        Permutation { len, half_bits: bits.div_ceil(2).max(1), keys }
    }

    /// Where `x` goes.
    pub fn forward(&self, x: u64) -> u64 {
        self.walk(x, |mut left, mut right| {
            for key in self.keys {
                (left, right) = (right, left ^ self.round(right, key));
            }
            (left, right)
        })
    }

    /// What goes to `x`.
    pub fn backward(&self, x: u64) -> u64 {
        self.walk(x, |mut left, mut right| {
            for key in self.keys.into_iter().rev() {
                (left, right) = (right ^ self.round(left, key), left);
            }
            (left, right)
        })
    }

    fn walk(&self, x: u64, pass: impl Fn(u64, u64) -> (u64, u64)) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let mut x = x;
        loop {
            let (left, right) = pass(x >> self.half_bits, x & mask);
            x = (left << self.half_bits) | right;
            if x < self.len {
                return x;
            }
        }
    }

    fn round(&self, half: u64, key: u64) -> u64 {
        mix(half ^ key) >> (64 - self.half_bits)
    }
}

/// Ranks in `0..n` with probabilities proportional to `1 / (rank + 1)^theta` (Gray et al., SIGMOD 1994).
pub struct Zipf {
    n: f64,
    theta: f64,
    alpha: f64,
    zeta_n: f64,
    eta: f64,
}

impl Zipf {
    /// The distribution over `0..n` with this skew.
    pub fn new(n: u64, theta: f64) -> Self {
        let zeta = |n: u64| (1..=n).map(|i| (i as f64).powf(-theta)).sum::<f64>();
        let zeta_n = zeta(n);
        let eta = (1.0 - (2.0 / n as f64).powf(1.0 - theta)) / (1.0 - zeta(2) / zeta_n);
        Zipf { n: n as f64, theta, alpha: 1.0 / (1.0 - theta), zeta_n, eta }
    }

    /// A rank.
    pub fn rank(&self, random: &mut Random) -> u64 {
        let u = random.fraction();
        let scaled = u * self.zeta_n;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5f64.powf(self.theta) {
            return 1;
        }
        let rank = self.n * (self.eta * u - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(self.n as u64 - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backward_undoes_forward() {
        for len in [1, 2, 3, 100, 1000, 4097] {
            let order = Permutation::new(len, 7);
            assert!((0..len).all(|x| order.forward(x) < len && order.backward(order.forward(x)) == x));
        }
    }

    #[test]
    fn the_first_rank_comes_as_often_as_zipf_says() {
        let zipf = Zipf::new(1000, 0.99);
        let mut random = Random::new(1);
        let first = (0..100_000).filter(|_| zipf.rank(&mut random) == 0).count() as f64 / 100_000.0;
        assert!((first - 1.0 / zipf.zeta_n).abs() < 0.01);
    }
}
