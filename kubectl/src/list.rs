//! `kubectl atoll list`

use kube::Client;

use crate::cli::ListArgs;
use crate::exit::Failure;
use crate::find;
use crate::output::{self, Row, age, missing, size};
use crate::status::now_seconds;
use crate::view::{View, view};

/// Lists volumes.
///
/// # Errors
/// If they can't be listed.
pub async fn run(client: Client, namespace: &str, args: &ListArgs) -> Result<(), Failure> {
    let clusters = find::all(&client, args.listing.scope(namespace)).await?;
    let views: Vec<View> = clusters.iter().map(|cluster| view(cluster, &[], now_seconds())).collect();
    let empty = format!("no Atoll volumes{}", args.listing.place(namespace));
    output::listing(&views, args.listing.output, &empty)
}

impl Row for View {
    const HEADER: &'static [&'static str] = &[
        "NAMESPACE",
        "NAME",
        "CLAIM",
        "PHASE",
        "CAPACITY",
        "USED",
        "COPIES",
        "METADATA",
        "STORAGE",
        "MOUNTS",
        "AGE",
    ];
    const WIDE: &'static [&'static str] = &["VERSION", "FILES", "SHORT OF COPIES", "CLUSTER ID", "HEALTH"];

    fn cells(&self) -> Vec<String> {
        let used = |used: &crate::view::Usage| format!("{} ({} %)", size(used.bytes_used), used.percent);
        let claim = self.claim.as_ref().map(|claim| format!("{}/{}", claim.namespace, claim.name));
        vec![
            self.namespace.clone(),
            self.name.clone(),
            claim.unwrap_or_else(missing),
            self.phase.clone(),
            self.capacity.clone(),
            self.usage.as_ref().map_or_else(missing, used),
            self.copies.to_string(),
            self.metadata.clone().unwrap_or_else(missing),
            self.storage.clone().unwrap_or_else(missing),
            self.mount_count.to_string(),
            self.age_seconds.map_or_else(missing, age),
        ]
    }

    fn wide_cells(&self) -> Vec<String> {
        vec![
            self.version.clone().unwrap_or_else(missing),
            self.usage.as_ref().map_or_else(missing, |usage| usage.inodes_used.to_string()),
            self.chunks_short_of_copies.to_string(),
            self.cluster_id.clone().unwrap_or_else(missing),
            self.problems.first().cloned().unwrap_or_else(|| self.health.clone()),
        ]
    }

    fn resource(&self) -> String {
        format!("filesystemcluster.atoll.dev/{}", self.name)
    }
}
