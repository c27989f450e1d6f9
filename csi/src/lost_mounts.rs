//! Mounts that nobody serves any more, and who has to know. Pure: the facts come from the mount table, which also says which pods
//! use a mount, by kubelet's directories of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use atoll_crds::names::VolumeHandle;
use atoll_fuse::device::FILESYSTEM_TYPE;
use atoll_fuse::device::mountinfo::Mount;

use crate::target_path::Liveness;

/// Looks after which a mount that doesn't respond is told of.
const SILENT_LOOKS: u32 = 6;

/// A filesystem of ours: its device number.
pub type Device = (u32, u32);

/// The volume of a mount of ours.
#[must_use]
pub fn volume(mount: &Mount) -> Option<VolumeHandle> {
    if mount.filesystem != FILESYSTEM_TYPE {
        return None;
    }
    mount.source.rsplit_once(':').and_then(|(_, handle)| handle.parse().ok())
}

/// One mount of each filesystem of ours that may not be served. A volume that is served may have a dead mount beside the one that
/// is: that of pods which were there before.
#[must_use]
pub fn unserved<'a>(table: &'a [Mount], served: &BTreeSet<String>) -> BTreeMap<Device, &'a Mount> {
    let mut volumes: BTreeMap<String, BTreeMap<Device, &Mount>> = BTreeMap::new();
    for mount in table {
        if let Some(volume) = volume(mount) {
            volumes.entry(volume.to_string()).or_default().insert(mount.device, mount);
        }
    }
    volumes.retain(|volume, devices| devices.len() > 1 || !served.contains(volume));
    volumes.into_values().flatten().collect()
}

/// The uids of the pods that a filesystem is mounted for. `kubelet` is its directory.
#[must_use]
pub fn pods(table: &[Mount], kubelet: &Path, device: Device) -> BTreeSet<String> {
    let folder = kubelet.join("pods");
    let uid = |mount: &Mount| {
        let rest = mount.path.strip_prefix(&folder).ok()?;
        Some(rest.components().next()?.as_os_str().to_str()?.to_owned())
    };
    table.iter().filter(|mount| mount.device == device).filter_map(uid).collect()
}

/// What is said of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// It is dead.
    Lost,
    /// It doesn't respond, for a while already.
    Silent,
}

impl Notice {
    /// The Event's reason.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Notice::Lost => "VolumeMountLost",
            Notice::Silent => "VolumeNotResponding",
        }
    }

    /// The Event's message.
    #[must_use]
    pub fn message(self, volume: &VolumeHandle) -> String {
        match self {
            Notice::Lost => format!(
                "the mount of volume {volume} has ended on this node: this pod gets 'Transport endpoint is not connected' \
                 until it is deleted and created again, which mounts the volume again; data that was not synced is lost"
            ),
            Notice::Silent => format!(
                "the mount of volume {volume} doesn't respond on this node: calls wait until its client continues; see the \
                 atoll-mount-host and atoll-holder pods of this node, and whether the volume's cluster can be reached"
            ),
        }
    }
}

/// What was seen of the mounts so far.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    silent: BTreeMap<Device, u32>,
    told: BTreeSet<(Device, Notice, String)>,
}

impl Looks {
    /// Takes in what the mounts of a look answered, and says who has to be told what: each pod once of each.
    pub fn take(
        &mut self,
        answers: &BTreeMap<Device, (Liveness, BTreeSet<String>)>,
    ) -> Vec<(Device, Notice, String)> {
        self.silent.retain(|device, _| {
            answers.get(device).is_some_and(|(liveness, _)| *liveness == Liveness::Silent)
        });
        let is_there = |device: &Device, pod: &String| {
            answers
                .get(device)
                .is_some_and(|(liveness, pods)| *liveness != Liveness::Alive && pods.contains(pod))
        };
        self.told.retain(|(device, _, pod)| is_there(device, pod));
        let mut notices = Vec::new();
        for (device, (liveness, pods)) in answers {
            let notice = match liveness {
                Liveness::Alive => continue,
                Liveness::Dead => Notice::Lost,
                Liveness::Silent => {
                    let looks = self.silent.entry(*device).or_default();
                    *looks += 1;
                    if *looks < SILENT_LOOKS {
                        continue;
                    }
                    Notice::Silent
                }
            };
            for pod in pods {
                if self.told.insert((*device, notice, pod.clone())) {
                    notices.push((*device, notice, pod.clone()));
                }
            }
        }
        notices
    }

