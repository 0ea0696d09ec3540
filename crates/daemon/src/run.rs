//! From a configuration to a daemon that serves, and to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio_rustls::TlsAcceptor;

use crate::activation::Handed;
use crate::alerts::Trouble;
use crate::error::{Error, IoContext as _};
use crate::service::{self, Config, Service, Shared};
use crate::supervision::Supervisor;
use crate::verdict::Severity;
use crate::{api, server, tls};

/// How long until an address that somebody else has is tried again.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// Where those who ask come in.
#[derive(Debug, Default)]
pub struct Doors {
    /// What the service manager opened. The home's own socket is opened too, where it is none of these.
    pub handed: Handed,
    /// An address for those who come over the network.
    pub listen: Option<SocketAddr>,
}

/// Serves a home until `over`. `ready` is told why nobody can come over the network, where an address was given and cannot be had:
/// it is tried again and again.
///
/// # Errors
/// What keeps it from starting. Once it serves, nothing ends it but `over`.
pub fn serve(
    config: Config,
    doors: Doors,
    over: &Arc<AtomicBool>,
    ready: impl FnOnce(Option<&str>),
) -> Result<(), Error> {
    let directory = service::directory(&config.home);
    let (service, shared) = Service::start(config, over)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.or_io("start", std::path::Path::new("a runtime"))?;
    let router = api::router(Arc::clone(&shared));
    // Listeners belong to the runtime from their beginning.
    let within = runtime.enter();
    let mut unheard = None;
    let Doors { handed, listen } = doors;
    if listen.is_some() || !handed.network.is_empty() {
        let host = shared.view().overview.host.clone();
        let acceptor = TlsAcceptor::from(tls::config(&directory, &host)?);
        for listener in handed.network {
            let listener = server::handed_network(listener)?;
            runtime.spawn(server::on_network(listener, acceptor.clone(), router.clone()));
        }
        if let Some(address) = listen {
            let router = router.clone();
            match runtime.block_on(server::bind(address)) {
                Ok(listener) => drop(runtime.spawn(server::on_network(listener, acceptor, router))),
                Err(error) => {
                    unheard = Some(cannot_listen(&shared, address, &error));
                    let shared = Arc::clone(&shared);
                    runtime.spawn(async move {
                        let listener = bound(&shared, address).await;
                        server::on_network(listener, acceptor, router).await;
                    });
                }
            }
        }
    }
    let own = !handed.local.iter().any(|listener| server::is_socket_of(&directory, listener));
    if own {
        runtime.spawn(server::on_socket(server::listen(&directory)?, router.clone()));
    }
    for listener in handed.local {
        runtime.spawn(server::on_socket(server::handed_local(listener)?, router.clone()));
    }
    drop(within);
    let mut supervisor = Supervisor::of_environment();
    supervisor.ready();
    ready(unheard.as_deref());
    service.run(over, || supervisor.beat());
    Supervisor::of_environment().stopping();
    // Streams last for ever: they are cut.
    runtime.shutdown_background();
    if own {
        let _ = std::fs::remove_file(server::socket(&directory));
    }
    Ok(())
}

/// An address that cannot be had keeps nothing else from being done: it is said.
fn cannot_listen(shared: &Shared, address: SocketAddr, error: &Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    let what = format!("nobody can come over the network: {error}{cause}");
    shared.heard(Some(Trouble {
        id: "listen".to_owned(),
        severity: Severity::Critical,
        machine: None,
        what: what.clone(),
        advice: format!("see who has {address} with `ss -ltnp`; it is tried again each {} s", LISTEN_AGAIN.as_secs()),
    }));
    what
}

/// Waits until an address can be had.
async fn bound(shared: &Shared, address: SocketAddr) -> tokio::net::TcpListener {
    let mut said = String::new();
    loop {
        match server::bind(address).await {
            Ok(listener) => {
                tracing::info!("{address} can be had now: it is listened on");
                shared.heard(None);
                return listener;
            }
            Err(error) => {
                let what = cannot_listen(shared, address, &error);
                if what != said {
                    tracing::error!("{what}");
                    said = what;
                }
            }
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}
