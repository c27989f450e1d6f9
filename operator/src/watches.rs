//! Several watches of one kind, one a namespace, as if they were one. Pure.
//!
//! A cache replaces all that it has with each list. So the lists of all namespaces come as one, whenever one of them was read
//! anew, and the first only when all were.

use std::collections::BTreeMap;

use kube::ResourceExt;
use kube::runtime::watcher::Event;

/// What the watches have brought.
pub struct Merged<K> {
    parts: Vec<Part<K>>,
}

struct Part<K> {
    /// By name.
    objects: BTreeMap<String, K>,
    /// The list that is being read.
    listing: BTreeMap<String, K>,
    /// A list was read to its end.
    is_listed: bool,
}

impl<K: Clone + ResourceExt> Merged<K> {
    /// Of so many watches.
    pub fn new(count: usize) -> Merged<K> {
        let part = || Part { objects: BTreeMap::new(), listing: BTreeMap::new(), is_listed: false };
        Merged { parts: (0..count).map(|_| part()).collect() }
    }

    /// What an event of one of them is to whoever sees one watch. A single one costs no memory.
    pub fn take(&mut self, part: usize, event: Event<K>) -> Vec<Event<K>> {
        if self.parts.len() == 1 {
            return vec![event];
        }
        let was_listed = self.parts.iter().all(|part| part.is_listed);
        let Some(part) = self.parts.get_mut(part) else { return Vec::new() };
        match event {
            Event::Init => part.listing.clear(),
            Event::InitApply(object) => {
                part.listing.insert(object.name_any(), object);
            }
            Event::InitDone => {
                part.objects = std::mem::take(&mut part.listing);
                part.is_listed = true;
                if self.parts.iter().all(|part| part.is_listed) {
                    return self.everything();
                }
            }
            Event::Apply(object) => {
                part.objects.insert(object.name_any(), object.clone());
                return was_listed.then_some(Event::Apply(object)).into_iter().collect();
            }
            Event::Delete(object) => {
                part.objects.remove(&object.name_any());
                return was_listed.then_some(Event::Delete(object)).into_iter().collect();
            }
        }
        Vec::new()
    }

    fn everything(&self) -> Vec<Event<K>> {
        let all = self.parts.iter().flat_map(|part| part.objects.values().cloned());
        let listed = std::iter::once(Event::Init).chain(all.map(Event::InitApply));
        listed.chain(std::iter::once(Event::InitDone)).collect()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;
    use crate::testing::pod;

    fn brief(events: Vec<Event<Pod>>) -> Vec<String> {
        let brief = |event: Event<Pod>| match event {
            Event::Init => "[".to_owned(),
            Event::InitDone => "]".to_owned(),
            Event::InitApply(object) => object.name_any(),
            Event::Apply(object) => format!("+{}", object.name_any()),
            Event::Delete(object) => format!("-{}", object.name_any()),
        };
        events.into_iter().map(brief).collect()
    }

    fn list(merged: &mut Merged<Pod>, part: usize, names: &[&str]) -> Vec<String> {
        let mut events = merged.take(part, Event::Init);
        for name in names {
            events.extend(merged.take(part, Event::InitApply(pod(name))));
        }
        events.extend(merged.take(part, Event::InitDone));
        brief(events)
    }

    #[test]
    fn nothing_is_known_until_all_namespaces_were_listed_and_then_everything_is() {
        let mut merged = Merged::new(2);
        assert_eq!(list(&mut merged, 0, &["a", "b"]), Vec::<String>::new());
        // What changes meanwhile is in the list.
        assert!(merged.take(0, Event::Apply(pod("c"))).is_empty());
        assert!(merged.take(0, Event::Delete(pod("a"))).is_empty());
        assert_eq!(list(&mut merged, 1, &["x"]), ["[", "b", "c", "x", "]"]);
        assert_eq!(brief(merged.take(1, Event::Apply(pod("y")))), ["+y"]);
        assert_eq!(brief(merged.take(0, Event::Delete(pod("b")))), ["-b"]);
    }

    #[test]
    fn one_namespace_that_is_listed_again_takes_nothing_from_the_others() {
        let mut merged = Merged::new(2);
        list(&mut merged, 0, &["a", "b"]);
        list(&mut merged, 1, &["x"]);
        // Whatever was deleted unseen is gone.
        assert_eq!(list(&mut merged, 0, &["b"]), ["[", "b", "x", "]"]);
        assert_eq!(list(&mut merged, 1, &[]), ["[", "b", "]"]);
    }

    #[test]
    fn a_single_watch_is_itself() {
        let mut merged = Merged::new(1);
        assert_eq!(list(&mut merged, 0, &["a"]), ["[", "a", "]"]);
        assert_eq!(brief(merged.take(0, Event::Delete(pod("a")))), ["-a"]);
        assert!(merged.parts[0].objects.is_empty());
    }
}
