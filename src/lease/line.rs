//! Whose turn it is while nothing is free: by priority, then by arrival.

use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Those who wait, in order.
#[derive(Debug)]
pub struct Line<T> {
    waiting: BTreeMap<Place, T>,
    arrived: u64,
}

/// Where somebody stands in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    priority: Reverse<i32>,
    arrival: u64,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), arrived: 0 }
    }
}

impl<T> Line<T> {
    /// Puts somebody in line.
    pub fn join(&mut self, priority: i32, who: T) -> Place {
        self.arrived += 1;
        let place = Place { priority: Reverse(priority), arrival: self.arrived };
        self.waiting.insert(place, who);
        place
    }

    /// Takes somebody out of the line; `None` when their turn has come already.
    pub fn leave(&mut self, place: Place) -> Option<T> {
        self.waiting.remove(&place)
    }

    /// Returns who stands there, if they still do.
    pub fn get(&self, place: Place) -> Option<&T> {
        self.waiting.get(&place)
    }

    /// Returns those who wait, whose turn is first first.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &T)> {
        self.waiting.iter().map(|(place, who)| (*place, who))
    }

    /// Returns how many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Returns whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_comes_before_arrival() {
        let mut line = Line::default();
        line.join(0, "a");
        let b = line.join(5, "b");
        line.join(5, "c");
        line.join(-1, "d");
        let order =
            |line: &Line<&'static str>| line.iter().map(|(_, who)| *who).collect::<String>();
        assert_eq!(order(&line), "bcad");
        assert_eq!(line.leave(b), Some("b"));
        assert_eq!(line.leave(b), None);
        assert_eq!(order(&line), "cad");
        assert_eq!(line.len(), 3);
    }
}
