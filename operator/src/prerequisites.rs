//! Does: creates what has to be there before there can be volumes (`build/prerequisites.rs`), and keeps it, since no
//! install brings it and no uninstall deletes it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_crds::names;
use futures::stream::SelectAll;
use futures::{StreamExt, TryStreamExt};
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::runtime::watcher::{self, Config, Event};
use kube::runtime::{WatchStreamExt, conditions, wait};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;

use crate::build::prerequisites::{Prerequisite, PrerequisiteError, prerequisites};
use crate::error::{Error, Kind, call, change};

/// The definition of the custom resource.
const DEFINITION: &str = "filesystemclusters.atoll.dev";
/// How long to wait after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// How long the API server may take to serve a new definition before a warning says that it doesn't.
const ESTABLISHED_WAIT: Duration = Duration::from_secs(30);

/// What the operator should keep and can't, with why.
#[derive(Clone, Default)]
pub struct Unmet(Arc<Mutex<BTreeMap<String, String>>>);

impl Unmet {
    /// Whether and why something isn't as it has to be.
    pub fn first(&self) -> Option<String> {
        self.0.lock().iter().next().map(|(what, why)| format!("{what}: {why}"))
    }

    fn set(&self, what: String, why: Option<String>) {
        let mut unmet = self.0.lock();
        match why {
            Some(why) => unmet.insert(what, why),
            None => unmet.remove(&what),
        };
    }
}

/// Creates all of them, and returns when the API server serves the custom resource.
///
/// # Errors
/// If what was compiled in is invalid. Everything else is logged and tried again.
pub async fn create(client: &Client, unmet: &Unmet) -> Result<Vec<Prerequisite>, PrerequisiteError> {
    let all = prerequisites()?;
    for needed in &all {
        apply_until_done(client, needed, unmet).await;
    }
    let definitions = Api::all(client.clone());
    loop {
        let established =
            wait::await_condition(definitions.clone(), DEFINITION, conditions::is_crd_established());
        match tokio::time::timeout(ESTABLISHED_WAIT, established).await {
            Ok(Ok(_)) => {
                unmet.set(DEFINITION.to_owned(), None);
                return Ok(all);
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the CustomResourceDefinition can't be watched");
                unmet.set(DEFINITION.to_owned(), Some(format!("it can't be watched: {error}")));
            }
            Err(_) => {
                let why = format!(
                    "the API server doesn't serve it yet: kubectl describe crd {DEFINITION} shows why"
                );
                tracing::warn!("{DEFINITION}: {why}");
                unmet.set(DEFINITION.to_owned(), Some(why));
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Keeps them, for ever: one that was deleted or changed is applied again at once.
pub async fn keep(client: Client, all: Vec<Prerequisite>, unmet: Unmet) {
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
        apply_until_done(&client, &needed, &unmet).await;
    }
    std::future::pending().await
}

fn api(client: &Client, needed: &Prerequisite) -> Api<DynamicObject> {
    match needed.object.namespace() {
        Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &needed.kind),
        None => Api::all_with(client.clone(), &needed.kind),
    }
}

async fn apply_until_done(client: &Client, needed: &Prerequisite, unmet: &Unmet) {
    while let Err(error) = apply(client, needed).await {
        tracing::error!(%error, "{} can't be created or kept; retrying", needed.brief());
        unmet.set(needed.brief(), Some(error.to_string()));
        tokio::time::sleep(RETRY).await;
    }
    unmet.set(needed.brief(), None);
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
