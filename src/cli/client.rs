//! The daemon as the command line sees it: a CSI driver behind a socket.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use crate::{
    config::Config,
    error::{Error, ErrorKind, Result, innermost},
    proto::{
        controller_client::ControllerClient, group_controller_client::GroupControllerClient,
        identity_client::IdentityClient, node_client::NodeClient,
    },
};

/// Most bytes of metrics that are read: some for each of thousands of hosts.
const FIGURES_LIMIT: u64 = 16 << 20;

/// A connection to the daemon.
#[derive(Clone)]
pub(super) struct Daemon {
    channel: Channel,
}

impl Daemon {
    /// Connects to the socket of the configuration.
    pub(super) async fn connect(config: &Config) -> Result<Self> {
        Self::connect_to(config.endpoint.path()).await
    }

    /// Connects to a socket.
    pub(super) async fn connect_to(path: &Path) -> Result<Self> {
        let socket: Arc<PathBuf> = Arc::new(path.to_owned());
        let connector = service_fn(move |_| {
            let socket = Arc::clone(&socket);
            async move { UnixStream::connect(socket.as_path()).await.map(TokioIo::new) }
        });
        let unreachable = |error: tonic::transport::Error| {
            let cause = innermost(&error);
            let what = format!(
                "no daemon answers on unix://{} ({cause}): is `lagan serve` running, and are you root?",
                path.display()
            );
            Error::new(ErrorKind::Unavailable, what)
        };
        // The name is never looked up: the socket decides where calls go.
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connector).await.map_err(unreachable)?;
        Ok(Self { channel })
    }

    pub(super) fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel.clone())
    }

    pub(super) fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    pub(super) fn groups(&self) -> GroupControllerClient<Channel> {
        GroupControllerClient::new(self.channel.clone())
    }

    pub(super) fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }
}

/// An answer that is an error, as one of ours.
#[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
pub(super) fn refused(status: Status) -> Error {
    let kind = match status.code() {
        Code::NotFound => ErrorKind::NotFound,
        Code::FailedPrecondition => ErrorKind::InUse,
        Code::ResourceExhausted => ErrorKind::NoSpace,
        Code::Aborted => ErrorKind::Busy,
        Code::Unavailable => ErrorKind::Unavailable,
        Code::InvalidArgument => ErrorKind::Invalid,
        Code::OutOfRange => ErrorKind::OutOfRange,
        Code::DeadlineExceeded => ErrorKind::Unsettled,
        _ => ErrorKind::Broken,
    };
    let hint = if status.code() == Code::Unimplemented {
        "; is this the endpoint of another mode? --endpoint names one"
    } else {
        ""
    };
    Error::new(kind, format!("{} ({}){hint}", status.message(), code_name(status.code())))
}

/// The code as the specification writes it.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// Shows how far a call on `subject` is while it runs, where it takes long: read from the daemon's metrics.
pub(super) async fn with_progress<T>(config: &Config, subject: &str, call: impl Future<Output = T>) -> T {
    tokio::pin!(call);
    let bar = ProgressBar::hidden();
    let style = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    loop {
        tokio::select! {
            done = &mut call => {
                bar.finish_and_clear();
                return done;
            }
            () = tokio::time::sleep(Duration::from_millis(300)) => {
                if let Some((done, total)) = progress(config, subject).await {
                    bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
                    bar.set_length(total);
                    bar.set_position(done);
                }
            }
        }
    }
}

/// What the metrics say of an operation: bytes done, and in all.
async fn progress(config: &Config, subject: &str) -> Option<(u64, u64)> {
    let text = figures(config).await.ok()?;
    let value = |metric: &str| {
        let subject = format!("subject=\"{}\"", subject.replace('\\', "\\\\").replace('"', "\\\""));
        let mut lines = text.lines().filter(|line| line.starts_with(metric) && line.contains(&subject));
        lines.next()?.rsplit(' ').next()?.parse::<u64>().ok()
    };
    let total = value("lagan_operation_bytes_total").filter(|total| *total > 0)?;
    Some((value("lagan_operation_bytes_done")?, total))
}

/// The metrics of the daemon.
///
/// # Errors
/// `Unavailable` where it serves none, or none answers.
pub(super) async fn figures(config: &Config) -> Result<String> {
    let Some(address) = config.http else {
        return Err(Error::new(ErrorKind::Unavailable, "the daemon serves no metrics (`http` is off)"));
    };
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nConnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.take(FIGURES_LIMIT).read_to_string(&mut text).await?;
        Ok(text)
    };
    let failed = |error: std::io::Error| {
        let what = format!("no daemon answers on http://{address}: is `lagan serve` running?");
        Error::new(ErrorKind::Unavailable, what).because(error)
    };
    ask.await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_names_of_the_specification() {
        assert_eq!(code_name(Code::FailedPrecondition), "FAILED_PRECONDITION");
        assert_eq!(code_name(Code::Ok), "OK");
    }
}
