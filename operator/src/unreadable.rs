//! Objects that the API server has and that this version can't read: a newer version wrote them, or a hand. Each is known by
//! its name alone. It stops no other object's cluster, and its own cluster is left as it is until it can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

use kube::core::{DeserializeGuard, error_boundary::InvalidObject};
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};
use parking_lot::Mutex;

use crate::caches::Wake;

/// Characters of an error that are passed on.
const ERROR_CHARS_MAX: usize = 300;
/// The kind whose errors aren't passed on: they may quote what was found.
const SECRET: &str = "Secret";

/// Which object it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its kind.
    pub kind: String,
    /// Its namespace, if it is in one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// An object that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which.
    pub place: Place,
    /// Why.
    pub error: String,
    /// The cluster that it belongs to.
    pub cluster: Option<Wake>,
}

impl Fault {
    /// What the API server has, and why it can't be read. `of` says which cluster it belongs to, by its metadata.
    pub fn new<K>(invalid: &InvalidObject, of: impl FnOnce(&DeserializeGuard<K>) -> Option<Wake>) -> Fault
    where
        K: Resource<DynamicType = ()>,
    {
        let guard = DeserializeGuard::<K>(Err(invalid.clone()));
        let kind = K::kind(&()).into_owned();
        let error = if kind == SECRET {
            "its content is malformed".to_owned()
        } else {
            invalid.error.chars().take(ERROR_CHARS_MAX).collect()
        };
        let place = Place { kind, namespace: guard.namespace(), name: guard.name_any() };
        Fault { place, error, cluster: of(&guard) }
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.place.kind, self.place.name, self.error)
    }
}

/// Those that the watches have found.
#[derive(Clone, Debug, Default)]
pub struct Unreadable(Arc<Mutex<BTreeMap<Place, Fault>>>);

impl Unreadable {
    /// Those of one cluster.
    pub fn of(&self, cluster: &Wake) -> Vec<Fault> {
        let is_its = |fault: &&Fault| fault.cluster.as_ref() == Some(cluster);
        self.0.lock().values().filter(is_its).cloned().collect()
    }

    /// Those of one kind.
    pub fn of_kind(&self, kind: &str) -> Vec<Fault> {
        self.0.lock().values().filter(|fault| fault.place.kind == kind).cloned().collect()
    }

    /// How many there are of each kind.
    pub fn counts(&self) -> BTreeMap<String, i64> {
        let mut counts = BTreeMap::new();
        for place in self.0.lock().keys() {
            *counts.entry(place.kind.clone()).or_default() += 1;
        }
        counts
    }

    /// Remembers it. Whether that is news.
    fn insert(&self, fault: Fault) -> bool {
        self.0.lock().insert(fault.place.clone(), fault.clone()) != Some(fault)
    }

    fn remove(&self, place: &Place) {
        self.0.lock().remove(place);
    }

    fn retain(&self, kind: &str, listed: &BTreeSet<Place>) {
        self.0.lock().retain(|place, _| place.kind != kind || listed.contains(place));
    }
}

/// What a watch of one kind brings, with what can't be read taken out of it.
pub struct Sieve<K> {
    unreadable: Unreadable,
    /// Those of the list that is being read.
    listed: BTreeSet<Place>,
    kind: std::marker::PhantomData<fn() -> K>,
}

/// What an event of a watch is.
#[derive(Debug)]
pub enum Sieved<K> {
    /// One like any other.
    Event(Event<K>),
    /// An object that can't be read. Whoever knew it forgets it.
    Unreadable {
        /// It.
        fault: Box<Fault>,
        /// It wasn't known, or not with this error.
        is_news: bool,
        /// It was changed, and not just listed.
        changed: bool,
    },
}

impl<K: Resource<DynamicType = ()>> Sieve<K> {
    /// One that remembers there what it takes out.
    pub fn new(unreadable: Unreadable) -> Sieve<K> {
        Sieve { unreadable, listed: BTreeSet::new(), kind: std::marker::PhantomData }
    }

    /// Takes an event apart.
    pub fn sift(
        &mut self,
        event: Event<DeserializeGuard<K>>,
        of: impl FnOnce(&DeserializeGuard<K>) -> Option<Wake>,
    ) -> Sieved<K> {
        let (guard, changed) = match event {
            Event::Init => {
                self.listed.clear();
                return Sieved::Event(Event::Init);
            }
            Event::InitDone => {
                self.unreadable.retain(&K::kind(&()), &self.listed);
                return Sieved::Event(Event::InitDone);
            }
            Event::Delete(guard) => {
                self.unreadable.remove(&place(&guard));
                return match guard.0 {
                    Ok(object) => Sieved::Event(Event::Delete(object)),
                    // It is gone, and was forgotten when it couldn't be read any more.
                    Err(invalid) => {
                        let fault = Box::new(Fault::new(&invalid, of));
                        Sieved::Unreadable { fault, is_news: false, changed: true }
                    }
                };
            }
            Event::InitApply(guard) => (guard, false),
            Event::Apply(guard) => (guard, true),
        };
        match guard.0 {
            Ok(object) => {
                if changed {
                    self.unreadable.remove(&place(&object));
                    return Sieved::Event(Event::Apply(object));
                }
                Sieved::Event(Event::InitApply(object))
            }
            Err(invalid) => {
                let fault = Fault::new(&invalid, of);
                self.listed.insert(fault.place.clone());
                let is_news = self.unreadable.insert(fault.clone());
                Sieved::Unreadable { fault: Box::new(fault), is_news, changed }
            }
        }
    }
}

