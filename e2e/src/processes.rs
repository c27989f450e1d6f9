//! `kill -9` of a container: a signal to its processes, seen from the machine that hosts the nodes.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::failure::{Failure, Outcome, ensure};

/// Kills every process of a pod's containers at once and returns how many there were. The pod's own sandbox
/// process (`pause`) is left: without it kubelet would make a new pod.
///
/// # Errors
/// If none was found.
pub fn kill_9(pod: &Pod) -> Outcome<usize> {
    kill_9_if(pod, |_| true)
}

/// Kills the processes of a pod's containers that have this argument, and returns how many there were.
///
/// # Errors
/// If none was found.
pub fn kill_9_with(pod: &Pod, argument: &str) -> Outcome<usize> {
    kill_9_if(pod, |pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    })
}

fn kill_9_if(pod: &Pod, is_victim: impl Fn(u32) -> bool) -> Outcome<usize> {
    let uid = pod.uid().ok_or_else(|| Failure::new("the pod has no uid"))?;
    let mut killed = 0;
    for pid in processes_of(&uid)?.into_iter().filter(|pid| is_victim(*pid)) {
        let status = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status()?;
        killed += usize::from(status.success());
    }
    ensure(killed > 0, || format!("no process of pod {} was found", pod.name_any()))?;
    Ok(killed)
}

/// Process ids of a pod's containers, as this machine numbers them.
fn processes_of(uid: &str) -> Outcome<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that ended meanwhile has no files any more.
        let Ok(groups) = std::fs::read_to_string(entry.path().join("cgroup")) else { continue };
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if is_of_pod(&groups, uid) && name.trim() != "pause" {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Whether the control groups of a process are those of a pod: kubelet's folder names have `pod` and the uid, with
/// dashes or (under systemd) with underscores.
fn is_of_pod(groups: &str, uid: &str) -> bool {
    groups.contains(&format!("pod{uid}")) || groups.contains(&format!("pod{}", uid.replace('-', "_")))
}

#[cfg(test)]
mod tests {
    use super::is_of_pod;

    #[test]
    fn a_process_belongs_to_the_pod_whose_uid_its_cgroup_names() {
        let groups = "12:memory:/atoll/node-0/kubepods/burstable/pod1b2c-3d/0123abcd\n0::/";
        assert!(is_of_pod(groups, "1b2c-3d"));
        assert!(is_of_pod("0::/kubepods.slice/kubepods-pod1b2c_3d.slice/cri.scope", "1b2c-3d"));
        assert!(!is_of_pod(groups, "1b2c-3e"));
        assert!(!is_of_pod("0::/init.scope", "1b2c-3d"));
    }
}
