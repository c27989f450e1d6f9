//! `kubectl atoll list`

use kube::Client;

use crate::cli::{Format, ListArgs};
use crate::exit::Failure;
use crate::find;
use crate::output::{self, age, size, table};
use crate::status::now_seconds;
use crate::view::{View, view};

/// Lists volumes.
///
/// # Errors
/// If they can't be listed.
pub async fn run(client: Client, namespace: &str, args: &ListArgs) -> Result<(), Failure> {
    let clusters = find::all(&client, (!args.all_namespaces).then_some(namespace)).await?;
    let views: Vec<View> = clusters.iter().map(|cluster| view(cluster, &[], now_seconds())).collect();
    match args.output {
        Format::Table if views.is_empty() => {
            let place =
                if args.all_namespaces { String::new() } else { format!(" in namespace {namespace}") };
            output::text(&format!("no Atoll volumes{place}\n"))?;
        }
        Format::Table => output::text(&(lines(&views) + "\n"))?,
        Format::Json => output::json(&views)?,
        Format::Yaml => output::yaml(&views)?,
    }
    Ok(())
}

fn lines(views: &[View]) -> String {
    let header = [
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
    let missing = || "-".to_owned();
    let rows = views.iter().map(|view| {
        let used =
            view.usage.as_ref().map(|usage| format!("{} ({} %)", size(usage.bytes_used), usage.percent));
        let claim = view.claim.as_ref().map(|claim| format!("{}/{}", claim.namespace, claim.name));
        vec![
            view.namespace.clone(),
            view.name.clone(),
            claim.unwrap_or_else(missing),
            view.phase.clone(),
            view.capacity.clone(),
            used.unwrap_or_else(missing),
            view.copies.to_string(),
            view.metadata.clone().unwrap_or_else(missing),
            view.storage.clone().unwrap_or_else(missing),
            view.mount_count.to_string(),
            view.age_seconds.map_or_else(missing, age),
        ]
    });
    table(&header, rows.collect())
}
