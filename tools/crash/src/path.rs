//! How a state is reached: a seed and the cuts on the way.

use std::fmt;
use std::str::FromStr;

use btfs::storage::sim::Policy;

/// What fails at a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The power; of what was not durable this is left.
    Power(Policy),
    /// Only the process: all of it is left, and still not durable.
    Process,
}

/// A cut: at which operation of the recording, and what fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The number of the operation in flight.
    pub cut: u64,
    /// What fails.
    pub failure: Failure,
    /// Tells several images of one cut and policy apart.
    pub salt: u32,
}

/// A state: `SEED`, or `SEED:CUT.POLICY.SALT:…` with one step for each power cut.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Path {
    /// What the first run follows from.
    pub seed: u64,
    /// The cuts, the first one first.
    pub steps: Vec<Step>,
}

impl Path {
    /// The path that goes on with one more cut.
    pub fn then(&self, step: Step) -> Path {
        let mut longer = self.clone();
        longer.steps.push(step);
        longer
    }

    /// A number from which all that is random at this state follows.
    pub fn hash(&self) -> u64 {
        let mut hash = mix(self.seed ^ 0x5eed);
        for step in &self.steps {
            hash = mix(hash ^ step.cut);
            let failure = match step.failure {
                Failure::Power(policy) => policy as u64,
                Failure::Process => 0xff,
            };
            hash = mix(hash ^ failure ^ u64::from(step.salt) << 8);
        }
        hash
    }
}

/// Spreads every bit of `n` over the whole result (the finaliser of splitmix64).
pub fn mix(n: u64) -> u64 {
    let mut n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seed)?;
        for step in &self.steps {
            write!(f, ":{}.{}.{}", step.cut, step.failure, step.salt)?;
        }
        Ok(())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Power(policy) => write!(f, "{policy:?}"),
            Failure::Process => write!(f, "Process"),
        }
    }
}

impl FromStr for Failure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let powers = Policy::ALL.iter().map(|p| Failure::Power(*p));
        let mut failures = powers.chain([Failure::Power(Policy::Any), Failure::Process]);
        let named = |f: &Failure| f.to_string().eq_ignore_ascii_case(text);
        failures.find(named).ok_or_else(|| format!("there is no policy {text:?}"))
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not CUT.POLICY.SALT");
        let mut parts = text.split('.');
        let cut = parts.next().and_then(|t| t.parse().ok()).ok_or_else(wrong)?;
        let failure = parts.next().ok_or_else(wrong)?.parse()?;
        let salt = parts.next().map_or(Some(0), |t| t.parse().ok()).ok_or_else(wrong)?;
        Ok(Step { cut, failure, salt })
    }
}

impl FromStr for Path {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let seed = parts.next().unwrap_or_default();
        let seed = seed.parse().map_err(|_| format!("{seed:?} is not a seed"))?;
        Ok(Path { seed, steps: parts.map(str::parse).collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_path_is_read_back() {
        let mut path = Path { seed: 17, steps: Vec::new() };
        for (cut, policy) in Policy::ALL.iter().enumerate() {
            path = path.then(Step { cut: cut as u64 * 1000, failure: Failure::Power(*policy), salt: 3 });
        }
        path = path.then(Step { cut: 5, failure: Failure::Process, salt: 999 });
        assert_eq!(path.to_string().parse(), Ok(path));
        assert!("17:5.Sideways.1".parse::<Path>().is_err());
    }
}
