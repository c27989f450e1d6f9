//! The operator's configuration: parsed once, in `main`, and passed down.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use atoll_crds::names;
use atoll_crds::v1alpha1::PodOptions;
use clap::{Parser, ValueEnum};

/// The version of this program: the newest that clusters may run. A build that stands for the next release says so
/// (hack/ship.sh --next).
pub const VERSION: &str = match option_env!("ATOLL_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// Characters of a namespace's name.
const NAMESPACE_CHARS_MAX: usize = 63;

/// The operator of Atoll: reconciles every FileSystemCluster.
#[derive(Parser, Debug, Clone)]
#[command(name = "atoll-operator", version = VERSION)]
pub struct Config {
    /// The image that pods run; it contains `/usr/bin/atoll-fs`. Default: this version's.
    #[arg(long, env = "ATOLL_IMAGE", value_name = "IMAGE")]
    pub image: Option<String>,
    /// Images of other versions that a cluster can select: VERSION=IMAGE, separated by commas.
    #[arg(long, env = "ATOLL_IMAGES", value_name = "VERSION=IMAGE", value_delimiter = ',')]
    pub images: Vec<String>,
    /// File with what is decided for all clusters: upgrades, defaults of pods.
    #[arg(long, env = "ATOLL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Image pull policy: Always, IfNotPresent or Never.
    #[arg(long, env = "ATOLL_IMAGE_PULL_POLICY", default_value = "IfNotPresent", value_name = "POLICY")]
    pub image_pull_policy: PullPolicy,
    /// Namespaces whose FileSystemClusters are reconciled, separated by commas; that of the volumes of claims is always one of
    /// them. Default: all namespaces.
    #[arg(long, env = "ATOLL_NAMESPACES", value_name = "NAME", value_delimiter = ',', value_parser = namespace)]
    pub namespaces: Vec<String>,
    /// Namespace of the leader election lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = atoll_crds::names::NAMESPACE_SYSTEM, value_name = "NAMESPACE")]
    pub namespace: String,
    /// Identity in the leader election. Default: the host name and a random number.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub identity: Option<String>,
    /// Reconcile without leader election. Only for a single operator.
    #[arg(long, env = "ATOLL_NO_LEADER_ELECTION")]
    pub no_leader_election: bool,
    /// Address for metrics and health (`/metrics`, `/healthz`, `/readyz`).
    #[arg(long, env = "ATOLL_HTTP", default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    pub http: String,
    /// Number of clusters that are reconciled at the same time.
    #[arg(long, env = "ATOLL_CONCURRENCY", default_value_t = 8, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// Format of the logs on standard error.
    #[arg(long, env = "ATOLL_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// What to log: a level or filters by module.
    #[arg(long, env = "ATOLL_LOG", default_value = "info")]
    pub log: String,
}

impl Config {
    /// The namespaces that are watched, each once; none: all of them.
    pub fn watched_namespaces(&self) -> Vec<String> {
        let named: BTreeSet<&str> =
            self.namespaces.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
        let always = (!named.is_empty()).then_some(names::NAMESPACE_VOLUMES);
        named.into_iter().chain(always).collect::<BTreeSet<&str>>().into_iter().map(str::to_owned).collect()
    }
}

/// A namespace's name, or nothing.
fn namespace(text: &str) -> Result<String, String> {
    let name = text.trim();
    let is_valid = name.len() <= NAMESPACE_CHARS_MAX
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !is_valid {
        return Err(
            "a namespace has at most 63 lower-case letters, digits and '-'; separate several by commas"
                .into(),
        );
    }
    Ok(name.to_owned())
}

/// When kubelet pulls an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    /// For every start.
    Always,
    /// If the node doesn't have the image.
    IfNotPresent,
    /// Never.
    Never,
}

impl PullPolicy {
    /// As in a pod.
    pub fn as_str(self) -> &'static str {
        match self {
            PullPolicy::Always => "Always",
            PullPolicy::IfNotPresent => "IfNotPresent",
            PullPolicy::Never => "Never",
        }
    }
}

/// How logs look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Human-readable lines.
    Text,
    /// One JSON object per line.
    Json,
}

