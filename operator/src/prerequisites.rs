//! Does: creates what has to be there before there can be volumes (`build/prerequisites.rs`), and keeps it, since no
//! install brings it and no uninstall deletes it.

use std::time::Duration;

use atoll_crds::names;
use futures::stream::SelectAll;
use futures::{StreamExt, TryStreamExt};
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::runtime::watcher::{self, Config, Event};
use kube::runtime::{WatchStreamExt, conditions, wait};
use kube::{Api, Client, ResourceExt};

use crate::build::prerequisites::{Prerequisite, PrerequisiteError, prerequisites};
use crate::error::{Error, Kind, call, change};

/// The definition of the custom resource.
const DEFINITION: &str = "filesystemclusters.atoll.dev";
/// How long to wait after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// How long the API server may take to serve a new definition before a warning says that it doesn't.
const ESTABLISHED_WAIT: Duration = Duration::from_secs(30);

/// Creates all of them, and returns when the API server serves the custom resource.
///
/// # Errors
/// If what was compiled in is invalid. Everything else is logged and tried again.
pub async fn create(client: &Client) -> Result<Vec<Prerequisite>, PrerequisiteError> {
    let all = prerequisites()?;
    for needed in &all {
        while let Err(error) = apply(client, needed).await {
            tracing::error!(%error, "{} can't be created; retrying", needed.brief());
            tokio::time::sleep(RETRY).await;
        }
    }
    let definitions = Api::all(client.clone());
    loop {
        let established =
            wait::await_condition(definitions.clone(), DEFINITION, conditions::is_crd_established());
        match tokio::time::timeout(ESTABLISHED_WAIT, established).await {
            Ok(Ok(_)) => return Ok(all),
            Ok(Err(error)) => tracing::warn!(%error, "the CustomResourceDefinition can't be watched"),
            Err(_) => tracing::warn!(
                "the API server doesn't serve FileSystemClusters yet: kubectl describe crd {DEFINITION} shows why"
            ),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Keeps them, for ever: one that was deleted or changed is applied again at once.
pub async fn keep(client: Client, all: Vec<Prerequisite>) {
    let mut changes: SelectAll<_> = all
        .into_iter()
        .map(|needed| {
            let one = Config::default().fields(&format!("metadata.name={}", needed.object.name_any()));
            let watch = watcher::watcher(api(&client, &needed), one).default_backoff();
            watch.map_ok(move |event| (needed.clone(), event)).boxed()
        })
        .collect();
    while let Some(change) = changes.next().await {
        let needed = match change {
            Ok((needed, Event::Apply(_) | Event::Delete(_) | Event::InitDone)) => needed,
            Ok((_, Event::Init | Event::InitApply(_))) => continue,
            Err(error) => {
                tracing::warn!(%error, "the watch of an object that the operator keeps was interrupted");
                continue;
            }
        };
        // The server leaves what is as it has to be untouched, so this causes no event of its own.
        while let Err(error) = apply(&client, &needed).await {
            tracing::error!(%error, "{} can't be kept; retrying", needed.brief());
            tokio::time::sleep(RETRY).await;
        }
    }
    std::future::pending().await
}

fn api(client: &Client, needed: &Prerequisite) -> Api<DynamicObject> {
    match needed.object.namespace() {
        Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &needed.kind),
        None => Api::all_with(client.clone(), &needed.kind),
    }
}

async fn apply(client: &Client, needed: &Prerequisite) -> Result<(), Error> {
    let (api, name) = (api(client, needed), needed.object.name_any());
    let found = call(format!("read the {}", needed.brief()), api.get_opt(&name)).await?;
    if found.as_ref().is_some_and(|found| !needed.may_replace(found)) {
        tracing::debug!("{} was applied by a newer operator and is left alone", needed.brief());
        return Ok(());
    }
    let params = PatchParams::apply(names::MANAGER_OPERATOR).force();
    let doing = format!("apply the {}", needed.brief());
    match change(doing, api.patch(&name, &params, &Patch::Apply(&needed.object))).await {
        Ok(_) => Ok(()),
        Err(error) => {
            // Where an administrator keeps these, the operator may have no right to change them.
            if error.kind() == Kind::Refused && found.is_some() {
                tracing::warn!(
                    %error,
                    "{} is left as it is: apply config/crd and config/volumes of this version by hand",
                    needed.brief()
                );
                return Ok(());
            }
            Err(error)
        }
    }
}
