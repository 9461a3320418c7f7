//! A table with unambiguous keys: the key of a removed entry never finds a later entry in its
//! place.
//!
//! The server stores keys in epoll, and an event may name an entry that an earlier event of the
//! same batch has removed.
//!
//! The crate `slotmap` has such keys too, but would replace little code: the limit, the value that
//! is returned at the limit, and the 24 bits of index (see `server/token.rs`) would still be here.
//! And PID 1 would get a dependency that uses unions and `unsafe`.

/// The key of one entry of a [`Slab`]: 24 bits of index, 32 bits of generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// A table of at most `limit` values.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    limit: u32,
}

impl<T> Slab<T> {
    /// Creates an empty table for at most `limit` values, which must be below 2^24.
    pub(crate) const fn new(limit: u32) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), limit }
    }

    /// Returns the number of values.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Stores `value`, or returns it if the table is full.
    pub(crate) fn insert(&mut self, value: T) -> Result<Key, T> {
        if let Some(index) = self.free.pop()
            && let Some(slot) = self.slots.get_mut(index as usize)
        {
            slot.value = Some(value);
            return Ok(Key { index, generation: slot.generation });
        }
        match u32::try_from(self.slots.len()) {
            Ok(index) if index < self.limit => {
                self.slots.push(Slot { generation: 0, value: Some(value) });
                Ok(Key { index, generation: 0 })
            }
            _ => Err(value),
        }
    }

    fn slot(&mut self, key: Key) -> Option<&mut Slot<T>> {
        self.slots.get_mut(key.index as usize).filter(|slot| slot.generation == key.generation)
    }

    /// Returns the value of `key`, if it still exists.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.slot(key)?.value.as_mut()
    }

    /// Removes and returns the value of `key`.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slot(key)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(value)
    }

    /// Returns all values with their keys.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        (0u32..).zip(&mut self.slots).filter_map(|(index, slot)| {
            let key = Key { index, generation: slot.generation };
            slot.value.as_mut().map(|value| (key, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Slab;

    #[test]
    fn a_stale_key_finds_nothing() {
        let mut slab = Slab::new(2);
        let first = slab.insert('a').unwrap();
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b').unwrap();
        assert_eq!(second.index, first.index);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut 'b'));
    }

    #[test]
    fn a_full_slab_gives_the_value_back() {
        let mut slab = Slab::new(1);
        let key = slab.insert(1).unwrap();
        assert_eq!(slab.len(), 1);
        assert_eq!(slab.insert(2), Err(2));
        slab.remove(key);
        assert_eq!(slab.len(), 0);
        assert!(slab.insert(3).is_ok());
    }
}
