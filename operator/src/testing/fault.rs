//! Faults between the operator and whoever it speaks to: at the n-th change or question, and nowhere else. Or the operator is killed
//! at some of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Looks that what is late takes: the operator has tried again by then, and has seen what came of it.
const LATE_LOOKS: u8 = 2;

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is refused with this code, and not carried out.
    Refuse(u16),
    /// It is carried out, and the answer is lost.
    LoseAnswer,
    /// It is carried out, and the operator ends before it hears of it.
    Crash,
    /// The operator ends before it is carried out.
    Kill,
    /// The operator hears that it failed, and it is carried out after the operator has gone on.
    Late,
}

/// Which request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The n-th change, from 0.
    Write(usize),
    /// The n-th question, from 0.
    Read(usize),
}

/// What became of a request.
pub enum Outcome<T> {
    /// It was carried out.
    Done(T),
    /// It fails with this code.
    Refused(u16),
}

/// A request that is under way.
type Late = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Inside {
    fault: Option<(At, Fault)>,
    writes: usize,
    reads: usize,
    /// At which of all requests, changes and questions, the operator is killed, and whether that one is carried out.
    kills: BTreeMap<usize, bool>,
    /// What is late, with how many looks it still takes.
    late: Vec<(u8, Late)>,
}

impl Inside {
    /// What happens to the request that was counted last.
    fn fault_at(&mut self, at: At) -> Option<Fault> {
        let number = self.writes + self.reads - 1;
        match self.kills.remove(&number) {
            Some(true) => Some(Fault::Crash),
            Some(false) => Some(Fault::Kill),
            None => self.fault.filter(|(of, _)| *of == at).map(|(_, fault)| fault),
        }
    }
}

/// Where all requests come through.
#[derive(Clone, Default)]
pub struct Door {
    inside: Arc<Mutex<Inside>>,
    crashed: Arc<Notify>,
}

impl Door {
    /// One fault, from now on.
    pub fn set(&self, fault: Option<(At, Fault)>) {
        self.inside.lock().fault = fault;
    }

    /// Kills, each once, at the n-th of all requests: before it is carried out, or (`true`) after it.
    pub fn kill_at(&self, kills: BTreeMap<usize, bool>) {
        self.inside.lock().kills = kills;
    }

    /// Kills that are still to come.
    pub fn kills_left(&self) -> usize {
        self.inside.lock().kills.len()
    }

    /// Changes and questions so far.
    pub fn counts(&self) -> (usize, usize) {
        let inside = self.inside.lock();
        (inside.writes, inside.reads)
    }

    /// Returns when the operator has to end.
    pub async fn crashed(&self) {
        self.crashed.notified().await;
    }

    /// After a look: carries out what is late enough. Whether there is or was anything.
    pub fn deliver(&self) -> bool {
        let late = std::mem::take(&mut self.inside.lock().late);
        let any = !late.is_empty();
        for (looks, act) in late {
            match looks.checked_sub(1) {
                Some(left) => self.inside.lock().late.push((left, act)),
                None => act(),
            }
        }
        any
    }

    /// A change.
    pub async fn write<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
        let fault = {
            let mut inside = self.inside.lock();
            inside.writes += 1;
            let now = At::Write(inside.writes - 1);
            inside.fault_at(now)
        };
        self.pass(fault, act).await
    }

    /// A question.
    pub async fn read<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
        let fault = {
            let mut inside = self.inside.lock();
            inside.reads += 1;
            let now = At::Read(inside.reads - 1);
            inside.fault_at(now)
        };
        self.pass(fault, act).await
    }

    async fn pass<T: Send + 'static>(
        &self,
        fault: Option<Fault>,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> Outcome<T> {
        match fault {
            None => Outcome::Done(act()),
            Some(Fault::Refuse(code)) => Outcome::Refused(code),
            Some(Fault::LoseAnswer) => {
                act();
                Outcome::Refused(504)
            }
            Some(fault @ (Fault::Crash | Fault::Kill)) => {
                if fault == Fault::Crash {
                    act();
                }
                self.crashed.notify_one();
                std::future::pending().await
            }
            Some(Fault::Late) => {
                let act = Box::new(move || drop(act()));
                self.inside.lock().late.push((LATE_LOOKS, act));
                Outcome::Refused(504)
            }
        }
    }
}
