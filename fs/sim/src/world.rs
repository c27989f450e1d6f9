//! A world: a cluster, its clients, what goes wrong, and what has to hold all the same.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use atoll_core::store::Read;
use atoll_proto::transport::simulate_network;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::client::{self, Event, SimClient};
use crate::faults::Fault;
use crate::invariants;
use crate::network::Network;
use crate::nodes::{self, Member, Mount, StorageNode, client_name, some_time};
use crate::seam;

/// Metadata servers.
pub const MEMBERS: usize = 3;
/// Storage servers.
pub const STORAGE: usize = 3;
/// Clients.
pub const CLIENTS: usize = 3;
/// Operations of one client.
pub const OPERATIONS: usize = 67;
/// Faults.
pub const FAULTS: usize = 3;
/// Within this time everything has to be over; only a world in which something hangs takes longer.
const TIMEOUT: Duration = Duration::from_secs(1800);
/// When everything works again, there is nothing left to be done after this time.
const REST_TIMEOUT: Duration = Duration::from_secs(120);
/// Within this time everybody knows how much room there is.
const HEARD_WITHIN: Duration = Duration::from_secs(5);
/// One world in so many waits in the end for what takes long.
const PATIENT_ONE_IN: u64 = 8;
/// One world in so many has a volume for one mount.
const EXCLUSIVE_ONE_IN: u64 = 4;
/// How long a piece of work of a disk takes.
const DISK_MICROSECONDS: (u64, u64) = (20, 1500);

/// What a world did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How long it was, in its own time.
    pub time: Duration,
    /// What went wrong in it, in order.
    pub faults: Vec<String>,
    /// Operations in the shared folder.
    pub shared_operations: usize,
    /// Extents that were read from a replica in the end.
    pub extents: usize,
    /// A number that differs if anything differed.
    pub fingerprint: u64,
}

/// Runs the world of a seed, on a thread of its own.
///
/// # Errors
/// What does not hold.
pub fn run(seed: u64) -> Result<Report, String> {
    // Only small files that are always durable. Its name must not come out of the world's chance: other worlds, which would
    // draw the same, may be there at the same time.
    let folder = tempfile::Builder::new().prefix("atoll-sim-").tempdir_in(temporary_folder());
    let folder = folder.map_err(|error| format!("no temporary folder: {error}"))?;
    let thread =
        std::thread::Builder::new().name(format!("world-{seed}")).stack_size(8 << 20).spawn(move || {
            seam::enter(seed);
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            let runtime = runtime.map_err(|error| error.to_string())?;
            let network = Network::new(seed);
            simulate_network(Some(network.clone()));
            let disk_time = RefCell::new(StdRng::seed_from_u64(seed ^ 0xd15c));
            let simulated = atoll_blocking::simulate(move || {
                let (from, to) = DISK_MICROSECONDS;
                Duration::from_micros(disk_time.borrow_mut().random_range(from..to))
            });
            let result = runtime.block_on(async {
                let world = World::new(seed, network, folder.path());
                match tokio::time::timeout(TIMEOUT, live(seed, world)).await {
                    Ok(result) => result,
                    Err(_) => Err(format!("it isn't over after {} s", TIMEOUT.as_secs())),
                }
            });
            drop(runtime);
            drop(simulated);
            simulate_network(None);
            result
        });
    match thread.map_err(|error| error.to_string())?.join() {
        Ok(result) => result,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(format!("panic: {}", text.unwrap_or_default()))
        }
    }
}

