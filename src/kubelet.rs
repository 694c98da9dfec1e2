//! How kubelet learns of the driver: a socket in the directory that it watches, and one small service there (plugin
//! registration API v1, `k8s.io/kubelet/pkg/apis/pluginregistration`). No other program has to stand beside ours for it.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::Notify;
use tonic::{Request, Response, Status, transport::Server};

use crate::{
    error::{Chain, Error, ErrorKind, Result},
    proto::registration::{
        InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
        registration_server::{self, RegistrationServer},
    },
    server::{self, Endpoint, SocketFile},
};

/// How long until another try, at first and at most.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);

/// How often the socket is looked for.
const LOOK: Duration = Duration::from_secs(2);

/// What kubelet is told, and where.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The directory that kubelet watches.
    pub directory: PathBuf,
    /// Name of the driver.
    pub driver_name: String,
    /// The CSI socket, as kubelet sees it.
    pub endpoint: PathBuf,
}

impl Registration {
    /// Where the socket is. The name has an `@` for the sake of kubelet (as of 1.36), which calls the server by the socket's
    /// whole path, each slash as `%2F`: before an `@` that may stand in an authority, and without one the request is refused
    /// before it reaches us.
    ///
    /// # Errors
    /// `Invalid` where the path is longer than the kernel takes.
    pub fn socket(&self) -> Result<Endpoint> {
        let path = self.directory.join(format!("reg@{}.sock", self.driver_name));
        path.to_string_lossy().parse().map_err(|error: server::BadEndpoint| {
            Error::new(ErrorKind::Invalid, "register with kubelet").because(error)
        })
    }

    /// The service that kubelet calls on that socket.
    #[must_use]
    pub fn service(&self) -> RegistrationServer<impl registration_server::Registration + use<>> {
        self.tells(Arc::default())
    }

    fn tells(&self, refusal: Arc<Refusal>) -> RegistrationServer<Service> {
        RegistrationServer::new(Service { about: self.clone(), refusal })
    }

    /// Keeps the socket in its place for as long as this is polled: it is made anew when somebody removes it, when the
    /// directory is replaced, and when kubelet has refused us. Dropped, it takes the socket away, and kubelet forgets us.
    pub async fn keep(self) {
        let (mut pause, mut told) = (SHORTEST, None);
        loop {
            let failure = match self.serve().await {
                Ok(()) => {
                    (pause, told) = (SHORTEST, None);
                    continue;
                }
                Err(error) => Chain(&error).to_string(),
            };
            if told.as_ref() != Some(&failure) {
                tracing::warn!(error = failure, "kubelet does not know of us: trying again");
            }
            told = Some(failure);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// Serves until the socket is gone from its place; an error where kubelet refuses us.
    async fn serve(&self) -> Result<()> {
        if !self.directory.is_dir() {
            // Kubelet makes it.
            let what = format!("{} is no directory", self.directory.display());
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        let (incoming, file) = server::listen(&self.socket()?).await?.incoming();
        let refusal = Arc::new(Refusal::default());
        let service = self.tells(Arc::clone(&refusal));
        let server = Server::builder().add_service(service).serve_with_incoming(incoming);
        tokio::select! {
            ended = server => ended.map_err(|error| Error::new(ErrorKind::Broken, "serve kubelet").because(error)),
            () = until_gone(&file) => Ok(()),
            why = refusal.told() => Err(Error::new(ErrorKind::Unavailable, format!("kubelet refuses us: {why}"))),
        }
    }
}

/// Waits until somebody has removed the file. Looking costs one call; to be told would cost a watch, and one on what the
/// directory lies in.
async fn until_gone(file: &SocketFile) {
    while file.is_there() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Why kubelet has refused us.
#[derive(Debug, Default)]
struct Refusal {
    why: OnceLock<String>,
    told: Notify,
}

impl Refusal {
    async fn told(&self) -> String {
        self.told.notified().await;
        // Kubelet waits for its answer.
        tokio::time::sleep(SHORTEST).await;
        self.why.get().cloned().unwrap_or_default()
    }
}

struct Service {
    about: Registration,
    refusal: Arc<Refusal>,
}

#[tonic::async_trait]
impl registration_server::Registration for Service {
    async fn get_info(&self, _request: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: self.about.driver_name.clone(),
            endpoint: self.about.endpoint.to_string_lossy().into_owned(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!("registered with kubelet");
        } else {
            // A second one says nothing new.
            self.refusal.why.set(status.error).unwrap_or_default();
            self.refusal.told.notify_one();
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