    /// A pod could not be told: it is tried again.
    pub fn untold(&mut self, notice: &(Device, Notice, String)) {
        self.told.remove(notice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(device: u32, source: &str, path: &str) -> Mount {
        Mount {
            id: 1,
            device: (0, device),
            root: "/".into(),
            path: path.into(),
            read_only: false,
            options: "rw".to_owned(),
            filesystem_options: "rw".to_owned(),
            filesystem: if source.starts_with("atoll") { FILESYSTEM_TYPE } else { "ext4" }.to_owned(),
            source: source.to_owned(),
        }
    }

    fn table() -> Vec<Mount> {
        let kubelet = "/var/lib/kubelet";
        vec![
            mount(1, "/dev/vda", "/"),
            mount(40, "atoll:00ff:v1/a/b", &format!("{kubelet}/plugins/kubernetes.io/csi/x/globalmount")),
            mount(
                40,
                "atoll:00ff:v1/a/b",
                &format!("{kubelet}/pods/uid-1/volumes/kubernetes.io~csi/pv/mount"),
            ),
            mount(40, "atoll:00ff:v1/a/b", &format!("{kubelet}/pods/uid-2/volume-subpaths/pv/main/0")),
            mount(
                41,
                "atoll:00ff:v1/a/c",
                &format!("{kubelet}/pods/uid-3/volumes/kubernetes.io~csi/pv/mount"),
            ),
        ]
    }

    #[test]
    fn the_mount_table_says_which_pods_use_a_mount() {
        let table = table();
        let served = BTreeSet::from(["v1/a/c".to_owned()]);
        assert_eq!(unserved(&table, &served).keys().collect::<Vec<_>>(), [&(0, 40)]);
        assert_eq!(unserved(&table, &BTreeSet::new()).len(), 2);
        let mut twice = table.clone();
        twice.push(mount(42, "atoll:00ff:v1/a/c", "/staging"));
        assert_eq!(unserved(&twice, &served).len(), 3, "one of the two mounts is dead");
        let pods = pods(&table, Path::new("/var/lib/kubelet"), (0, 40));
        assert_eq!(pods, BTreeSet::from(["uid-1".to_owned(), "uid-2".to_owned()]));
    }

    #[test]
    fn each_pod_is_told_once_and_of_a_short_pause_not_at_all() {
        let answers = |liveness, pods: &[&str]| {
            let pods = pods.iter().map(|pod| (*pod).to_owned()).collect();
            BTreeMap::from([((0, 40), (liveness, pods))])
        };
        let mut looks = Looks::default();
        for _ in 1..SILENT_LOOKS {
            assert!(looks.take(&answers(Liveness::Silent, &["a"])).is_empty());
        }
        assert!(looks.take(&answers(Liveness::Alive, &["a"])).is_empty(), "it continues");
        for _ in 1..SILENT_LOOKS {
            assert!(looks.take(&answers(Liveness::Silent, &["a"])).is_empty());
        }
        let silent = looks.take(&answers(Liveness::Silent, &["a"]));
        assert_eq!(silent, [((0, 40), Notice::Silent, "a".to_owned())]);
        assert!(looks.take(&answers(Liveness::Silent, &["a"])).is_empty());
        let lost = looks.take(&answers(Liveness::Dead, &["a", "b"]));
        assert_eq!(lost.iter().map(|(_, _, pod)| pod.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        looks.untold(&lost[1]);
        assert_eq!(looks.take(&answers(Liveness::Dead, &["a", "b"])), lost[1..]);
        assert!(looks.take(&BTreeMap::new()).is_empty());
        assert_eq!(looks.take(&answers(Liveness::Dead, &["a"])).len(), 1, "another mount of that number");
    }
}