fn temporary_folder() -> std::path::PathBuf {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

struct World {
    network: Rc<Network>,
    random: StdRng,
    members: Vec<Member>,
    storage: Vec<StorageNode>,
    /// There is no room for all copies, or wasn't a moment ago.
    full: Rc<Cell<bool>>,
}

impl World {
    fn new(seed: u64, network: Rc<Network>, folder: &std::path::Path) -> Result<World, String> {
        let members =
            (0..MEMBERS).map(|number| Member::new(number, folder.to_owned())).collect::<Result<_, _>>()?;
        let storage = (0..STORAGE)
            .map(|number| {
                StorageNode::new(number, MEMBERS, seed.wrapping_mul(31).wrapping_add(number as u64))
            })
            .collect();
        Ok(World { network, random: StdRng::seed_from_u64(seed), members, storage, full: Rc::default() })
    }

    async fn start(&mut self) -> Result<(), String> {
        for member in &mut self.members {
            if member.running.is_none() {
                member.start(&self.network).await?;
            }
        }
        for server in &mut self.storage {
            if server.running.is_none() {
                server.start(&self.network).await?;
            }
        }
        Ok(())
    }

    async fn suffer(&mut self, fault: &Fault) -> Result<(), String> {
        tracing::info!(?fault, "a fault");
        match fault {
            Fault::Member(number, time) => {
                self.members[*number].cut_power(&self.network, &mut self.random).await;
                tokio::time::sleep(*time).await;
            }
            Fault::Storage(number, time) => {
                self.storage[*number].cut_power(&self.network).await;
                tokio::time::sleep(*time).await;
            }
            Fault::Everything(time) => {
                for member in &mut self.members {
                    member.cut_power(&self.network, &mut self.random).await;
                }
                for server in &mut self.storage {
                    server.cut_power(&self.network).await;
                }
                tokio::time::sleep(*time).await;
            }
            Fault::Full(server, time) => {
                let number = |server: &Option<usize>| server.map_or(0..STORAGE, |server| server..server + 1);
                self.full.set(true);
                number(server).for_each(|number| self.storage[number].fill(true));
                tokio::time::sleep(*time).await;
                number(server).for_each(|number| self.storage[number].fill(false));
                // Until everybody has heard of it.
                tokio::time::sleep(HEARD_WITHIN).await;
                self.full.set(false);
            }
            Fault::NewDisk(number, time) => {
                let member = &mut self.members[*number];
                member.cut_power(&self.network, &mut self.random).await;
                tokio::time::sleep(*time).await;
                let (old, new) = member.replace_disk()?;
                member.start(&self.network).await?;
                nodes::replace_member(MEMBERS, *number, (old, new), &self.network).await?;
            }
            Fault::Flip(number) => self.storage[*number].flip(&mut self.random),
            Fault::Cut(pairs, time) => {
                self.network.cut(pairs.clone());
                tokio::time::sleep(*time).await;
                self.network.cut(Vec::new());
            }
        }
        self.start().await
    }
}

async fn live(seed: u64, world: Result<World, String>) -> Result<Report, String> {
    let mut world = world?;
    let mut report = Report::default();
    world.start().await?;
    let exclusive = seed % EXCLUSIVE_ONE_IN == EXCLUSIVE_ONE_IN - 1;
    nodes::bootstrap(MEMBERS, 3, exclusive).await?;
    let first = Mount::connect("first", MEMBERS, &world.network).await?;
    let shared = client::make_shared(&first.files).await?;
    let first = if exclusive {
        first.close().await?;
        None
    } else {
        Some(first)
    };
    let events = Rc::new(RefCell::new(Vec::new()));
    let mut clients = Vec::new();
    // One that is alone does the others' work.
    let (count, operations) = if exclusive { (1, 2 * OPERATIONS) } else { (CLIENTS, OPERATIONS) };
    for number in 0..count {
        let mount = Mount::connect(&client_name(number), MEMBERS, &world.network).await?;
        clients.push(
            SimClient::new(
                number,
                mount,
                shared,
                events.clone(),
                (world.network.clone(), MEMBERS, world.full.clone()),
                exclusive,
            )
            .await?,
        );
    }

    let working = futures::future::try_join_all(clients.iter_mut().enumerate().map(|(number, client)| {
        let mut random = StdRng::seed_from_u64(seed.wrapping_mul(7).wrapping_add(number as u64));
        async move { client.run(&mut random, operations).await }
    }));
    let failing = async {
        for _ in 0..FAULTS {
            let pause = some_time(&mut world.random, 0, 5000);
            tokio::time::sleep(pause).await;
            let fault = Fault::random(&mut world.random, (MEMBERS, STORAGE, CLIENTS));
            report.faults.push(format!("{:?}: {fault:?}", seam::elapsed()));
            world.suffer(&fault).await?;
        }
        Ok::<_, String>(())
    };
    futures::try_join!(working, failing)?;

    // Everything works again. What is there is what was made of it.
    let mut events: Vec<Event> = events.borrow().clone();
    report.shared_operations = events.len();
    for client in &mut clients {
        client.stop().await?;
        if exclusive {
            client.mount.files.metadata().close().await;
        }
    }
    let last = Mount::connect("last", MEMBERS, &world.network).await?;
    for client in &clients {
        client.check(&last.files).await?;
    }
    events.extend(client::shared_names(&last.files, shared.folder).await?);
    invariants::names::check(&events)?;
    invariants::register::check(&events)?;
    let log = client::read_file(&last.files, shared.log).await?;
    invariants::appends::check(&events, &log)?;
    invariants::follow::check(&events, &log)?;
    invariants::counter::check(&events)?;
    for client in clients.into_iter().filter(|_| !exclusive) {
        client.mount.close().await?;
    }
    if let Some(first) = first {
        first.close().await?;
    }
    rest(&world, 1, false).await?;
    report.extents = replicas(&world, &last).await?;
    last.close().await?;
    rest(&world, 0, seed.is_multiple_of(PATIENT_ONE_IN)).await?;
    report.time = seam::elapsed();
    report.fingerprint = fingerprint(&report, &events);
    Ok(report)
}

/// Reads all replicas. What is being moved while it looks is looked at again.
async fn replicas(world: &World, last: &Mount) -> Result<usize, String> {
    let began = seam::elapsed();
    loop {
        let records = world.members[0].running.as_ref().ok_or("member 0 doesn't run")?.records();
        let checked = invariants::replicas::check(&records.snapshot(), &last.pool).await;
        if checked.is_ok() || seam::elapsed() - began > REST_TIMEOUT {
            return checked;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Waits until nothing is left to be done but for so many sessions, then looks at the records.
async fn rest(world: &World, sessions: usize, all: bool) -> Result<(), String> {
    let began = seam::elapsed();
    loop {
        let mut records = Vec::new();
        for member in &world.members {
            records.push(member.running.as_ref().ok_or("a member doesn't run")?.records());
        }
        let snapshots: Vec<_> = records.iter().map(|records| records.snapshot()).collect();
        let snapshots: Vec<&dyn Read> = snapshots.iter().map(|snapshot| snapshot as &dyn Read).collect();
        let mut left = Vec::new();
        for (number, snapshot) in snapshots.iter().enumerate() {
            let found = invariants::records::leftovers(*snapshot, sessions, all)
                .map_err(|error| error.to_string())?;
            left.extend(found.into_iter().map(|what| format!("member {number}: {what}")));
        }
        // Whoever is still there has locked nothing.
        for (number, member) in world.members.iter().enumerate() {
            let locked = member.running.as_ref().map_or(0, |running| running.locked_ranges());
            if locked > 0 {
                left.push(format!("member {number}: {locked} locked ranges"));
            }
        }
        let checked = match left.is_empty() {
            true => invariants::records::check(&snapshots),
            false => Err(format!("there is something left at rest: {}", left.join(", "))),
        };
        match checked {
            Ok(()) => return Ok(()),
            Err(problem) if seam::elapsed() - began > REST_TIMEOUT => return Err(problem),
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// FNV-1a of everything that was seen.
fn fingerprint(report: &Report, events: &[Event]) -> u64 {
    let text = format!("{:?} {:?} {} {events:?}", report.time, report.faults, report.extents);
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
