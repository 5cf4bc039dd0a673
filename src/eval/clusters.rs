//! Which prompts are alike, by a model's hidden states.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Directions of states: their common part is taken away, because all states of a model share a large one.
/// The dot product of two directions is the cosine of their angle.
fn directions(states: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let width = states.first().map_or(0, Vec::len);
    let mut mean = vec![0.0f64; width];
    for state in states {
        mean.iter_mut().zip(state).for_each(|(m, x)| *m += f64::from(*x) / states.len() as f64);
    }
    let direction = |state: &Vec<f32>| {
        let apart: Vec<f64> = state.iter().zip(&mean).map(|(x, m)| f64::from(*x) - m).collect();
        let length = apart.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
        apart.iter().map(|x| (x / length) as f32).collect()
    };
    states.iter().map(direction).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// For each state the indices of the `count` states nearest to it by cosine, itself first.
pub fn nearest(states: &[Vec<f32>], count: usize) -> Vec<Vec<usize>> {
    let directions = directions(states);
    let near = |i: usize| {
        let similar: Vec<f32> = directions.iter().map(|other| cosine(&directions[i], other)).collect();
        let mut order: Vec<usize> = (0..states.len()).collect();
        order.sort_by(|&a, &b| (b == i).cmp(&(a == i)).then(similar[b].total_cmp(&similar[a])));
        order.truncate(count);
        order
    };
    (0..states.len()).map(near).collect()
}

/// Rounds of k-means; it usually settles in fewer.
const ROUNDS: usize = 50;
/// Starts of k-means, of which the best result is taken.
const STARTS: usize = 10;

/// Divides states into at most `count` clusters by cosine, with k-means from the seeds of k-means++ (Arthur
/// and Vassilvitskii, 2007). Returns each state's cluster, from 0; clusters that lost all states are left
/// out.
pub fn clusters(states: &[Vec<f32>], count: usize, seed: u32) -> Vec<usize> {
    let points = directions(states);
    if points.is_empty() {
        return Vec::new();
    }
    let mut rng = ChaCha8Rng::seed_from_u64(u64::from(seed));
    let starts = (0..STARTS).map(|_| k_means(&points, seeds(&points, count, &mut rng)));
    let best = starts.max_by(|a, b| a.1.total_cmp(&b.1)).map_or(Vec::new(), |(of_point, _)| of_point);
    let mut used = best.clone();
    used.sort_unstable();
    used.dedup();
    best.iter().map(|cluster| used.partition_point(|other| other < cluster)).collect()
}

/// The first centres, by k-means++: each is a point, with a chance in proportion to its distance from those
/// before.
fn seeds(points: &[Vec<f32>], count: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<f32>> {
    let mut centres = vec![points[rng.random_range(0..points.len())].clone()];
    let mut far: Vec<f32> = points.iter().map(|_| f32::INFINITY).collect();
    while centres.len() < count.min(points.len()) {
        let last = &centres[centres.len() - 1];
        far.iter_mut().zip(points).for_each(|(far, p)| *far = far.min((1.0 - cosine(p, last)).max(0.0)));
        let total: f64 = far.iter().map(|far| f64::from(*far)).sum();
        let mut left = rng.random_range(0.0..1.0) * total;
        let next = far.iter().position(|far| {
            left -= f64::from(*far);
            *far > 0.0 && left <= 0.0
        });
        // All points are in the places of centres.
        let Some(next) = next else { break };
        centres.push(points[next].clone());
    }
    centres
}

/// Each point's cluster, and the sum of the cosines to their centres.
fn k_means(points: &[Vec<f32>], mut centres: Vec<Vec<f32>>) -> (Vec<usize>, f64) {
    let closest = |centres: &[Vec<f32>], point: &Vec<f32>| {
        let similar = |c: &usize| cosine(&centres[*c], point);
        (0..centres.len()).max_by(|a, b| similar(a).total_cmp(&similar(b)).then(b.cmp(a))).unwrap_or(0)
    };
    let mut of_point: Vec<usize> = points.iter().map(|point| closest(&centres, point)).collect();
    for _ in 0..ROUNDS {
        for (cluster, centre) in centres.iter_mut().enumerate() {
            let members = || points.iter().zip(&of_point).filter(|(_, own)| **own == cluster);
            if members().next().is_some() {
                centre.fill(0.0);
                members().for_each(|(p, _)| centre.iter_mut().zip(p).for_each(|(c, x)| *c += x));
                let length = cosine(centre, centre).sqrt().max(1e-12);
                centre.iter_mut().for_each(|c| *c /= length);
            }
        }
        let next: Vec<usize> = points.iter().map(|point| closest(&centres, point)).collect();
        if next == of_point {
            break;
        }
        of_point = next;
    }
    let similar = points.iter().zip(&of_point).map(|(point, own)| f64::from(cosine(&centres[*own], point)));
    let sum = similar.sum();
    (of_point, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three bundles of 40, 8 and 4 states, all far from the origin.
    fn states() -> Vec<Vec<f32>> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let bundles = [40, 8, 4].into_iter().enumerate();
        let kinds = bundles.flat_map(|(kind, count)| std::iter::repeat_n(kind, count));
        let state = |kind: usize| -> Vec<f32> {
            (0..6)
                .map(|i| 20.0 + if i == kind { 5.0 } else { 0.0 } + rng.random_range(-0.5f32..0.5))
                .collect()
        };
        kinds.map(state).collect()
    }

    #[test]
    fn bundles_become_clusters() {
        let states = states();
        for seed in 0..5 {
            let found = clusters(&states, 3, seed);
            let parts = [&found[..40], &found[40..48], &found[48..]];
            assert!(parts.iter().all(|part| part.iter().all(|c| c == &part[0])), "{found:?}");
            let mut names = parts.map(|part| part[0]);
            names.sort_unstable();
            assert_eq!(names, [0, 1, 2]);
        }
        assert_eq!(clusters(&vec![vec![1.0, 2.0]; 5], 3, 1), [0; 5]);
        assert_eq!(clusters(&states[..2], 9, 1).len(), 2);
        assert!(clusters(&[], 3, 1).is_empty());
    }

    #[test]
    fn the_nearest_are_of_the_same_bundle() {
        let near = nearest(&states(), 4);
        assert!(near.iter().enumerate().all(|(i, near)| near[0] == i && near.len() == 4));
        assert!(near[48..].iter().flatten().all(|&j| j >= 48), "{:?}", &near[48..]);
        assert!(near[40..48].iter().flatten().all(|j| (40..48).contains(j)), "{:?}", &near[40..48]);
    }
}
