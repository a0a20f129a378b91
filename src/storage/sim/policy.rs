//! Which of the operations that are not durable a power cut leaves.

use crate::storage::Rng;

/// Which of the operations that are not durable a power cut leaves, and how torn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// None of them.
    Lost,
    /// All of them.
    Kept,
    /// Each of them or not, at random; none is torn.
    Operations,
    /// Each of them lost, kept, or torn, at random.
    Sectors,
    /// Only the oldest.
    First,
    /// Only the newest.
    Last,
    /// All but one.
    AllButOne,
    /// A random number of the oldest; the next one is torn.
    Prefix,
    /// A random number of the newest; the one before is torn.
    Suffix,
    /// Any of these at random.
    Any,
}

/// What becomes of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Lost,
    Kept,
    Torn,
}

impl Policy {
    /// Every policy but [`Policy::Any`].
    pub const ALL: [Policy; 9] = [
        Policy::Lost,
        Policy::Kept,
        Policy::Operations,
        Policy::Sectors,
        Policy::First,
        Policy::Last,
        Policy::AllButOne,
        Policy::Prefix,
        Policy::Suffix,
    ];

    /// The fates of `count` operations, the oldest first.
    pub(super) fn fates(self, rng: &mut Rng, count: usize) -> Vec<Fate> {
        let mut fates = vec![Fate::Lost; count];
        match self {
            _ if count == 0 => {}
            Policy::Lost => {}
            Policy::Kept => fates.fill(Fate::Kept),
            Policy::Operations => {
                let eighths = 1 + rng.below(7);
                fates.fill_with(|| if rng.chance(eighths, 8) { Fate::Kept } else { Fate::Lost });
            }
            Policy::Sectors => {
                fates.fill_with(|| [Fate::Lost, Fate::Kept, Fate::Torn, Fate::Torn][rng.index(4)]);
            }
            Policy::First => fates[0] = Fate::Kept,
            Policy::Last => fates[count - 1] = Fate::Kept,
            Policy::AllButOne => {
                fates.fill(Fate::Kept);
                fates[rng.index(count)] = Fate::Lost;
            }
            Policy::Prefix => {
                let torn = rng.index(count);
                fates[..torn].fill(Fate::Kept);
                fates[torn] = Fate::Torn;
            }
            Policy::Suffix => {
                let torn = rng.index(count);
                fates[torn..].fill(Fate::Kept);
                fates[torn] = Fate::Torn;
            }
            Policy::Any => fates = Policy::ALL[rng.index(Policy::ALL.len())].fates(rng, count),
        }
        fates
    }
}

/// Which units (sectors of a write, blocks of a punch) of a torn operation are there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tear {
    /// Each with this probability, in eighths.
    Random(u64),
    /// The first so many.
    First(u64),
    /// All but the first so many.
    AllButFirst(u64),
}

impl Tear {
    /// A tear of an operation of `units` units.
    pub(super) fn random(rng: &mut Rng, units: u64) -> Self {
        match rng.below(4) {
            0 => Tear::First(rng.below(units + 1)),
            1 => Tear::AllButFirst(rng.below(units + 1)),
            _ => Tear::Random(1 + rng.below(7)),
        }
    }

    pub(super) fn keeps(self, rng: &mut Rng, unit: u64) -> bool {
        match self {
            Tear::Random(eighths) => rng.chance(eighths, 8),
            Tear::First(count) => unit < count,
            Tear::AllButFirst(count) => unit >= count,
        }
    }
}