/// The images, by version, and what all pods have: who writes a resource chooses a version, never an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    by_version: BTreeMap<String, String>,
    /// When kubelet pulls them.
    pub pull_policy: PullPolicy,
    /// What pods have for which a resource says nothing else.
    pub pods: PodOptions,
}

/// A flag is invalid.
#[derive(Debug, thiserror::Error)]
#[error("invalid --images '{0}': write VERSION=IMAGE, such as 0.1.0=registry.example/atoll:0.1.0")]
pub struct ImagesError(String);

impl Images {
    /// From the flags.
    ///
    /// # Errors
    /// If one of them isn't VERSION=IMAGE.
    pub fn parse(config: &Config) -> Result<Images, ImagesError> {
        let mut by_version = BTreeMap::new();
        for text in config.images.iter().filter(|text| !text.trim().is_empty()) {
            match text.trim().split_once('=') {
                Some((version, image)) if !version.is_empty() && !image.is_empty() => {
                    by_version.insert(version.to_owned(), image.to_owned());
                }
                _ => return Err(ImagesError(text.clone())),
            }
        }
        let own = config.image.clone().unwrap_or_else(|| format!("ghcr.io/atoll-dev/atoll:{VERSION}"));
        by_version.insert(VERSION.to_owned(), own);
        Ok(Images { by_version, pull_policy: config.image_pull_policy, pods: PodOptions::default() })
    }

    /// The image of a version.
    pub fn of(&self, version: &str) -> Option<&str> {
        self.by_version.get(version).map(String::as_str)
    }

    /// With the image that a cluster's pods run already: an operator that was upgraded needs no list of what it ran before.
    pub fn with(&self, running: Option<(String, String)>) -> Images {
        let mut images = self.clone();
        if let Some((version, image)) = running {
            images.by_version.entry(version).or_insert(image);
        }
        images
    }

    /// The versions that there are images of.
    pub fn versions(&self) -> Vec<&str> {
        self.by_version.keys().map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_come_by_version_and_the_own_one_is_always_there() {
        let config = Config::parse_from(["atoll-operator", "--images", "0.0.9=r/a:0.0.9,1.0.0=r/a:1"]);
        let images = Images::parse(&config).expect("valid");
        assert_eq!(images.of("0.0.9"), Some("r/a:0.0.9"));
        assert_eq!(images.of(VERSION), Some(format!("ghcr.io/atoll-dev/atoll:{VERSION}").as_str()));
        assert_eq!(images.of("2.0.0"), None);
        let running = |version: &str| Some((version.to_owned(), "r/a:mine".to_owned()));
        assert_eq!(images.with(running("2.0.0")).of("2.0.0"), Some("r/a:mine"));
        assert_eq!(images.with(running("0.0.9")).of("0.0.9"), Some("r/a:0.0.9"));
        assert_eq!(images.with(None), images);
        let config = Config::parse_from(["atoll-operator", "--image", "x:y"]);
        assert_eq!(Images::parse(&config).expect("valid").of(VERSION), Some("x:y"));
        let config = Config::parse_from(["atoll-operator", "--images", "0.0.9"]);
        assert!(Images::parse(&config).expect_err("no image").to_string().contains("VERSION=IMAGE"));
    }

    #[test]
    fn all_namespaces_are_watched_or_those_that_are_named_and_that_of_claims() {
        let watched = |flags: &[&str]| {
            let flags = ["atoll-operator"].iter().chain(flags);
            Config::try_parse_from(flags).map(|config| config.watched_namespaces())
        };
        assert_eq!(watched(&[]).expect("valid"), Vec::<String>::new());
        assert_eq!(watched(&["--namespaces", ""]).expect("valid"), Vec::<String>::new());
        assert_eq!(watched(&["--namespaces", "web, db,web"]).expect("valid"), ["atoll-volumes", "db", "web"]);
        assert_eq!(watched(&["--namespaces", "atoll-volumes"]).expect("valid"), ["atoll-volumes"]);
        let error = watched(&["--namespaces", "web db"]).expect_err("two").to_string();
        assert!(error.contains("separate several by commas"), "{error}");
    }
}
