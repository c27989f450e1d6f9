//! Whether clients get anything done, and stay within their memory. One that doesn't is ended, and succeeded as any that dies: no
//! call fails.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::super::packet::PacketSocket;
use super::super::protocol::ClientState;
use super::process::end_at_once;
use super::{Process, Role, Shared};
use crate::budget::{self, Use};

/// Questions within the time in which a client has to answer one.
const QUESTIONS: u32 = 6;

/// When each client answered last, by its process.
#[derive(Debug, Default)]
struct Pulses(HashMap<(String, u32), Instant>);

impl Pulses {
    /// Takes in the answers of a round, of those that were asked, and says who has not answered for too long. One that is
    /// asked for the first time has answered.
    fn take(
        &mut self,
        now: Instant,
        timeout: Duration,
        asked: &[((String, u32), bool)],
    ) -> Vec<(String, u32)> {
        self.0.retain(|client, _| asked.iter().any(|(one, _)| one == client));
        for (client, has_answered) in asked {
            let last = self.0.entry(client.clone()).or_insert(now);
            if *has_answered {
                *last = now;
            }
        }
        let is_late = |last: &Instant| now.duration_since(*last) >= timeout;
        self.0.iter().filter(|(_, last)| is_late(last)).map(|(client, _)| client.clone()).collect()
    }
}

/// Asks the clients again and again, in a thread of its own.
pub fn start(shared: &Arc<Shared>) -> io::Result<()> {
    let asking = Arc::downgrade(shared);
    std::thread::Builder::new().name("pulse".to_owned()).spawn(move || run(&asking))?;
    Ok(())
}

fn run(shared: &Weak<Shared>) {
    let mut pulses = Pulses::default();
    let mut slept = Instant::now();
    while let Some(shared) = shared.upgrade() {
        let timeout = shared.config.client_timeout;
        let period = timeout / QUESTIONS;
        let asked = shared.ask(period / 2);
        let now = Instant::now();
        // A machine that was suspended, or has no time for this process, has none for clients either.
        if now.duration_since(slept) > period * 2 {
            pulses = Pulses::default();
        }
        for (volume, pid) in pulses.take(now, timeout, &asked) {
            shared.end_wedged(&volume, pid);
        }
        shared.end_oversized();
        drop(shared);
        slept = Instant::now();
        std::thread::sleep(period);
    }
}

impl Shared {
    /// Asks all clients that serve, and waits for their answers for a while.
    fn ask(&self, limit: Duration) -> Vec<((String, u32), bool)> {
        let _talking = self.talking.lock();
        let serving: Vec<((String, u32), Arc<PacketSocket>)> = {
            let table = self.table.lock();
            if table.stopping || table.role != Role::Leading {
                return Vec::new();
            }
            let serving = table.clients.iter().filter_map(|(volume, entry)| match entry.process {
                Process::Running(pid) if entry.state == ClientState::Serving && entry.kept.is_some() => {
                    Some(((volume.clone(), pid), entry.control.clone()?))
                }
                _ => None,
            });
            serving.collect()
        };
        for (_, control) in &serving {
            let _ = control.send_bytes_at_once(b"ping");
        }
        let deadline = Instant::now() + limit;
        let answer =
            |control: &PacketSocket| control.receive_bytes(deadline).is_ok_and(|said| !said.is_empty());
        serving.into_iter().map(|(client, control)| (client, answer(&control))).collect()
    }

    /// Ends the client that takes most when all together take more than there is, before the kernel ends all of the node's.
    fn end_oversized(&self) {
        let table = self.table.lock();
        if table.role != Role::Leading {
            return;
        }
        let mut clients = Vec::new();
        for (volume, entry) in &table.clients {
            let (Process::Running(pid), ClientState::Serving) = (entry.process, entry.state) else {
                continue;
            };
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let Some(own) = budget::own_bytes(&status) else { continue };
            clients.push(Use { client: (volume, pid), budget: entry.budget, own });
        }
        if let Some((volume, pid)) = budget::oversized(self.config.memory, &clients) {
            tracing::error!(
                volume,
                pid,
                "the clients of this node take more memory than there is, and this one most; ending it for another one to continue"
            );
            self.oversized.inc();
            end_at_once(pid);
        }
    }

    fn end_wedged(&self, volume: &str, pid: u32) {
        let table = self.table.lock();
        if table.clients.get(volume).is_some_and(|entry| entry.process == Process::Running(pid)) {
            let seconds = self.config.client_timeout.as_secs();
            tracing::error!(
                volume,
                pid,
                seconds,
                "the client gets nothing done; ending it for another one to continue"
            );
            end_at_once(pid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_ended_after_it_has_not_answered_for_long() {
        let timeout = Duration::from_secs(60);
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let client = |volume: &str, pid| (volume.to_owned(), pid);
        let mut pulses = Pulses::default();
        let mut look = |seconds, asked: &[((String, u32), bool)]| pulses.take(at(seconds), timeout, asked);
        assert!(look(0, &[(client("a", 1), false), (client("b", 2), true)]).is_empty(), "it has just begun");
        assert!(look(50, &[(client("a", 1), false), (client("b", 2), true)]).is_empty());
        assert_eq!(look(60, &[(client("a", 1), false), (client("b", 2), false)]), [client("a", 1)]);
        assert!(look(70, &[(client("a", 9), false), (client("b", 2), false)]).is_empty(), "another one");
        assert!(look(80, &[(client("a", 9), true)]).is_empty());
        assert!(look(139, &[(client("a", 9), false)]).is_empty());
        assert_eq!(look(140, &[(client("a", 9), false)]), [client("a", 9)]);
    }
}
