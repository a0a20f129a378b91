//! Random operations against `BTreeMap`.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::*;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

struct Run {
    seed: u64,
    rng: Rng,
    keys: Keys,
    model: Model,
    tree: Option<Tree>,
    storage: Arc<MemStorage>,
    pages: usize,
}

impl Run {
    fn new(seed: u64, pages: usize) -> Run {
        let mut rng = Rng::new(seed);
        let space = [50, 1000, 20_000][rng.below(3) as usize];
        let storage = image(64 << 20, 1 << 20);
        let tree = Some(Tree::open(storage.clone(), &quiet(pages)).unwrap());
        Run { seed, keys: Keys::new(seed, space), rng, model: Model::new(), tree, storage, pages }
    }

    fn tree(&self) -> &Tree {
        self.tree.as_ref().unwrap()
    }

    fn batch(&mut self) -> usize {
        let n = if self.rng.chance(1, 20) { self.rng.below(20) } else { self.rng.below(4) } as usize + 1;
        let deletes = if (self.rng.next_u64() / 7) % 2 == self.seed % 2 { 3 } else { 6 };
        let mut batch = Batch::new();
        for _ in 0..n {
            let key = if self.rng.chance(1, 3) { self.existing() } else { None };
            let key = key.unwrap_or_else(|| self.keys.next(&mut self.rng));
            if self.rng.chance(deletes, 10) {
                batch.delete(&key);
                self.model.remove(&key);
            } else {
                let value = value(&mut self.rng, &key);
                batch.put(&key, &value);
                self.model.insert(key, value);
            }
        }
        self.tree().apply(&batch).unwrap_or_else(|e| panic!("seed {}: {e}", self.seed));
        n
    }

    /// A key near a random one that is there.
    fn existing(&mut self) -> Option<Vec<u8>> {
        let at = self.keys.next(&mut self.rng);
        self.model.range(at..).next().or_else(|| self.model.iter().next()).map(|(k, _)| k.clone())
    }

    fn compare_gets(&mut self) {
        for _ in 0..5 {
            let key = self.keys.next(&mut self.rng);
            assert_eq!(self.tree().get(&key).unwrap(), self.model.get(&key).cloned(), "seed {}", self.seed);
        }
    }

    fn compare_scans(&mut self) {
        let from = self.keys.next(&mut self.rng);
        let n = self.rng.below(200) as usize;
        let mut cursor = self.tree().cursor();
        cursor.seek(&from).unwrap();
        for (k, v) in self.model.range(from.clone()..).take(n) {
            assert!(cursor.next().unwrap(), "seed {}: scan ends early", self.seed);
            assert_eq!((cursor.key(), cursor.value()), (&k[..], &v[..]), "seed {}", self.seed);
        }
        cursor.seek(&from).unwrap();
        let below = (Bound::Unbounded, Bound::Excluded(from));
        for (k, v) in self.model.range::<Vec<u8>, _>(below).rev().take(n) {
            assert!(cursor.prev().unwrap(), "seed {}: backward scan ends early", self.seed);
            assert_eq!((cursor.key(), cursor.value()), (&k[..], &v[..]), "seed {}", self.seed);
        }
    }

    fn compare_all(&mut self) {
        let report = self.tree().check().unwrap_or_else(|e| panic!("seed {}: {e}", self.seed));
        assert_eq!(report.records, self.model.len() as u64, "seed {}", self.seed);
        assert!(report.data.is_empty(), "seed {}: blocks are leaked: {:?}", self.seed, report.data);
        let mut cursor = self.tree().cursor();
        for (k, v) in &self.model {
            assert!(cursor.next().unwrap(), "seed {}: scan ends early", self.seed);
            assert_eq!((cursor.key(), cursor.value()), (&k[..], &v[..]), "seed {}", self.seed);
        }
        assert!(!cursor.next().unwrap(), "seed {}: scan goes on", self.seed);
    }

    fn reopen(&mut self, cleanly: bool) {
        let tree = self.tree.take().unwrap();
        if cleanly {
            tree.close().unwrap();
        } else {
            tree.commit_all().unwrap();
            drop(tree);
        }
        let tree = Tree::open(self.storage.clone(), &quiet(self.pages))
            .unwrap_or_else(|e| panic!("seed {}: {e}", self.seed));
        assert_eq!(tree.recovery().clean, cleanly);
        self.tree = Some(tree);
    }
}

fn run(seed: u64, pages: usize, operations: usize) {
    let mut run = Run::new(seed, pages);
    let mut done = 0;
    while done < operations {
        done += run.batch();
        match run.rng.below(400) {
            0 => run.compare_scans(),
            1 => run.compare_all(),
            2 => run.reopen(true),
            3 => run.reopen(false),
            4 => run.tree().checkpoint().unwrap(),
            _ => run.compare_gets(),
        }
    }
    run.compare_all();
    // Empty the tree again: merges down to the root.
    let keys: Vec<Vec<u8>> = run.model.keys().cloned().collect();
    for chunk in keys.chunks(7) {
        let mut batch = Batch::new();
        for key in chunk {
            batch.delete(key);
            run.model.remove(key);
        }
        run.tree().apply(&batch).unwrap();
    }
    run.compare_all();
    run.reopen(true);
    run.compare_all();
    let report = run.tree().check().unwrap();
    assert!(report.height <= 2, "seed {seed}: an empty tree is {} levels high", report.height);
}

/// Operations a run; `BTFS_OPERATIONS` makes a soak of it (28 runs, and about as many operations again to empty the trees).
fn operations() -> usize {
    std::env::var("BTFS_OPERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(6_000)
}

#[test]
fn every_record_is_found_again_with_a_pool_that_holds_all() {
    for seed in 0..14 {
        run(seed, 1000, operations());
    }
}

#[test]
fn every_record_is_found_again_with_a_tiny_pool() {
    for seed in 100..114 {
        run(seed, 40, operations());
    }
}

/// Deleting in the order of the keys empties leaf after leaf beside full ones. When merges looked to the right only, all of
/// them stayed.
#[test]
fn a_tree_that_is_emptied_in_order_gives_its_pages_back() {
    for descending in [false, true] {
        let storage = image(64 << 20, 1 << 20);
        let tree = Tree::open(storage, &quiet(1000)).unwrap();
        let mut keys: Vec<[u8; 8]> = (0..20_000u64).map(u64::to_be_bytes).collect();
        for chunk in keys.chunks(10) {
            let mut batch = Batch::new();
            chunk.iter().for_each(|key| batch.put(key, &[1; 100]));
            tree.apply(&batch).unwrap();
        }
        let leaves = tree.check().unwrap().leaves;
        if descending {
            keys.reverse();
        }
        for chunk in keys.chunks(10) {
            let mut batch = Batch::new();
            chunk.iter().for_each(|key| batch.delete(key));
            tree.apply(&batch).unwrap();
        }
        let report = tree.check().unwrap();
        assert!(leaves > 100 && report.leaves <= 2, "{} of {leaves} leaves are left", report.leaves);
    }
}