fn place<K: Resource<DynamicType = ()>>(object: &K) -> Place {
    Place { kind: K::kind(&()).into_owned(), namespace: object.namespace(), name: object.name_any() }
}

#[cfg(test)]
mod tests {
    use atoll_crds::names::labels;
    use k8s_openapi::api::core::v1::{Pod, Secret};
    use kube::runtime::reflector::ObjectRef;
    use serde_json::{Value, json};

    use super::*;
    use crate::caches::owner_of;

    fn pod(name: &str, spec: Value) -> DeserializeGuard<Pod> {
        let metadata = json!({ "name": name, "namespace": "ns", "labels": { labels::CLUSTER: "db" } });
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).expect("a guard takes anything")
    }

    fn good(name: &str) -> DeserializeGuard<Pod> {
        pod(name, json!({ "containers": [] }))
    }

    fn bad(name: &str) -> DeserializeGuard<Pod> {
        pod(name, json!({ "containers": "none" }))
    }

    /// What of each event goes on, and what was found unreadable.
    fn sift(sieve: &mut Sieve<Pod>, event: Event<DeserializeGuard<Pod>>) -> String {
        match sieve.sift(event, owner_of) {
            Sieved::Event(Event::Init) => "init".to_owned(),
            Sieved::Event(Event::InitDone) => "done".to_owned(),
            Sieved::Event(Event::InitApply(pod)) => format!("listed {}", pod.name_any()),
            Sieved::Event(Event::Apply(pod)) => format!("changed {}", pod.name_any()),
            Sieved::Event(Event::Delete(pod)) => format!("deleted {}", pod.name_any()),
            Sieved::Unreadable { fault, is_news, changed } => {
                format!("unreadable {} {is_news} {changed}", fault.place.name)
            }
        }
    }

    #[test]
    fn one_bad_object_is_named_and_keeps_no_other_from_being_seen() {
        let unreadable = Unreadable::default();
        let mut sieve = Sieve::new(unreadable.clone());
        let cluster: Wake = ObjectRef::new("db").within("ns");
        let names =
            || -> Vec<String> { unreadable.of(&cluster).into_iter().map(|fault| fault.place.name).collect() };
        assert_eq!(sift(&mut sieve, Event::Init), "init");
        assert_eq!(sift(&mut sieve, Event::InitApply(bad("a"))), "unreadable a true false");
        assert_eq!(sift(&mut sieve, Event::InitApply(good("b"))), "listed b");
        assert_eq!(sift(&mut sieve, Event::InitDone), "done");
        assert_eq!(names(), ["a"]);
        let text = unreadable.of(&cluster)[0].to_string();
        assert!(text.starts_with("Pod a (Invalid type"), "{text}");
        assert_eq!(unreadable.counts(), [("Pod".to_owned(), 1)].into());
        assert_eq!(unreadable.of(&ObjectRef::new("other").within("ns")), []);
        // The same again is no news; another one is.
        assert_eq!(sift(&mut sieve, Event::Apply(bad("a"))), "unreadable a false true");
        assert_eq!(sift(&mut sieve, Event::Apply(bad("b"))), "unreadable b true true");
        assert_eq!(names(), ["a", "b"]);
        // It was mended.
        assert_eq!(sift(&mut sieve, Event::Apply(good("a"))), "changed a");
        assert_eq!(names(), ["b"]);
        assert_eq!(sift(&mut sieve, Event::Delete(bad("b"))), "unreadable b false true");
        assert_eq!(names(), Vec::<String>::new());
    }

    #[test]
    fn what_a_new_list_no_longer_has_is_forgotten() {
        let unreadable = Unreadable::default();
        let mut sieve = Sieve::new(unreadable.clone());
        for name in ["a", "b"] {
            sift(&mut sieve, Event::Apply(bad(name)));
        }
        sift(&mut sieve, Event::Init);
        sift(&mut sieve, Event::InitApply(bad("b")));
        assert_eq!(unreadable.of_kind("Pod").len(), 2);
        sift(&mut sieve, Event::InitDone);
        let left: Vec<String> = unreadable.of_kind("Pod").into_iter().map(|fault| fault.place.name).collect();
        assert_eq!(left, ["b"]);
    }

    #[test]
    fn nothing_of_a_secret_is_quoted() {
        let secret = json!({ "metadata": { "name": "k" }, "data": { "key": 12345 } });
        let guard: DeserializeGuard<Secret> = serde_json::from_value(secret).expect("guard");
        let invalid = guard.0.expect_err("its data is no map of texts");
        let fault = Fault::new::<Secret>(&invalid, |_| None);
        assert!(!fault.to_string().contains("12345"), "{fault}");
    }
}
