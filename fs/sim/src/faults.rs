//! What goes wrong in a world, and when.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use crate::nodes::{client_name, metadata_name, some_time, storage_name};

/// Something that goes wrong, and is well again after a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A metadata server's power is cut, and comes back after a time.
    Member(usize, Duration),
    /// A storage server's.
    Storage(usize, Duration),
    /// The power of all servers.
    Everything(Duration),
    /// Nothing passes between the nodes of each pair for a time; an empty name is everybody.
    Cut(Vec<(String, String)>, Duration),
    /// A bit of a replica flips on a storage server's disk.
    Flip(usize),
}

impl Fault {
    /// One by chance.
    #[must_use]
    pub fn random(random: &mut StdRng, (members, storage, clients): (usize, usize, usize)) -> Fault {
        let member = random.random_range(0..members);
        let server = random.random_range(0..storage);
        let time = some_time(random, 0, 6000);
        match random.random_range(0..15) {
            0..=2 => Fault::Member(member, time),
            3..=5 => Fault::Storage(server, time),
            6 => Fault::Everything(time),
            7 => Fault::Cut(vec![(metadata_name(member), String::new())], time),
            8 => Fault::Cut(vec![(storage_name(server), String::new())], time),
            9 | 10 => {
                // Clients still reach it.
                let others = (0..members).filter(|other| *other != member);
                let cuts = others.map(|other| (metadata_name(member), metadata_name(other)));
                Fault::Cut(cuts.collect(), time + time)
            }
            11 => Fault::Flip(server),
            // Long enough for its replicas to be made anew elsewhere, if there were others.
            12 => Fault::Storage(server, some_time(random, 14_000, 25_000)),
            13 => {
                // One client with one member on this side, everybody else on the other.
                let client = random.random_range(0..clients);
                let (here, me) = (metadata_name(member), client_name(client));
                let others = (0..members).filter(|other| *other != member).map(metadata_name);
                let mut cuts = Vec::new();
                for other in others {
                    cuts.push((here.clone(), other.clone()));
                    cuts.push((me.clone(), other));
                }
                let strangers = (0..clients).filter(|other| *other != client).map(client_name);
                cuts.extend(strangers.map(|other| (here.clone(), other)));
                // Not for longer than its session lives since its last heartbeat.
                Fault::Cut(cuts, some_time(random, 1000, 2800))
            }
            _ => {
                let other = (member + 1 + random.random_range(0..members - 1)) % members;
                Fault::Cut(
                    vec![
                        (metadata_name(member), metadata_name(other)),
                        (metadata_name(member), storage_name(server)),
                    ],
                    time,
                )
            }
        }
    }
}
