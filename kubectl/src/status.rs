//! `kubectl atoll status`

use std::time::{SystemTime, UNIX_EPOCH};

use atoll_crds::names::labels;
use atoll_crds::v1alpha1::FileSystemCluster;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};

use crate::cli::{Format, StatusArgs};
use crate::exit::{Code, Failure};
use crate::find;
use crate::output;
use crate::view::{View, details, screen, view};

/// Shows one volume or several.
///
/// # Errors
/// If they can't be read, or one isn't healthy (after it was shown).
pub async fn run(client: Client, namespace: &str, args: &StatusArgs) -> Result<(), Failure> {
    let (target, listing) = (&args.selection.target, &args.selection.listing);
    let clusters = find::chosen(&client, namespace, &args.selection).await?;
    let mut views = Vec::new();
    for cluster in &clusters {
        views.push(view(cluster, &pods_of(&client, cluster).await, now_seconds()));
    }
    match (listing.output, target.is_some()) {
        (Format::Table | Format::Wide, _) if views.is_empty() => output::text(&format!(
            "no Atoll volumes{}; kubectl atoll list -A shows those of all namespaces\n",
            listing.place(namespace)
        ))?,
        (Format::Table, _) => {
            let screens: Vec<String> = views.iter().map(screen).collect();
            output::text(&screens.join("\n"))?;
        }
        (Format::Wide, _) => {
            let screens: Vec<String> =
                views.iter().zip(&clusters).map(|(view, cluster)| screen(view) + &details(cluster)).collect();
            output::text(&screens.join("\n"))?;
        }
        // One volume that was named is a document, not a list.
        (Format::Json, true) => output::json(&views[0])?,
        (Format::Yaml, true) => output::yaml(&views[0])?,
        (format, _) => output::listing(&views, format, "")?,
    }
    let ill: Vec<&View> = views.iter().filter(|view| !view.healthy).collect();
    if ill.is_empty() { Ok(()) } else { Err(Failure::new(Code::Unhealthy, "")) }
}

/// Who may not read pods is shown the rest.
pub async fn pods_of(client: &Client, cluster: &FileSystemCluster) -> Vec<Pod> {
    let api: Api<Pod> = Api::namespaced(client.clone(), cluster.namespace_str());
    let selector = format!("{}={}", labels::CLUSTER, cluster.name_str());
    match api.list(&ListParams::default().labels(&selector)).await {
        Ok(found) => found.items,
        Err(error) => {
            eprintln!("note: the pods are not shown: {error}");
            Vec::new()
        }
    }
}

/// Seconds since 1970.
pub fn now_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}
