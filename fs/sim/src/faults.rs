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
    /// A storage server's disk is full for a time, as others see it; `None`: all disks are.
    Full(Option<usize>, Duration),
    /// A metadata server's power is cut, and it comes back after a time with an empty disk, to take the place of who it was.
    NewDisk(usize, Duration),
}

impl Fault {
    /// One by chance.
    #[must_use]
    pub fn random(random: &mut StdRng, (members, storage, clients): (usize, usize, usize)) -> Fault {
        let member = random.random_range(0..members);
        let server = random.random_range(0..storage);
        let time = some_time(random, 0, 6000);
        match random.random_range(0..20) {
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
            13 | 18 => {
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
                // Long enough for another leader; now and then for longer than its session lives.
                Fault::Cut(cuts, some_time(random, 2500, 8000))
            }
            14 => {
                let client = random.random_range(0..clients);
                Fault::Cut(vec![(client_name(client), String::new())], some_time(random, 2000, 20_000))
            }
            15 => Fault::Full(Some(server), time),
            // Not for so long that what was promised is given up.
            16 => Fault::Full(None, some_time(random, 500, 6000)),
            17 => Fault::NewDisk(member, time),
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
