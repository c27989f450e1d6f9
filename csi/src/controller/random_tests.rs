//! The controller's calls in random order, given up on, repeated by another process of the driver, with an API server that is
//! away and clusters that don't get ready. Whatever happens, nothing is left behind once all volumes were deleted, and no
//! answer is final while something may be left.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tonic::Code;

use super::*;
use crate::access::testing::capability;
use crate::clusters::memory::MemoryClusters;
use crate::csi::volume_capability::access_mode::Mode;
use crate::csi::{ControllerExpandVolumeRequest, ListVolumesRequest};
use crate::rpc::Rpcs;

const SEEDS: u64 = 40;
const CALLS: u32 = 60;
const GIB: i64 = 1 << 30;

/// What external-provisioner takes for "it may still come to be".
const MAY_EXIST: [Code; 4] = [Code::Aborted, Code::DeadlineExceeded, Code::Unavailable, Code::Cancelled];

struct World {
    random: StdRng,
    store: MemoryClusters,
    service: Arc<ControllerService<MemoryClusters>>,
    /// The driver's processes before that.
    earlier: Vec<Arc<ControllerService<MemoryClusters>>>,
    /// Volumes of which a call has said that they are there, and none since that they aren't.
    there: BTreeSet<String>,
}

impl World {
    fn new(seed: u64) -> World {
        let store = MemoryClusters::ready();
        store.behaviour.lock().grows = true;
        let service = driver(&store);
        World {
            random: StdRng::seed_from_u64(seed),
            store,
            service,
            earlier: Vec::new(),
            there: BTreeSet::new(),
        }
    }

    fn chance(&mut self, one_in: u32) -> bool {
        self.random.random_range(0..one_in) == 0
    }

    fn name(&mut self) -> String {
        format!("pvc-{}", self.random.random_range(0..4))
    }

    /// Calls, maybe without waiting for the answer: `None`.
    async fn call<T>(
        &mut self,
        call: impl Future<Output = Result<T, CsiError>>,
    ) -> Option<Result<T, CsiError>> {
        match self.chance(3) {
            false => Some(call.await),
            true => {
                let patience = Duration::from_micros(self.random.random_range(0..1500));
                tokio::time::timeout(patience, call).await.ok()
            }
        }
    }

    async fn step(&mut self) {
        match self.random.random_range(0..10) {
            0 => {
                let away = self.chance(3);
                let ready = !self.chance(3);
                let stuck = self.chance(4);
                let mut behaviour = self.store.behaviour.lock();
                (behaviour.away, behaviour.ready, behaviour.stuck) = (away, ready, stuck);
            }
            // Another process of the driver. Requests of the previous one continue, as those on the network do.
            1 => {
                let next = driver(&self.store);
                self.earlier.push(std::mem::replace(&mut self.service, next));
            }
            2..6 => self.create().await,
            6..8 => {
                let name = self.name();
                self.remove(&name).await;
            }
            8 => self.expand().await,
            _ => self.list().await,
        }
    }

    async fn create(&mut self) {
        let name = self.name();
        let gib = self.random.random_range(1..3);
        let request = CreateVolumeRequest {
            name: name.clone(),
            capacity_range: Some(CapacityRange { required_bytes: gib * GIB, limit_bytes: 0 }),
            volume_capabilities: vec![capability(Mode::MultiNodeMultiWriter, &[])],
            ..CreateVolumeRequest::default()
        };
        let service = Arc::clone(&self.service);
        let wait = Duration::from_millis(self.random.random_range(0..3));
        match self.call(async move { service.create(request, wait).await }).await {
            Some(Ok(volume)) => {
                assert_eq!(volume.volume_id, format!("v1/atoll-volumes/{name}"));
                assert!(volume.capacity_bytes >= gib * GIB);
                self.there.insert(name);
            }
            Some(Err(CsiError::Exists(_))) => {
                assert!(self.store.clusters.lock().contains_key(&name), "{name} is no other volume");
            }
            Some(Err(error)) => assert!(MAY_EXIST.contains(&error.code()), "{name}: {error:?}"),
            None => {}
        }
    }

    async fn remove(&mut self, name: &str) -> bool {
        let service = Arc::clone(&self.service);
        let id = format!("v1/atoll-volumes/{name}");
        let answer = self.call(async move { service.remove(&id, Duration::from_millis(1)).await }).await;
        self.there.remove(name);
        match answer {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                assert!(MAY_EXIST.contains(&error.code()), "{name}: {error:?}");
                false
            }
            None => false,
        }
    }

    async fn expand(&mut self) {
        let name = self.name();
        let request = ControllerExpandVolumeRequest {
            volume_id: format!("v1/atoll-volumes/{name}"),
            capacity_range: Some(CapacityRange { required_bytes: 2 * GIB, limit_bytes: 0 }),
            ..ControllerExpandVolumeRequest::default()
        };
        let service = Arc::clone(&self.service);
        let wait = Duration::from_millis(1);
        match self.call(async move { service.expand(request, wait).await }).await {
            Some(Ok(bytes)) => assert!(bytes >= 2 << 30),
            Some(Err(CsiError::NotFound(_))) => assert!(!self.there.contains(&name), "{name} is there"),
            Some(Err(error)) => assert!(MAY_EXIST.contains(&error.code()), "{name}: {error:?}"),
            None => {}
        }
    }

    async fn list(&mut self) {
        let service = Arc::clone(&self.service);
        let mut listed = BTreeSet::new();
        let mut token = String::new();
        loop {
            let request = ListVolumesRequest { max_entries: 2, starting_token: token };
            let Ok(page) = service.list(request).await else { return };
            for entry in page.entries {
                assert!(listed.insert(entry.volume.unwrap().volume_id), "listed twice");
            }
            token = page.next_token;
            if token.is_empty() {
                break;
            }
        }
        for name in &self.there {
            assert!(listed.contains(&format!("v1/atoll-volumes/{name}")), "{name} is missing: {listed:?}");
        }
    }

    /// All goes well again, and all volumes are deleted.
    async fn clean_up(&mut self) {
        // Calls whose callers have gone are finished first.
        let drivers = self.earlier.iter().chain([&self.service]);
        for driver in drivers {
            while driver.under_way() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        {
            let mut behaviour = self.store.behaviour.lock();
            (behaviour.away, behaviour.ready, behaviour.stuck) = (false, true, false);
        }
        // The finalizers of those that were stuck are done.
        self.store.clusters.lock().retain(|_, cluster| !cluster.is_terminating());
        for number in 0..4 {
            while !self.remove(&format!("pvc-{number}")).await {
                tokio::task::yield_now().await;
            }
        }
    }
}

fn driver(store: &MemoryClusters) -> Arc<ControllerService<MemoryClusters>> {
    Arc::new(ControllerService::new(Arc::new(store.clone()), Arc::new(Rpcs::default())))
}

#[tokio::test]
async fn whatever_is_called_in_whichever_order_nothing_is_left_behind() {
    for seed in 0..SEEDS {
        eprintln!("seed {seed}");
        let mut world = World::new(seed);
        for _ in 0..CALLS {
            world.step().await;
        }
        world.clean_up().await;
        assert!(world.store.clusters.lock().is_empty(), "seed {seed}");
    }
}
