//! The model: a filesystem in plain collections.

use std::collections::BTreeMap;

use atoll_core::commands::Outcome;
use atoll_core::error::FsError;
use atoll_core::ids::{InodeId, ROOT};
use rand::Rng;
use rand::rngs::StdRng;

#[derive(Clone, Debug, Default)]
pub struct Node {
    pub directory: bool,
    pub content: Vec<u8>,
    pub entries: BTreeMap<Vec<u8>, InodeId>,
    pub links: u32,
}

#[derive(Default)]
pub struct Model {
    pub nodes: BTreeMap<InodeId, Node>,
}

impl Model {
    pub fn new() -> Self {
        let mut model = Model::default();
        model.nodes.insert(ROOT, Node { directory: true, links: 1, ..Node::default() });
        model
    }

    pub fn below(&self, inner: InodeId, outer: InodeId) -> bool {
        inner == outer
            || self.nodes[&outer]
                .entries
                .values()
                .any(|ino| self.nodes.get(ino).is_some_and(|node| node.directory) && self.below(inner, *ino))
    }

    pub fn drop_link(&mut self, ino: InodeId) {
        let node = self.nodes.get_mut(&ino).unwrap();
        node.links -= 1;
        if node.links == 0 {
            self.nodes.remove(&ino);
        }
    }

    pub fn unlink(&mut self, parent: InodeId, name: &[u8], directory: bool) -> Result<(), FsError> {
        let ino = *self.nodes[&parent].entries.get(name).ok_or(FsError::NotFound)?;
        match (directory, self.nodes[&ino].directory) {
            (true, false) => return Err(FsError::NotDirectory),
            (false, true) => return Err(FsError::IsDirectory),
            (true, true) if !self.nodes[&ino].entries.is_empty() => return Err(FsError::NotEmpty),
            _ => {}
        }
        self.nodes.get_mut(&parent).unwrap().entries.remove(name);
        self.drop_link(ino);
        Ok(())
    }

    pub fn rename(
        &mut self,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        exchange: bool,
    ) -> Result<(), FsError> {
        let source = *self.nodes[&from.0].entries.get(from.1).ok_or(FsError::NotFound)?;
        let target = self.nodes[&to.0].entries.get(to.1).copied();
        if exchange {
            let target = target.ok_or(FsError::NotFound)?;
            if source == target {
                return Ok(());
            }
            if from.0 != to.0
                && ((self.nodes[&source].directory && self.below(to.0, source))
                    || (self.nodes[&target].directory && self.below(from.0, target)))
            {
                return Err(FsError::InvalidArgument);
            }
            self.nodes.get_mut(&from.0).unwrap().entries.insert(from.1.to_vec(), target);
            self.nodes.get_mut(&to.0).unwrap().entries.insert(to.1.to_vec(), source);
            return Ok(());
        }
        let directory = self.nodes[&source].directory;
        if directory && from.0 != to.0 && self.below(to.0, source) {
            return Err(FsError::InvalidArgument);
        }
        if let Some(target) = target {
            if target == source {
                return Ok(());
            }
            match (directory, self.nodes[&target].directory) {
                (true, false) => return Err(FsError::NotDirectory),
                (false, true) => return Err(FsError::IsDirectory),
                (true, true) if !self.nodes[&target].entries.is_empty() => return Err(FsError::NotEmpty),
                _ => {}
            }
            self.drop_link(target);
        }
        self.nodes.get_mut(&from.0).unwrap().entries.remove(from.1);
        self.nodes.get_mut(&to.0).unwrap().entries.insert(to.1.to_vec(), source);
        Ok(())
    }
}

pub fn pick<T: Copy>(rng: &mut StdRng, of: &[T]) -> T {
    of[rng.random_range(0..of.len())]
}

pub fn expect<T>(outcome: &Outcome, model: &Result<T, FsError>, what: &str) {
    match (outcome, model) {
        (Outcome::Refused(error), Err(wanted)) => assert_eq!(error, wanted, "{what}"),
        (Outcome::Refused(error), Ok(_)) => panic!("{what}: refused with {error}, the model allows it"),
        (outcome, Err(wanted)) => panic!("{what}: {outcome:?}, the model refuses with {wanted}"),
        _ => {}
    }
}
