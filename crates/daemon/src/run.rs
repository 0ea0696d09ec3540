//! From a configuration to a daemon that serves, and to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio_rustls::TlsAcceptor;

use crate::error::{Error, IoContext as _};
use crate::service::{self, Config, Service};
use crate::supervision::Supervisor;
use crate::{api, server, tls};

/// Serves a home until `over`.
///
/// # Errors
/// What keeps it from starting. Once it serves, nothing ends it but `over`.
pub fn serve(
    config: Config,
    listen: Option<SocketAddr>,
    over: &Arc<AtomicBool>,
    ready: impl FnOnce(),
) -> Result<(), Error> {
    let directory = service::directory(&config.home);
    let (service, shared) = Service::start(config, over)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.or_io("start", std::path::Path::new("a runtime"))?;
    let router = api::router(Arc::clone(&shared));
    if let Some(address) = listen {
        let host = shared.view().overview.host.clone();
        let acceptor = TlsAcceptor::from(tls::config(&directory, &host)?);
        let listener = runtime.block_on(server::bind(address))?;
        runtime.spawn(server::on_network(listener, acceptor, router.clone()));
    }
    let listening = runtime.block_on(async { server::listen(&directory) })?;
    runtime.spawn(server::on_socket(listening, router));
    let mut supervisor = Supervisor::of_environment();
    supervisor.ready();
    ready();
    service.run(over, || supervisor.beat());
    Supervisor::of_environment().stopping();
    // Streams last for ever: they are cut.
    runtime.shutdown_background();
    let _ = std::fs::remove_file(server::socket(&directory));
    Ok(())
}
