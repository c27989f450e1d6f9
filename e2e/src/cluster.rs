//! The cluster under test, as a user sees it: objects are applied, waited for, looked at and removed.

use std::fmt::Debug;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use atoll_crds::names::NAMESPACE_VOLUMES;
use atoll_crds::v1alpha1::FileSystemCluster;
use k8s_openapi::api::core::v1::{Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, ListParams, LogParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::failure::{Failure, Outcome};

/// How often something is looked at that is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long a pod may take to run or to end, an object to go: generous, a bound on hanging.
pub const TIMEOUT: Duration = Duration::from_secs(180);

/// The API server, and the namespace of one promise.
pub struct Cluster {
    client: Client,
    namespace: String,
}

impl Cluster {
    /// The namespace of a promise.
    pub fn namespace_of(promise: &str) -> String {
        format!("e2e-{promise}")
    }

    /// Connects with KUBECONFIG.
    ///
    /// # Errors
    /// If there is no cluster.
    pub async fn connect(promise: &str) -> Outcome<Cluster> {
        let client = Client::try_default().await?;
        Ok(Cluster { client, namespace: Cluster::namespace_of(promise) })
    }

    /// The namespace of this promise.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Objects of this promise's namespace.
    pub fn here<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Objects of a namespace.
    pub fn of<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Objects of the whole cluster.
    pub fn everywhere<K>(&self) -> Api<K>
    where
        K: Resource,
        K::DynamicType: Default,
    {
        Api::all(self.client.clone())
    }

    /// Makes the namespace; one that an earlier run left goes first.
    pub async fn make_namespace(&self) -> Outcome {
        self.remove_namespace().await?;
        let namespace = serde_json::from_value(serde_json::json!({ "metadata": { "name": self.namespace } }))
            .map_err(|error| Failure::new(error.to_string()))?;
        self.everywhere::<Namespace>().create(&PostParams::default(), &namespace).await?;
        Ok(())
    }

    /// Removes the namespace with all that is in it, pods first, and waits until it is gone.
    pub async fn remove_namespace(&self) -> Outcome {
        let namespaces: Api<Namespace> = self.everywhere();
        if namespaces.get_opt(&self.namespace).await?.is_none() {
            return Ok(());
        }
        let now = DeleteParams::default().grace_period(1);
        self.here::<Pod>().delete_collection(&now, &ListParams::default()).await?;
        match namespaces.delete(&self.namespace, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
            Err(error) => return Err(error.into()),
        }
        self.eventually("the namespace is gone", TIMEOUT, async || {
            Ok(namespaces.get_opt(&self.namespace).await?.is_none().then_some(()))
        })
        .await
    }

    /// Looks until there is an answer.
    ///
    /// # Errors
    /// If there is none in time; what was seen last is in the words.
    pub async fn eventually<T>(
        &self,
        what: &str,
        patience: Duration,
        mut look: impl AsyncFnMut() -> Outcome<Option<T>>,
    ) -> Outcome<T> {
        let deadline = Instant::now() + patience;
        loop {
            let last = look().await;
            if let Ok(Some(found)) = last {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                let last = last.err().map(|error| format!(": {error}")).unwrap_or_default();
                return Err(Failure::new(format!("not within {} s: {what}{last}", patience.as_secs())));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until an object of this namespace is as it should be.
    pub async fn wait_for<K>(&self, name: &str, what: &str, is: impl Fn(&K) -> bool) -> Outcome<K>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = self.here();
        self.eventually(&format!("{name} {what}"), TIMEOUT, async || Ok(api.get_opt(name).await?.filter(&is)))
            .await
    }

    /// Waits until an object is gone.
    pub async fn wait_gone<K>(&self, api: &Api<K>, name: &str) -> Outcome
    where
        K: Resource + Clone + DeserializeOwned + Debug,
    {
        self.eventually(&format!("{name} is gone"), TIMEOUT, async || {
            Ok(api.get_opt(name).await?.is_none().then_some(()))
        })
        .await
    }

    /// Deletes an object of this namespace; that it isn't there is as good.
    pub async fn delete<K>(&self, name: &str) -> Outcome
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        match self.here::<K>().delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Applies objects as a user would, into this promise's namespace unless they name another one.
    pub async fn apply(&self, yaml: &str) -> Outcome {
        self.kubectl(&["apply", "-f", "-"], yaml).await.map(|_| ())
    }

    /// Runs a shell command in a pod of this namespace; its standard output.
    ///
    /// # Errors
    /// If it fails; with what it printed.
    pub async fn shell(&self, pod: &str, script: &str) -> Outcome<String> {
        self.kubectl(&["exec", pod, "--", "sh", "-euc", script], "").await
    }

    /// Runs kubectl with this promise's namespace as the default one.
    pub async fn kubectl(&self, arguments: &[&str], input: &str) -> Outcome<String> {
        let namespace = ["--namespace", self.namespace()];
        run(&[&namespace, arguments].concat(), input).await
    }

    /// Runs `kubectl atoll` with this promise's namespace as the default one: flags of a plugin come after its name.
    pub async fn plugin(&self, arguments: &[&str]) -> Outcome<String> {
        let namespace = ["--namespace", self.namespace()];
        run(&[&["atoll"], arguments, &namespace].concat(), "").await
    }

    /// Names of the nodes, in order.
    pub async fn nodes(&self) -> Outcome<Vec<String>> {
        let nodes = self.everywhere::<Node>().list(&ListParams::default()).await?;
        let mut names: Vec<String> = nodes.items.iter().map(ResourceExt::name_any).collect();
        names.sort();
        Ok(names)
    }

    /// The FileSystemCluster that was made for a PVC of this namespace, once it is bound.
    pub async fn volume_of(&self, claim: &str) -> Outcome<(String, FileSystemCluster)> {
        let claim = self
            .wait_for::<PersistentVolumeClaim>(claim, "is bound", |claim| {
                claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
            })
            .await?;
        let volume = claim.spec.and_then(|spec| spec.volume_name).unwrap_or_default();
        let volume = self.everywhere::<PersistentVolume>().get(&volume).await?;
        let handle = volume.spec.and_then(|spec| spec.csi).map(|csi| csi.volume_handle).unwrap_or_default();
        let handle: atoll_crds::names::VolumeHandle =
            handle.parse().map_err(|error| Failure::new(format!("{error}")))?;
        let cluster = self.of::<FileSystemCluster>(handle.namespace()).get(handle.name()).await?;
        Ok((handle.name().to_owned(), cluster))
    }

    /// The events about an object of this namespace: `reason: message`.
    pub async fn events_of(&self, name: &str) -> Outcome<Vec<String>> {
        let of = ListParams::default().fields(&format!("involvedObject.name={name}"));
        let events = self.here::<Event>().list(&of).await?;
        let told = |event: Event| {
            format!("{}: {}", event.reason.unwrap_or_default(), event.message.unwrap_or_default())
        };
        Ok(events.items.into_iter().map(told).collect())
    }

    /// For a reader who wants to know why a promise wasn't kept.
    pub async fn print_state(&self) {
        let all = ["get", "pods,pvc,fsc", "-A", "-o", "wide"];
        for arguments in [&all[..], &["get", "events", "-A", "--sort-by=.lastTimestamp"]] {
            match self.kubectl(arguments, "").await {
                Ok(text) => {
                    let lines: Vec<&str> = text.lines().collect();
                    let from = lines.len().saturating_sub(60);
                    println!("--- kubectl {}\n{}", arguments.join(" "), lines[from..].join("\n"));
                }
                Err(error) => println!("--- {error}"),
            }
        }
        for namespace in [atoll_crds::names::NAMESPACE_SYSTEM, NAMESPACE_VOLUMES] {
            let pods: Api<Pod> = self.of(namespace);
            let Ok(list) = pods.list(&ListParams::default()).await else { continue };
            for pod in list.items {
                for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
                    let last = LogParams {
                        container: Some(container.name.clone()),
                        tail_lines: Some(15),
                        ..LogParams::default()
                    };
                    if let Ok(log) = pods.logs(&pod.name_any(), &last).await {
                        println!("--- log of {namespace}/{} {}\n{log}", pod.name_any(), container.name);
                    }
                }
            }
        }
    }
}

/// Runs kubectl; its standard output.
async fn run(arguments: &[&str], input: &str) -> Outcome<String> {
    let words: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
    let input = input.to_owned();
    let output = tokio::task::spawn_blocking(move || run_kubectl(&words, &input))
        .await
        .map_err(|error| Failure::new(format!("kubectl: {error}")))??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let words = format!("kubectl {}: {}", arguments.join(" "), text(&output.stderr));
    Err(Failure::new(format!("{words}\n{}", text(&output.stdout)).trim_end().to_owned()))
}

fn run_kubectl(arguments: &[String], input: &str) -> Outcome<Output> {
    let mut child = Command::new("kubectl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::new(format!("kubectl can't be started: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    Ok(child.wait_with_output()?)
}
