//! `kubectl atoll adopt`: creates the FileSystemCluster of kept disks again, from what the disks say of it.

use atoll_crds::names::{DRIVER_NAME, MANAGER_KUBECTL, NAMESPACE_VOLUMES, VolumeHandle};
use atoll_crds::v1alpha1::FileSystemCluster;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::cli::AdoptArgs;
use crate::exit::{Code, Failure};
use crate::orphans::{self, Orphan};
use crate::output;

/// Creates them.
///
/// # Errors
/// If there are no such disks, they don't say what they were, or something else has the name.
pub async fn run(client: Client, namespace: &str, args: &AdoptArgs) -> Result<(), Failure> {
    let found = orphans::find(&client, None).await?;
    let chosen = match &args.target {
        None => found,
        Some(target) => {
            let places = places(&client, namespace, target).await?;
            vec![choose(found, &places).map_err(|message| Failure::new(Code::NotFound, message))?]
        }
    };
    let mut failed = None;
    for orphan in &chosen {
        // One that can't be adopted keeps no other one from it.
        match adopt(&client, orphan).await {
            Ok(()) => output::text(&format!(
                "{}/{} is adopted: kubectl -n {} wait fsc/{} --for condition=Ready\n",
                orphan.namespace, orphan.name, orphan.namespace, orphan.name
            ))?,
            Err(failure) => {
                eprintln!("{}/{}: {}", orphan.namespace, orphan.name, failure.message);
                failed = Some(failure.code);
            }
        }
    }
    match failed {
        Some(code) => Err(Failure::new(code, "not all disks were adopted")),
        None if chosen.is_empty() => output::text("no disks without a FileSystemCluster\n"),
        None => Ok(()),
    }
}

/// Namespaces and names that a target can mean.
async fn places(client: &Client, namespace: &str, target: &str) -> Result<Vec<(String, String)>, Failure> {
    let Some(volume) = target.strip_prefix("pv/") else {
        let prefixes = ["fsc/", "filesystemcluster/", "filesystemcluster.atoll.dev/"];
        let name =
            prefixes.iter().find_map(|prefix| target.strip_prefix(prefix)).unwrap_or(target).to_owned();
        return Ok(vec![(namespace.to_owned(), name.clone()), (NAMESPACE_VOLUMES.to_owned(), name)]);
    };
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let found = volumes.get(volume).await.map_err(Failure::api("read the PersistentVolume"))?;
    let source = found.spec.and_then(|spec| spec.csi).filter(|source| source.driver == DRIVER_NAME);
    let Some(source) = source else {
        let message = format!("PersistentVolume '{volume}' isn't an Atoll volume");
        return Err(Failure::new(Code::NotFound, message));
    };
    let handle: VolumeHandle =
        source.volume_handle.parse().map_err(|error| Failure::new(Code::Failed, error))?;
    Ok(vec![(handle.namespace().to_owned(), handle.name().to_owned())])
}

/// The one orphan that is meant.
fn choose(found: Vec<Orphan>, places: &[(String, String)]) -> Result<Orphan, String> {
    for (namespace, name) in places {
        let mut here: Vec<Orphan> = found
            .iter()
            .filter(|orphan| orphan.namespace == *namespace && orphan.name == *name)
            .cloned()
            .collect();
        match here.len() {
            0 => {}
            1 => return Ok(here.remove(0)),
            count => {
                return Err(format!(
                    "there are disks of {count} clusters {namespace}/{name}: delete those that aren't needed any more \
                     (kubectl atoll orphans -A shows their ids)"
                ));
            }
        }
    }
    let name = places.first().map_or("", |(_, name)| name);
    Err(format!(
        "there are no disks of '{name}' without a FileSystemCluster: kubectl atoll orphans -A shows all"
    ))
}

/// The resource of kept disks; an error says why there can't be one.
fn resource(orphan: &Orphan) -> Result<FileSystemCluster, String> {
    if orphan.name_taken {
        return Err("a FileSystemCluster of this name exists and has other disks".to_owned());
    }
    match &orphan.record {
        Some(record) => Ok(record.resource(&orphan.namespace, &orphan.name)),
        None => Err(format!(
            "the disks don't say what their volume was: create a FileSystemCluster {} in namespace {} with the capacity, \
             copies and servers that it had",
            orphan.name, orphan.namespace
        )),
    }
}

async fn adopt(client: &Client, orphan: &Orphan) -> Result<(), Failure> {
    let cluster = resource(orphan).map_err(|message| Failure::new(Code::Refused, message))?;
    let api: Api<FileSystemCluster> = Api::namespaced(client.clone(), &orphan.namespace);
    let params = PostParams { field_manager: Some(MANAGER_KUBECTL.to_owned()), ..PostParams::default() };
    api.create(&params, &cluster).await.map(|_| ()).map_err(Failure::api("create the FileSystemCluster"))
}

#[cfg(test)]
mod tests {
    use atoll_crds::v1alpha1::KeptVolume;

    use super::*;
    use crate::orphans::tests::cluster;

    fn orphan(namespace: &str, id: &str) -> Orphan {
        Orphan {
            namespace: namespace.into(),
            name: "db".into(),
            cluster_id: id.into(),
            disks: 2,
            bytes: 0,
            bootstrapped: true,
            claim: None,
            name_taken: false,
            record: Some(KeptVolume::of(&cluster())),
        }
    }

    #[test]
    fn the_resource_is_created_as_it_was() {
        let mut found = orphan("ns", "7");
        let created = resource(&found).expect("there is a record");
        assert_eq!((created.namespace_str(), &created.spec), ("ns", &cluster().spec));
        found.name_taken = true;
        assert!(resource(&found).expect_err("taken").contains("exists"));
        (found.name_taken, found.record) = (false, None);
        assert!(resource(&found).expect_err("no record").contains("capacity"));
    }

    #[test]
    fn the_nearest_disks_of_a_name_are_meant_if_they_are_of_one_cluster() {
        let places = [("web".to_owned(), "db".to_owned()), (NAMESPACE_VOLUMES.to_owned(), "db".to_owned())];
        let of = |found: Vec<Orphan>| choose(found, &places).map(|found| found.cluster_id);
        assert_eq!(of(vec![orphan(NAMESPACE_VOLUMES, "8"), orphan("web", "7")]), Ok("7".into()));
        assert_eq!(of(vec![orphan(NAMESPACE_VOLUMES, "8"), orphan("other", "7")]), Ok("8".into()));
        assert!(of(vec![orphan("web", "7"), orphan("web", "8")]).expect_err("two").contains("2 clusters"));
        assert!(of(Vec::new()).expect_err("none").contains("orphans -A"));
    }
}
