//! Nodes that lose their power, and get it back (`hack/kube/fault`).

use std::os::unix::process::parent_id;
use std::process::Command;

use crate::failure::{Failure, Outcome, ensure};

/// Everything on a node dies at once, unheard.
///
/// # Errors
/// If it doesn't.
pub async fn power_off(node: &str) -> Outcome {
    fault("power-off", node).await
}

/// A node has power again, and its disk as it was.
///
/// # Errors
/// If it doesn't start.
pub async fn power_on(node: &str) -> Outcome {
    fault("power-on", node).await
}

async fn fault(verb: &'static str, node: &str) -> Outcome {
    let node = node.to_owned();
    // This program is in the cluster's network; the machine's is that of the script which has started it.
    let network = format!("--net=/proc/{}/ns/net", parent_id());
    let run = move || {
        Command::new("nsenter").args([network.as_str(), "hack/kube/fault", verb, node.as_str()]).output()
    };
    let output =
        tokio::task::spawn_blocking(run).await.map_err(|error| Failure::new(error.to_string()))??;
    ensure(output.status.success(), || {
        format!("hack/kube/fault {verb}: {}", String::from_utf8_lossy(&output.stderr).trim_end())
    })
}
