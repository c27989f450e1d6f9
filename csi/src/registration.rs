//! Registration with kubelet: it watches a folder for sockets, asks what is behind a new one, and tells whether it took it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use atoll_crds::names::DRIVER_NAME;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::pluginregistration::registration_server::{Registration, RegistrationServer};
use crate::pluginregistration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use crate::server::{self, ServeError};

/// What kubelet calls CSI drivers.
const TYPE: &str = "CSIPlugin";
/// The version of kubelet's interface to them.
const SUPPORTED: &str = "1.0.0";
/// How often it is looked whether the socket is still there; a kubelet that starts may empty the folder.
const LOOK_PERIOD: Duration = Duration::from_secs(5);

/// Where registration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Kubelet has not said anything.
    Waiting,
    /// Kubelet took the driver.
    Registered,
    /// Kubelet won't have it, and why: the process ends, to be asked again after its restart.
    Refused(String),
}

struct Service {
    endpoint: PathBuf,
    state: Arc<watch::Sender<State>>,
}

#[tonic::async_trait]
impl Registration for Service {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: TYPE.to_owned(),
            name: DRIVER_NAME.to_owned(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec![SUPPORTED.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!("the driver is registered with kubelet");
            self.state.send_replace(State::Registered);
        } else {
            tracing::error!(error = status.error, "kubelet refused to register the driver");
            self.state.send_replace(State::Refused(status.error));
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// Serves the registration in kubelet's folder until the token is cancelled. `endpoint` is the driver's socket as kubelet
/// sees it. A socket that somebody removed is made again.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(
    folder: &Path,
    endpoint: &Path,
    state: Arc<watch::Sender<State>>,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let path = folder.join(format!("{DRIVER_NAME}-reg.sock"));
    while !stop.is_cancelled() {
        let service = Service { endpoint: endpoint.to_owned(), state: Arc::clone(&state) };
        let router = Server::builder().add_service(RegistrationServer::new(service));
        let round = stop.child_token();
        let watching = watch_socket(&path, round.clone());
        let serving = async {
            let result = server::serve(router, &path, round.clone()).await;
            round.cancel();
            result
        };
        let (served, ()) = tokio::join!(serving, watching);
        served?;
    }
    Ok(())
}

/// Cancels the token when the socket isn't there any more.
async fn watch_socket(path: &Path, round: CancellationToken) {
    loop {
        tokio::select! {
            () = round.cancelled() => return,
            () = tokio::time::sleep(LOOK_PERIOD) => {}
        }
        if std::fs::symlink_metadata(path).is_err() {
            tracing::warn!(path = %path.display(), "the registration socket was removed; creating it again");
            round.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;

    use super::*;
    use crate::authority::testing;
    use crate::pluginregistration::registration_client::RegistrationClient;

    /// kubelet names the socket's path as the authority.
    #[tokio::test]
    async fn kubelet_s_own_way_to_call_is_understood() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let folder = tempfile::tempdir().unwrap();
        let state = Arc::new(watch::channel(State::Waiting).0);
        let stop = CancellationToken::new();
        let serving = tokio::spawn({
            let (folder, stop) = (folder.path().to_owned(), stop.clone());
            async move { serve(&folder, Path::new("/plugins/csi.sock"), state, stop).await }
        });
        let socket = folder.path().join("csi.atoll.dev-reg.sock");
        let mut stream = loop {
            match tokio::net::UnixStream::connect(&socket).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let call =
            testing::call("/pluginregistration.Registration/GetInfo", "%2Fplugins_registry%2Fx-reg.sock");
        stream.write_all(&call).await.unwrap();
        let (mut heard, name) = (Vec::new(), b"csi.atoll.dev");
        while !heard.windows(name.len()).any(|part| part == name) {
            assert_ne!(stream.read_buf(&mut heard).await.unwrap(), 0, "hung up: {heard:?}");
        }
        drop(stream);
        stop.cancel();
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn kubelet_is_told_what_is_here_and_its_answer_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let state = Arc::new(watch::channel(State::Waiting).0);
        let stop = CancellationToken::new();
        let serving = tokio::spawn({
            let (folder, state, stop) = (folder.path().to_owned(), Arc::clone(&state), stop.clone());
            async move { serve(&folder, Path::new("/plugins/csi.sock"), state, stop).await }
        });
        let socket = folder.path().join("csi.atoll.dev-reg.sock");
        let channel = loop {
            let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
            match endpoint.connect().await {
                Ok(channel) => break channel,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let mut kubelet = RegistrationClient::new(channel);
        let info = kubelet.get_info(InfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "csi.atoll.dev"));
        assert_eq!(info.endpoint, "/plugins/csi.sock");
        let taken = RegistrationStatus { plugin_registered: true, error: String::new() };
        kubelet.notify_registration_status(taken).await.unwrap();
        assert_eq!(*state.borrow(), State::Registered);
        let refused = RegistrationStatus { plugin_registered: false, error: "why".into() };
        kubelet.notify_registration_status(refused).await.unwrap();
        assert_eq!(*state.borrow(), State::Refused("why".into()));
        drop(kubelet);
        stop.cancel();
        serving.await.unwrap().unwrap();
        assert!(!socket.exists(), "removed at the end");
    }
}
