//! What an administrator decides for all clusters: the configuration file, read once as the operator starts.

use std::path::{Path, PathBuf};

use atoll_crds::v1alpha1::PodOptions;
use serde::Deserialize;

use crate::policy::UpgradePolicy;

/// The configuration file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// When clusters get another version without anybody naming it.
    pub upgrades: UpgradePolicy,
    /// What pods have for which a resource says nothing else.
    pub pods: PodOptions,
}

/// The file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It can't be read.
    #[error("can't read the configuration {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It isn't one.
    #[error("the configuration {path} is invalid: {source}")]
    Invalid {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_yaml::Error,
    },
}

impl Settings {
    /// From the file; without one, all is as it is by default.
    ///
    /// # Errors
    /// If it can't be read, or has a field that there isn't.
    pub fn read(path: Option<&Path>) -> Result<Settings, SettingsError> {
        let Some(path) = path else { return Ok(Settings::default()) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
        if text.trim().is_empty() {
            return Ok(Settings::default());
        }
        serde_yaml::from_str(&text).map_err(|source| SettingsError::Invalid { path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Mode;

    #[test]
    fn what_is_installed_is_a_configuration_and_changes_nothing() {
        let installed = include_str!("../../config/operator/config.yaml");
        assert_eq!(serde_yaml::from_str::<Settings>(installed).expect("valid"), Settings::default());
    }

    #[test]
    fn a_file_says_what_differs_from_the_defaults_and_nothing_that_there_is_not() {
        assert_eq!(Settings::read(None).expect("none"), Settings::default());
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("config.yaml");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            Settings::read(Some(&path))
        };
        assert_eq!(read("").expect("empty"), Settings::default());
        let found = read(
            "upgrades:\n  mode: Automatic\n  clustersMax: 3\n  window: {days: [Sat, Sun], start: '22:00', end: '04:00'}\n",
        );
        let pods = read("pods: {nodeSelector: {disk: ssd}, imagePullSecrets: [{name: registry}]}\n")
            .expect("valid")
            .pods;
        assert_eq!((pods.node_selector["disk"].as_str(), pods.image_pull_secrets.len()), ("ssd", 1));
        assert!(read("pods: {nodeselector: {}}\n").is_err());
        let upgrades = found.expect("valid").upgrades;
        assert_eq!((upgrades.mode, upgrades.clusters_max), (Mode::Automatic, 3));
        let error = read("upgrades: {mod: Automatic}\n").expect_err("unknown").to_string();
        assert!(error.contains("unknown field `mod`") && error.contains("config.yaml"), "{error}");
        assert!(
            Settings::read(Some(Path::new("/nowhere")))
                .expect_err("missing")
                .to_string()
                .contains("/nowhere")
        );
    }
}
